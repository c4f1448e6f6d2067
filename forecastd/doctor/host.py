"""Checks of this machine: settings, wallet, disk, ledger and service files. They use no network and change nothing.

The only write is to an unnamed temporary file, which tests whether a directory is writable.
"""

from __future__ import annotations

import difflib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from forecastd.chain.wallet import open_wallet
from forecastd.doctor.finding import Finding, Level, failure, ok, skipped, split_message, warning
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import SubmissionState
from forecastd.ledger.snapshot import LedgerNotFound, open_snapshot
from forecastd.runtime.formatting import format_count
from forecastd.service.installed import known_file_paths, missing_paths
from forecastd.settings import DEFAULTS, ENV_FILE, Settings

LOW_DISK_BYTES, CRITICAL_DISK_BYTES = 500_000_000, 20_000_000  # bytes free
_SECRETS = ("MNEMONIC", "TIINGO_API_KEY", "FLEET_API_KEYS", "ALERT_WEBHOOK")
_PREFIXES = ("ALLORA_", "TIINGO_", "FORECASTD_", "SUBMISSION_", "MNEMONIC", "FLEET_")


def check_settings(invalid_settings: Mapping[str, str], sources: Mapping[str, str]) -> list[Finding]:
    """Report invalid values, and variables that look like a setting but are not one.

    `invalid_settings`: the reason by variable name. `sources`: the source of every variable that is set.
    """
    setting_names = set(DEFAULTS)
    findings = []
    for name, reason in invalid_settings.items():
        message = f"{name} from {sources.get(name, 'an option')}: {reason}; the checks below use its default"
        findings.append(failure("settings", message, "See .env.example for the allowed values."))
    for name, suggestion in find_misspelled(set(sources) - set(invalid_settings), setting_names).items():
        fix = f"Rename it to {suggestion}." if suggestion else "Correct or remove it; .env.example lists all names."
        findings.append(warning("settings", f"{name} in {sources[name]} is not a setting and is ignored", fix))
    if any(sources.get(name) == str(ENV_FILE) for name in _SECRETS) and ENV_FILE.stat().st_mode & 0o077:
        fix = f"Run: chmod 600 {ENV_FILE}"
        findings.append(warning("settings", f"other users can read {ENV_FILE}, which contains a secret", fix))
    set_names = sorted(setting_names & set(sources))
    location = f"{ENV_FILE.resolve()} found" if ENV_FILE.is_file() else "no .env here"
    if not invalid_settings:
        findings.append(
            ok("settings", f"{location}; variables set: {', '.join(set_names) or 'none, all are defaults'}")
        )
    return findings


def find_misspelled(names: Iterable[str], setting_names: Iterable[str]) -> dict[str, str | None]:
    """Names that look like a setting but are not one, each with the closest setting, or None."""
    settings, suggestions = sorted(setting_names), {}
    for name in sorted(set(names) - set(settings)):
        matches = difflib.get_close_matches(name, settings, 1, cutoff=0.85)
        if matches or name.startswith(_PREFIXES):
            suggestions[name] = matches[0] if matches else None
    return suggestions


def check_wallet(settings: Settings) -> tuple[Finding, str | None]:
    """Report the wallet's address and source, or its problem. Never shows any part of the phrase."""
    try:
        wallet = open_wallet(settings)
    except NeedsHuman as error:
        return failure("wallet", *split_message(str(error))), None
    address_note = ", matches ALLORA_WALLET_ADDR" if settings.wallet.address else ""
    message = f"{wallet.address}{address_note}, from {_wallet_source(settings)}"
    if settings.wallet.mnemonic is not None and settings.wallet.mnemonic_file is not None:
        fix = "Remove one of the two."
        return warning("wallet", f"{message}; MNEMONIC_FILE is also set but not used", fix), wallet.address
    return ok("wallet", message), wallet.address


def _wallet_source(settings: Settings) -> str:
    if settings.wallet.mnemonic is not None:
        return "MNEMONIC"
    if settings.wallet.mnemonic_file is not None:
        return f"{settings.wallet.mnemonic_file}, mode {stat.S_IMODE(settings.wallet.mnemonic_file.stat().st_mode):04o}"
    credentials = settings.systemd.credentials_directory
    if credentials is not None and (credentials / "mnemonic").exists():
        return "the systemd credential mnemonic"
    return "the local network's own file"


def check_disk(name: str, directory: Path, *, required: bool) -> list[Finding]:
    """Whether a directory is writable and has free space. A directory that is not `required` warns at most.

    `name`: the variable that sets the directory.
    """
    error_level = Level.FAIL if required else Level.WARN
    fix = f"Set {name} to a directory that this user can write."
    existing_parent = directory
    while not existing_parent.exists() and existing_parent != existing_parent.parent:
        existing_parent = existing_parent.parent
    try:
        if os.statvfs(existing_parent).f_flag & os.ST_RDONLY:
            return [Finding("disk", error_level, f"{name} {directory}: its file system is read-only", fix)]
        with tempfile.TemporaryFile(dir=existing_parent) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(existing_parent).free
    except OSError as error:
        return [Finding("disk", error_level, f"{name} {directory} cannot be written: {error.strerror}", fix)]
    note = "" if existing_parent == directory else " (created when needed)"
    message = f"{name} {directory}{note}: {free / 1e9:.1f} GB free"
    if free >= LOW_DISK_BYTES:
        return [ok("disk", message)]
    level = error_level if free < CRITICAL_DISK_BYTES else Level.WARN
    return [Finding("disk", level, message, "Free some space, or choose another disk.")]


def check_ledger(path: Path) -> list[Finding]:
    """Whether the ledger is readable and intact, and how many epochs are open. Reads a copy: a worker may hold it."""
    try:
        with open_snapshot(path) as ledger:
            problems, entries = ledger.find_problems(), ledger.newest_entries()
    except LedgerNotFound:
        return [ok("ledger", f"none yet at {path}; the first submission creates it")]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        fix = "Restart the worker: it renames the damaged file and recovers from the chain."
        return [failure("ledger", f"{path} is damaged: {problems[0]}{more}", fix)]
    open_entries = [
        entry for entry in entries if entry.row.state in (SubmissionState.SIGNED, SubmissionState.ABANDONED)
    ]
    last = f"; the last is nonce {entries[0].nonce}, {entries[0].row.state}" if entries else ""
    return [ok("ledger", f"intact, {format_count(len(entries), 'epoch')}, {len(open_entries)} of them open{last}")]


def check_services(files: Sequence[Path] | None = None) -> list[Finding]:
    """Whether the paths in installed service files exist. `files`: the files to check; all known paths by default."""
    installed = [path for path in (known_file_paths() if files is None else files) if path.is_file()]
    if not installed:
        return [skipped("service", "no service file is installed")]
    return [_check_service_file(path) for path in installed]


def _check_service_file(path: Path) -> Finding:
    try:
        paths = missing_paths(path)
    except NeedsHuman as error:
        return failure("service", f"{path} cannot be read: {split_message(str(error))[0]}", "Install it again.")
    if paths:
        fix = "Correct the paths in it, then reload the service manager; or run: forecastd service install"
        return failure("service", f"{path} contains paths that do not exist: {', '.join(paths)}", fix)
    return ok("service", f"{path}: its programs and directories exist")
