"""Service files on disk: where they are installed, whether they may be replaced, and which paths they contain.

Invariant: a file that a person wrote or changed is never replaced or removed without --force. The first line of every
file that is written here contains the hash of the rest, which detects such files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal

from platformdirs import user_config_path

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import read_text_file, write_atomic
from forecastd.service.launch import DAEMON_SERVICE, SERVICES, LaunchSpec, ServiceKind, ServiceManager
from forecastd.service.template import FileReferences, parse_references, render_template

SYSTEM_UNIT_DIR = Path("/etc/systemd/system")
SYSTEMD_RUNTIME_DIR = Path("/run/systemd/system")  # exists when systemd is the init system: sd_booted(3)
SUPERVISORD_DIRS = (Path("/etc/supervisor/conf.d"), Path("/etc/supervisord.d"))
_HEADER = '# Written by "forecastd service install", which replaces only what nobody has changed. sha256 of the rest: '
_FIX = "Check it, and remove it yourself if you do not need it."
FileOwner = Literal["absent", "ours", "changed", "foreign"]


def default_manager() -> ServiceManager:
    """systemd when it is the init system of this machine, else supervisord."""
    return "systemd" if SYSTEMD_RUNTIME_DIR.is_dir() else "supervisord"


def file_path(
    manager: ServiceManager, *, per_user: bool, directory: Path | None = None, service: ServiceKind = DAEMON_SERVICE
) -> Path:
    """The path to install to: in `directory`, or in the manager's own directory.

    Raises:
        NeedsHuman: none of supervisord's usual directories exists.
    """
    if manager == "systemd":
        return (directory or (_user_unit_dir() if per_user else SYSTEM_UNIT_DIR)) / f"{service.name}.service"
    target = directory or next((path for path in SUPERVISORD_DIRS if path.is_dir()), None)
    if target is None:
        raise NeedsHuman(
            "Cannot find supervisord's directory in its usual places. Pass --to with the directory of its [include] section."
        )
    return target / f"{service.name}{'.ini' if target == SUPERVISORD_DIRS[1] else '.conf'}"


def known_file_paths() -> list[Path]:
    """Every path where a service file may be installed, by `file_path` or by hand."""
    return [
        path
        for service in SERVICES
        for path in (
            SYSTEM_UNIT_DIR / f"{service.name}.service",
            _user_unit_dir() / f"{service.name}.service",
            *(
                file_path("supervisord", per_user=False, directory=directory, service=service)
                for directory in SUPERVISORD_DIRS
            ),
            SUPERVISORD_DIRS[0] / service.template_path("supervisord").name,  # by hand
        )
    ]


def render_file(manager: ServiceManager, launch: LaunchSpec) -> str:
    """The complete file for a launch, including the header line.

    Raises:
        NeedsHuman: the template is missing.
    """
    body = render_template(manager, launch)
    return f"{_HEADER}{_hash(body)}\n{body}"


def file_owner(path: Path) -> FileOwner:
    """Who wrote the file at `path`.

    Raises:
        NeedsHuman: it cannot be read.
    """
    if path.is_symlink():
        return "foreign"
    if not path.exists():
        return "absent"
    header, _, rest = read_text_file(path, "The file", _FIX).partition("\n")
    if not header.startswith(_HEADER):
        return "foreign"
    return "ours" if header.removeprefix(_HEADER) == _hash(rest) else "changed"


def install(path: Path, text: str, *, force: bool) -> None:
    """Write the file atomically.

    Raises:
        NeedsHuman: another file exists there, or the file cannot be written.
    """
    if not force:
        _require_own_file(path, file_owner(path), "Pass --force to replace it.")
    write_atomic(path, text.encode(), mode=0o644)


def uninstall(path: Path, *, force: bool) -> list[str]:
    """Remove the file, and return the directories with state and logs that it names.

    Raises:
        NeedsHuman: the file does not exist, is not ours, is still enabled in systemd, or cannot be removed.
    """
    ownership = file_owner(path)
    if ownership == "absent":
        raise NeedsHuman(f"{path} does not exist. Use --manager, --user or --to to select where it was installed.")
    if not force:
        _require_own_file(path, ownership, "Pass --force to remove it.")
    enabled = [link for link in path.parent.glob("*.wants/*") if link.name == path.name]
    if enabled:
        raise NeedsHuman(
            f"{path} is still enabled. First run: {' '.join(systemctl_command(path))} disable --now {path.stem}"
        )
    data_directories: list[str] = []
    with contextlib.suppress(NeedsHuman):  # with --force the file may contain anything
        data_directories = _parse_file(read_text_file(path, "The file", _FIX)).data_directories
    try:
        path.unlink()
    except OSError as error:
        raise NeedsHuman(f"Cannot remove {path}: {error.strerror}. Run the command as the owner of the file.") from None
    return data_directories


def systemctl_command(path: Path) -> list[str]:
    """The systemctl command for the manager that reads this unit."""
    return ["systemctl", "--user"] if path.parent == _user_unit_dir() else ["systemctl"]


def missing_paths(path: Path) -> list[str]:
    """The paths in an installed file that do not exist.

    Raises:
        NeedsHuman: it cannot be read, or is not a service file.
    """
    references = _parse_file(read_text_file(path, "The file", _FIX))
    absent_paths = [program for program in references.programs if not os.access(program, os.X_OK)]
    return absent_paths + [
        directory
        for directory in references.directories
        if not os.path.isdir(directory)  # noqa: PTH112  # never raises
    ]


def _parse_file(text: str) -> FileReferences:
    try:
        return parse_references(text)
    except ValueError as error:
        raise NeedsHuman(f"It is not a service file: {error}. {_FIX}") from None


def _require_own_file(path: Path, owner: FileOwner, fix: str) -> None:
    if owner == "foreign":
        raise NeedsHuman(f"{path} was not written by `forecastd service install`. {fix}")
    if owner == "changed":
        raise NeedsHuman(f"{path} was changed by hand after it was written. {fix}")


def _user_unit_dir() -> Path:
    return user_config_path("systemd", appauthor=False) / "user"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
