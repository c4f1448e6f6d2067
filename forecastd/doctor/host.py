"""Checks of this machine: settings, wallet, disk, ledger, service files. They ask no network and change nothing.

The only thing written is an unnamed file that is gone when it is closed, to learn whether a directory takes one.
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
from forecastd.doctor.finding import Finding, Level, split
from forecastd.errors import NeedsHuman
from forecastd.ledger import State
from forecastd.ledgercopy import NoLedger, read_ledger
from forecastd.service.installed import missing, usual_places
from forecastd.settings import ENV_FILE, Settings

LITTLE, TOO_LITTLE = 500_000_000, 20_000_000  # bytes free
_SECRETS = ("MNEMONIC", "TIINGO_API_KEY", "FLEET_API_KEYS", "ALERT_WEBHOOK")
_PREFIXES = ("ALLORA_", "TIINGO_", "FORECASTD_", "SUBMISSION_", "MNEMONIC", "FLEET_")


def check_settings(wrong: Mapping[str, str], given: Mapping[str, str]) -> list[Finding]:
    """Values that do not fit (`wrong`: why, by name) and names that look like a setting's and are none.

    `given`: every name that is set, with where.
    """
    known = {name.upper() for name in Settings.model_fields}
    found = []
    for name, why in wrong.items():
        told = f"{name} from {given.get(name, 'an option')}: {why}; its default stands in below"
        found.append(Finding("settings", Level.FAIL, told, "See .env.example for what it may be."))
    for name, meant in misspelt(given, known).items():
        fix = f"Rename it to {meant}." if meant else "Correct or remove it; .env.example has all names."
        found.append(Finding("settings", Level.WARN, f"{name} in {given[name]} is no setting and is ignored", fix))
    if any(given.get(name) == str(ENV_FILE) for name in _SECRETS) and ENV_FILE.stat().st_mode & 0o077:
        fix = f"Run: chmod 600 {ENV_FILE}"
        found.append(Finding("settings", Level.WARN, f"others can read {ENV_FILE}, which holds a secret", fix))
    used = sorted(known & set(given))
    where = f"{ENV_FILE.resolve()} found" if ENV_FILE.is_file() else "no .env here"
    if not wrong:
        found.append(Finding("settings", Level.OK, f"{where}; set are {', '.join(used) or 'none, all are defaults'}"))
    return found


def misspelt(names: Iterable[str], known: Iterable[str]) -> dict[str, str | None]:
    """Names that look like a setting's and are none, each with the setting that is meant, where that can be told."""
    settings, found = sorted(known), {}
    for name in sorted(set(names) - set(settings)):
        meant = difflib.get_close_matches(name, settings, 1, cutoff=0.85)
        if meant or name.startswith(_PREFIXES):
            found[name] = meant[0] if meant else None
    return found


def check_wallet(settings: Settings) -> tuple[Finding, str | None]:
    """Where the wallet comes from and its address, or what is wrong with it; never anything of the phrase."""
    try:
        wallet = open_wallet(settings)
    except NeedsHuman as error:
        return Finding("wallet", Level.FAIL, *split(str(error))), None
    checked = ", as ALLORA_WALLET_ADDR says" if settings.allora_wallet_addr else ""
    told = f"{wallet.address}{checked}, from {_origin(settings)}"
    if settings.mnemonic is not None and settings.mnemonic_file is not None:
        fix = "Remove one of the two."
        return Finding("wallet", Level.WARN, f"{told}; MNEMONIC_FILE is set too and is not used", fix), wallet.address
    return Finding("wallet", Level.OK, told), wallet.address


def _origin(settings: Settings) -> str:
    if settings.mnemonic is not None:
        return "MNEMONIC"
    if settings.mnemonic_file is not None:
        return f"{settings.mnemonic_file}, mode {stat.S_IMODE(settings.mnemonic_file.stat().st_mode):04o}"
    if settings.credentials_directory is not None and (settings.credentials_directory / "mnemonic").exists():
        return "the systemd credential mnemonic"
    return "the local network's own file"


def check_disk(name: str, directory: Path, *, vital: bool) -> list[Finding]:
    """Whether a directory can be written and has room. What is not `vital` warns at most.

    `name`: the variable that sets the directory.
    """
    bad = Level.FAIL if vital else Level.WARN
    fix = f"Set {name} to a place that this user can write."
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            return [Finding("disk", bad, f"{name} {directory}: its file system is read-only", fix)]
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
        free = shutil.disk_usage(place).free
    except OSError as error:
        return [Finding("disk", bad, f"{name} {directory} cannot be written: {error.strerror}", fix)]
    told = f"{name} {directory}{'' if place == directory else ' (made when needed)'}: {free / 1e9:.1f} GB free"
    if free >= LITTLE:
        return [Finding("disk", Level.OK, told)]
    return [Finding("disk", bad if free < TOO_LITTLE else Level.WARN, told, "Make room, or choose another disk.")]


def check_ledger(path: Path) -> list[Finding]:
    """Whether the ledger opens and is whole, and what is open in it. Read from a copy: a worker may hold it."""
    try:
        with read_ledger(path) as ledger:
            problems, entries = ledger.problems(), ledger.newest()
    except NoLedger:
        return [Finding("ledger", Level.OK, f"none yet at {path}; the first submission begins it")]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        fix = "Stop the worker and start it again: it sets the file aside and asks the chain."
        return [Finding("ledger", Level.FAIL, f"{path} is damaged: {problems[0]}{more}", fix)]
    still = [entry for entry in entries if entry.row.state in (State.SIGNED, State.DEAD)]
    last = f"; the last is nonce {entries[0].nonce}, {entries[0].row.state}" if entries else ""
    return [Finding("ledger", Level.OK, f"whole, {len(entries)} epochs, {len(still)} of them open{last}")]


def check_services(files: Sequence[Path] | None = None) -> list[Finding]:
    """Whether what an installed service file names is there. `files`: all places where one may be, unless given."""
    installed = [path for path in (usual_places() if files is None else files) if path.is_file()]
    if not installed:
        return [Finding("service", Level.SKIP, "no service file is installed")]
    return [_service(path) for path in installed]


def _service(path: Path) -> Finding:
    try:
        absent = missing(path)
    except NeedsHuman as error:
        return Finding("service", Level.FAIL, f"{path} cannot be read: {split(str(error))[0]}", "Install it again.")
    if absent:
        fix = "Correct the paths in it, then reload the service manager; or run: forecastd service install"
        return Finding("service", Level.FAIL, f"{path} names what is not there: {', '.join(absent)}", fix)
    return Finding("service", Level.OK, f"{path}: the programs and directories it names are there")
