"""What a service manager is to run: which program, where, as whom, with which directories.

The one thing to know before changing it: a setting that `.env` has is left to `.env`, so that it can be changed there; what
was given otherwise (an option, a variable of the shell) would be lost to the service and goes on its command line.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forecastd.errors import NeedsHuman
from forecastd.service.accounts import Account
from forecastd.settings import CHECKOUT, ENV_FILE, Settings

Manager = Literal["systemd", "supervisord"]
PROGRAM = CHECKOUT / "submit_prediction.py"
STATE, LOGS = Path("/var/lib/forecastd"), Path("/var/log/forecastd")
CREDENTIALS = Path("/etc/credstore")  # where systemd looks for a credential that is named without its directory
_HOMES = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  # named to warn of them


@dataclass(frozen=True)
class Service:
    """One of the services that forecastd has, and the two files that ship for it.

    `name`: of its unit and of its program under supervisord. `words`: what its command line begins with. `credential`: what
    systemd hands over to it, by the name that it looks for; `secret` says what that is, `setting` what names it otherwise.
    """

    name: str
    words: tuple[str, ...]
    credential: str
    secret: str
    setting: str

    def template(self, manager: Manager) -> Path:
        """The file that ships."""
        return CHECKOUT / (f"{self.name}.service" if manager == "systemd" else f"supervisord-{self.name}.conf")

    @property
    def stored(self) -> Path:
        """The credential that the shipped unit loads."""
        return CREDENTIALS / f"forecastd.{self.credential}"


DAEMON = Service("allora-submission", ("--daemon",), "mnemonic", "the wallet's phrase", "MNEMONIC_FILE")
FLEET = Service("forecastd-fleet", ("fleet", "serve"), "fleet-api-keys", "the API keys", "FLEET_API_KEYS_FILE")
SERVICES = (DAEMON, FLEET)


@dataclass(frozen=True)
class Launch:
    """What is to be run. All paths are absolute.

    `user`: None where the manager runs everything as its own user. `own`: by the user's own manager, without root.
    `state`, `logs`: where it writes; None where systemd's own directories serve. `credential`: the file with the phrase or
    the keys, for systemd. `reads`: what else it must be able to read.
    """

    python: Path
    program: Path
    directory: Path
    options: tuple[str, ...]
    user: str | None
    own: bool
    state: Path | None
    logs: Path | None
    credential: Path | None
    reads: tuple[Path, ...] = ()
    service: Service = DAEMON

    @property
    def command(self) -> list[str]:
        """The words of the command line."""
        return [str(self.python), str(self.program), *self.service.words, *self.options]

    @property
    def writes(self) -> list[Path]:
        """The directories it writes to, beside those that systemd makes."""
        return [path for path in (self.state, self.logs) if path is not None]

    @property
    def needs(self) -> list[Path]:
        """Everything it must be able to reach, with what a symbolic link leads to."""
        named = [self.python, self.program, self.directory, *self.reads]
        return sorted({*named, *(Path(os.path.realpath(path)) for path in named)})

    @property
    def at_home(self) -> bool:
        """Whether something it needs lies below a home, which a unit does not see unless told to."""
        return any(_below(path, _HOMES) for path in [*self.needs, *self.writes])


@dataclass(frozen=True)
class Named:
    """What a service file names, where it does so in full: the programs it starts, the directories that must be there, and
    those with state and logs."""

    programs: list[str]
    directories: list[str]
    kept: list[str]


def plan(
    settings: Settings,
    manager: Manager,
    account: Account | None,
    *,
    own: bool,
    directory: Path,
    python: Path,
    in_file: Collection[str],
    credential: Path | None = None,
    service: Service = DAEMON,
) -> Launch:
    """The launch for these settings.

    `account`: who runs it, None for the manager's own user. `directory`: where `.env` is and relative paths begin.
    `in_file`: the names of the settings that come from `.env`.

    Raises:
        NeedsHuman: a path has a character that no service file can express.
    """
    base = _absolute(directory)
    options: list[str] = []
    places: dict[str, Path | None] = {}
    by_default = _defaults(settings, manager, account, own=own)
    for name, flag, given in (
        ("STATE_DIR", "--state-dir", settings.state_dir),
        ("LOG_DIR", "--log-dir", settings.log_dir),
    ):
        chosen = given or by_default[name]
        places[name] = None if chosen is None else _absolute(base / chosen)
        if chosen is not None and not (given is not None and name in in_file):
            options += [flag, str(places[name])]
    found = Launch(
        python=_absolute(base / python),
        program=PROGRAM,
        directory=base,
        options=tuple(options),
        user=None if account is None else account.name,
        own=own,
        state=places["STATE_DIR"],
        logs=places["LOG_DIR"],
        credential=None if credential is None else _absolute(base / credential),
        reads=tuple(_absolute(base / path) for path in _named(settings, service)),
        service=service,
    )
    for text in (*found.command, str(base), *map(str, found.writes), str(found.credential or "")):
        require_expressible(text)
    return found


def _defaults(settings: Settings, manager: Manager, account: Account | None, *, own: bool) -> dict[str, Path | None]:
    """Where state and logs go when nobody says: to the system's places for a service of the system's, else as ever."""
    if own or (manager == "supervisord" and account is None):
        return {"STATE_DIR": settings.state, "LOG_DIR": settings.logs}
    if manager == "systemd":
        return {"STATE_DIR": None, "LOG_DIR": None}
    return {"STATE_DIR": STATE, "LOG_DIR": LOGS}


def require_expressible(text: str) -> None:
    """Refuse what would break out of its line, and what is no text.

    Raises:
        NeedsHuman: it holds a control character (a line break is one), or bytes that are not UTF-8.
    """
    if any(
        ord(character) < 32 or 127 <= ord(character) < 160 or "\ud800" <= character <= "\udfff" for character in text
    ):
        raise NeedsHuman(
            f"No service file can express {text!a}: it has a line break, another control character, or bytes that are "
            "not UTF-8. Rename it."
        )


def literal(value: str) -> str:
    """The text that a value stands for; empty where a specifier, or in supervisord's file an expansion, decides."""
    return "" if "%" in value.replace("%%", "") else value.replace("%%", "%")


