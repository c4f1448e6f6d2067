"""Service files on disk: where they go, which are ours to replace or remove, and what is in them.

The first line of a file that is written here holds the hash of the rest, so that one which somebody has changed since, or has
put there himself, is told from ours and left alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path
from typing import Literal

from platformdirs import user_config_path

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import write_atomic
from forecastd.runtime.text_file import read_text_file
from forecastd.service import supervisord, systemd
from forecastd.service.launch import DAEMON_SERVICE, SERVICES, FileReferences, LaunchSpec, ServiceKind, ServiceManager

SYSTEM_UNIT_DIR = Path("/etc/systemd/system")
SYSTEMD_RUNTIME_DIR = Path("/run/systemd/system")  # there when systemd is the init system: sd_booted(3)
SUPERVISORD_DIRS = (Path("/etc/supervisor/conf.d"), Path("/etc/supervisord.d"))
_HEADER = '# Written by "forecastd service install", which replaces only what nobody has changed. sha256 of the rest: '
_FIX = "Look at it, and remove it yourself if it is of no use."
FileOwner = Literal["nobody", "ours", "changed", "foreign"]


def default_manager() -> ServiceManager:
    """systemd where it runs this machine, else supervisord."""
    return "systemd" if SYSTEMD_RUNTIME_DIR.is_dir() else "supervisord"


def file_path(
    manager: ServiceManager, *, per_user: bool, directory: Path | None = None, service: ServiceKind = DAEMON_SERVICE
) -> Path:
    """Where the file goes: into `directory`, or where the manager looks for it.

    Raises:
        NeedsHuman: supervisord has none of its usual directories here.
    """
    if manager == "systemd":
        return (directory or (_user_unit_dir() if per_user else SYSTEM_UNIT_DIR)) / f"{service.name}.service"
    target = directory or next((path for path in SUPERVISORD_DIRS if path.is_dir()), None)
    if target is None:
        raise NeedsHuman(
            "supervisord's directory is not in its usual places. Pass --to with the one that its [include] names."
        )
    return target / f"{service.name}{'.ini' if target == SUPERVISORD_DIRS[1] else '.conf'}"


def known_file_paths() -> list[Path]:
    """Every file that may be installed here, by `place` or by hand."""
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
    """The whole file for this launch, with its first line.

    Raises:
        NeedsHuman: a path cannot be expressed, or the file to begin with is not there.
    """
    renderer = systemd if manager == "systemd" else supervisord
    template = read_text_file(
        launch.service.template_path(manager), "The file", "It belongs to forecastd: install that again."
    )
    body = renderer.render(template, launch)
    return f"{_HEADER}{_hash(body)}\n{body}"


def file_owner(path: Path) -> FileOwner:
    """Whose file is there.

    Raises:
        NeedsHuman: it cannot be read.
    """
    if path.is_symlink():
        return "foreign"
    if not path.exists():
        return "nobody"
    header, _, rest = read_text_file(path, "The file", _FIX).partition("\n")
    if not header.startswith(_HEADER):
        return "foreign"
    return "ours" if header.removeprefix(_HEADER) == _hash(rest) else "changed"


def install(path: Path, text: str, *, force: bool) -> None:
    """Write the file, whole or not at all.

    Raises:
        NeedsHuman: another's is there, or it cannot be written.
    """
    if not force:
        _require_own_file(path, file_owner(path), "Pass --force to replace it.")
    write_atomic(path, text.encode(), mode=0o644)


def uninstall(path: Path, *, force: bool) -> list[str]:
    """Remove the file; gives the directories with state and logs that it names.

    Raises:
        NeedsHuman: there is none, it is another's, systemd still has it enabled, or it cannot be removed.
    """
    ownership = file_owner(path)
    if ownership == "nobody":
        raise NeedsHuman(f"{path} is not there. Say with --manager, --user or --to where it was installed.")
    if not force:
        _require_own_file(path, ownership, "Pass --force to remove it.")
    enabled = [link for link in path.parent.glob("*.wants/*") if link.name == path.name]
    if enabled:
        raise NeedsHuman(
            f"{path} is still enabled. First: {' '.join(systemctl_command(path))} disable --now {path.stem}"
        )
    data_directories: list[str] = []
    with contextlib.suppress(NeedsHuman):  # what is removed by force may be anything
        data_directories = _parse_file(read_text_file(path, "The file", _FIX)).data_directories
    try:
        path.unlink()
    except OSError as error:
        raise NeedsHuman(f"{path} cannot be removed: {error.strerror}. Run this as its owner.") from None
    return data_directories


def systemctl_command(path: Path) -> list[str]:
    """How the manager that reads this unit is spoken to."""
    return ["systemctl", "--user"] if path.parent == _user_unit_dir() else ["systemctl"]


def missing_paths(path: Path) -> list[str]:
    """What an installed file names that is not there.

    Raises:
        NeedsHuman: it cannot be read, or is no service file.
    """
    references = _parse_file(read_text_file(path, "The file", _FIX))
    absent_paths = [program for program in references.programs if not os.access(program, os.X_OK)]
    return absent_paths + [
        directory
        for directory in references.directories
        if not os.path.isdir(directory)  # noqa: PTH112  # never raises
    ]  # never raises


def _parse_file(text: str) -> FileReferences:
    try:
        return supervisord.parse_references(text) if "[program:" in text else systemd.parse_references(text)
    except ValueError as error:
        raise NeedsHuman(f"It is no service file: {error}. {_FIX}") from None


def _require_own_file(path: Path, owner: FileOwner, fix: str) -> None:
    if owner == "foreign":
        raise NeedsHuman(f"{path} was not written by `forecastd service install`. {fix}")
    if owner == "changed":
        raise NeedsHuman(f"{path} was changed by hand since it was written. {fix}")


def _user_unit_dir() -> Path:
    return user_config_path("systemd", appauthor=False) / "user"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
