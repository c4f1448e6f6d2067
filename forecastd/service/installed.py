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
from forecastd.service import supervisord, systemd
from forecastd.service.launch import DAEMON, SERVICES, Launch, Manager, Named, Service
from forecastd.textfile import read_text_file
from forecastd.wholefile import write_whole

UNITS = Path("/etc/systemd/system")
RUNNING = Path("/run/systemd/system")  # there when systemd is the init system: sd_booted(3)
PROGRAMS = (Path("/etc/supervisor/conf.d"), Path("/etc/supervisord.d"))
_MARK = '# Written by "forecastd service install", which replaces only what nobody has changed. sha256 of the rest: '
_FIX = "Look at it, and remove it yourself if it is of no use."
Owner = Literal["nobody", "ours", "changed", "foreign"]


def default_manager() -> Manager:
    """systemd where it runs this machine, else supervisord."""
    return "systemd" if RUNNING.is_dir() else "supervisord"


def place(manager: Manager, *, own: bool, directory: Path | None = None, service: Service = DAEMON) -> Path:
    """Where the file goes: into `directory`, or where the manager looks for it.

    Raises:
        NeedsHuman: supervisord has none of its usual directories here.
    """
    if manager == "systemd":
        return (directory or (_own_units() if own else UNITS)) / f"{service.name}.service"
    home = directory or next((path for path in PROGRAMS if path.is_dir()), None)
    if home is None:
        raise NeedsHuman(
            "supervisord's directory is not in its usual places. Pass --to with the one that its [include] names."
        )
    return home / f"{service.name}{'.ini' if home == PROGRAMS[1] else '.conf'}"


def usual_places() -> list[Path]:
    """Every file that may be installed here, by `place` or by hand."""
    return [
        path
        for service in SERVICES
        for path in (
            UNITS / f"{service.name}.service",
            _own_units() / f"{service.name}.service",
            *(place("supervisord", own=False, directory=directory, service=service) for directory in PROGRAMS),
            PROGRAMS[0] / service.template("supervisord").name,  # by hand
        )
    ]


def rendered(manager: Manager, launch: Launch) -> str:
    """The whole file for this launch, with its first line.

    Raises:
        NeedsHuman: a path cannot be expressed, or the file to begin with is not there.
    """
    kind = systemd if manager == "systemd" else supervisord
    template = read_text_file(
        launch.service.template(manager), "The file", "It belongs to forecastd: install that again."
    )
    body = kind.render(template, launch)
    return f"{_MARK}{_hash(body)}\n{body}"


def owner(path: Path) -> Owner:
    """Whose file is there.

    Raises:
        NeedsHuman: it cannot be read.
    """
    if path.is_symlink():
        return "foreign"
    if not path.exists():
        return "nobody"
    first, _, rest = read_text_file(path, "The file", _FIX).partition("\n")
    if not first.startswith(_MARK):
        return "foreign"
    return "ours" if first.removeprefix(_MARK) == _hash(rest) else "changed"


def install(path: Path, text: str, *, force: bool) -> None:
    """Write the file, whole or not at all.

    Raises:
        NeedsHuman: another's is there, or it cannot be written.
    """
    if not force:
        _require_ours(path, owner(path), "Pass --force to replace it.")
    write_whole(path, text.encode(), mode=0o644)


def uninstall(path: Path, *, force: bool) -> list[str]:
    """Remove the file; gives the directories with state and logs that it names.

    Raises:
        NeedsHuman: there is none, it is another's, systemd still has it enabled, or it cannot be removed.
    """
    whose = owner(path)
    if whose == "nobody":
        raise NeedsHuman(f"{path} is not there. Say with --manager, --user or --to where it was installed.")
    if not force:
        _require_ours(path, whose, "Pass --force to remove it.")
    enabled = [link for link in path.parent.glob("*.wants/*") if link.name == path.name]
    if enabled:
        raise NeedsHuman(f"{path} is still enabled. First: {' '.join(systemctl(path))} disable --now {path.stem}")
    kept: list[str] = []
    with contextlib.suppress(NeedsHuman):  # what is removed by force may be anything
        kept = _named(read_text_file(path, "The file", _FIX)).kept
    try:
        path.unlink()
    except OSError as error:
        raise NeedsHuman(f"{path} cannot be removed: {error.strerror}. Run this as its owner.") from None
    return kept


def systemctl(path: Path) -> list[str]:
    """How the manager that reads this unit is spoken to."""
    return ["systemctl", "--user"] if path.parent == _own_units() else ["systemctl"]


def missing(path: Path) -> list[str]:
    """What an installed file names that is not there.

    Raises:
        NeedsHuman: it cannot be read, or is no service file.
    """
    found = _named(read_text_file(path, "The file", _FIX))
    absent = [program for program in found.programs if not os.access(program, os.X_OK)]
    return absent + [directory for directory in found.directories if not os.path.isdir(directory)]  # noqa: PTH112  # never raises


def _named(text: str) -> Named:
    try:
        return supervisord.named(text) if "[program:" in text else systemd.named(text)
    except ValueError as error:
        raise NeedsHuman(f"It is no service file: {error}. {_FIX}") from None


def _require_ours(path: Path, whose: Owner, fix: str) -> None:
    if whose == "foreign":
        raise NeedsHuman(f"{path} was not written by `forecastd service install`. {fix}")
    if whose == "changed":
        raise NeedsHuman(f"{path} was changed by hand since it was written. {fix}")


def _own_units() -> Path:
    return user_config_path("systemd", appauthor=False) / "user"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