def hindrances(launch: Launch, manager: Manager, account: Account | None) -> list[str]:
    """What would keep the service from working, as sentences; empty when nothing is seen."""
    vital = (launch.python, launch.program, launch.directory)
    found = [f"{path} is not there." for path in vital if not os.path.exists(path)]  # noqa: PTH110  # never raises
    if launch.credential is not None and not launch.credential.is_file():
        found.append(f"{launch.credential} is not there: put {launch.service.secret} into it, owner root, mode 0600.")
    if manager == "systemd":
        hidden = [path for path in launch.needs if _below(path, _TEMPORARY)]
        found += [f"{path} will not be seen: a unit has a /tmp of its own." for path in hidden]
    if account is None:
        return found
    closed: dict[Path, Path] = {}
    for path in launch.needs:
        closed |= {parent: path for parent in _way(path) if not account.may_enter(parent)}
    found += [f"{account.name} cannot get to {path}: {parent} is closed to it." for parent, path in closed.items()]
    env = launch.directory / ENV_FILE
    if env.is_file() and not account.may_read(env):
        found.append(f"{account.name} cannot read {env}. Run: chown {account.name} {env}")
    return found


def _named(settings: Settings, service: Service) -> Iterator[Path]:
    """The files that settings name, beside the directories that are written to."""
    if service is FLEET:
        fleet = (
            settings.fleet_model,
            settings.fleet_models_dir,
            settings.fleet_thresholds,
            settings.fleet_api_keys_file,
        )
        yield from (path for path in fleet if path is not None)
        return
    if settings.data_source.startswith("file:"):
        yield Path(settings.data_source.removeprefix("file:"))
    for path in (settings.model, settings.features, settings.topics_file, settings.mnemonic_file):
        if path is not None:
            yield path


def _absolute(path: Path) -> Path:
    """Without `..` and doubled slashes; symbolic links stay: a virtual environment's Python is one."""
    return Path("/" + os.path.abspath(path).lstrip("/"))  # noqa: PTH100  # Path.absolute keeps `..`


def _below(path: Path, places: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def _way(path: Path) -> list[Path]:
    """The directories that lead to it, as far as they are there."""
    return [parent for parent in reversed(path.parents) if os.path.isdir(parent)]  # noqa: PTH112  # never raises
