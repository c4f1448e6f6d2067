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
from forecastd.service.accounts import UnixAccount
from forecastd.settings import ENV_FILE, PROJECT_ROOT, Settings

ServiceManager = Literal["systemd", "supervisord"]
ENTRY_POINT = PROJECT_ROOT / "submit_prediction.py"
SYSTEM_STATE_DIR, SYSTEM_LOG_DIR = Path("/var/lib/forecastd"), Path("/var/log/forecastd")
CREDENTIAL_STORE = Path("/etc/credstore")  # where systemd looks for a credential that is named without its directory
_HOME_DIRS = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY_DIRS = (Path("/tmp"), Path("/var/tmp"))  # named to warn of them  # noqa: S108  # named to warn of them


@dataclass(frozen=True)
class ServiceKind:
    """One of the services that forecastd has, and the two files that ship for it.

    `name`: of its unit and of its program under supervisord. `words`: what its command line begins with. `credential`: what
    systemd hands over to it, by the name that it looks for; `secret` says what that is, `setting` what names it otherwise.
    """

    name: str
    arguments: tuple[str, ...]
    credential: str
    secret_description: str
    setting: str

    def template_path(self, manager: ServiceManager) -> Path:
        """The file that ships."""
        return PROJECT_ROOT / (f"{self.name}.service" if manager == "systemd" else f"supervisord-{self.name}.conf")

    @property
    def credential_path(self) -> Path:
        """The credential that the shipped unit loads."""
        return CREDENTIAL_STORE / f"forecastd.{self.credential}"


DAEMON_SERVICE = ServiceKind("allora-submission", ("--daemon",), "mnemonic", "the wallet's phrase", "MNEMONIC_FILE")
FLEET_SERVICE = ServiceKind(
    "forecastd-fleet", ("fleet", "serve"), "fleet-api-keys", "the API keys", "FLEET_API_KEYS_FILE"
)
SERVICES = (DAEMON_SERVICE, FLEET_SERVICE)


@dataclass(frozen=True)
class LaunchSpec:
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
    per_user: bool
    state: Path | None
    logs: Path | None
    credential: Path | None
    readable_paths: tuple[Path, ...] = ()
    service: ServiceKind = DAEMON_SERVICE

    @property
    def command(self) -> list[str]:
        """The words of the command line."""
        return [str(self.python), str(self.program), *self.service.arguments, *self.options]

    @property
    def writable_paths(self) -> list[Path]:
        """The directories it writes to, beside those that systemd makes."""
        return [path for path in (self.state, self.logs) if path is not None]

    @property
    def required_paths(self) -> list[Path]:
        """Everything it must be able to reach, with what a symbolic link leads to."""
        paths = [self.python, self.program, self.directory, *self.readable_paths]
        return sorted({*paths, *(Path(os.path.realpath(path)) for path in paths)})

    @property
    def uses_home(self) -> bool:
        """Whether something it needs lies below a home, which a unit does not see unless told to."""
        return any(_is_below_any(path, _HOME_DIRS) for path in [*self.required_paths, *self.writable_paths])


@dataclass(frozen=True)
class FileReferences:
    """What a service file names, where it does so in full: the programs it starts, the directories that must be there, and
    those with state and logs."""

    programs: list[str]
    directories: list[str]
    data_directories: list[str]


def plan_launch(
    settings: Settings,
    manager: ServiceManager,
    account: UnixAccount | None,
    *,
    per_user: bool,
    directory: Path,
    python: Path,
    env_file_names: Collection[str],
    credential: Path | None = None,
    service: ServiceKind = DAEMON_SERVICE,
) -> LaunchSpec:
    """The launch for these settings.

    `account`: who runs it, None for the manager's own user. `directory`: where `.env` is and relative paths begin.
    `in_file`: the names of the settings that come from `.env`.

    Raises:
        NeedsHuman: a path has a character that no service file can express.
    """
    base = _absolute(directory)
    options: list[str] = []
    directories: dict[str, Path | None] = {}
    defaults = _default_directories(settings, manager, account, per_user=per_user)
    for name, flag, setting in (
        ("STATE_DIR", "--state-dir", settings.state_dir),
        ("LOG_DIR", "--log-dir", settings.log_dir),
    ):
        value = setting or defaults[name]
        directories[name] = None if value is None else _absolute(base / value)
        if value is not None and not (setting is not None and name in env_file_names):
            options += [flag, str(directories[name])]
    launch = LaunchSpec(
        python=_absolute(base / python),
        program=ENTRY_POINT,
        directory=base,
        options=tuple(options),
        user=None if account is None else account.name,
        per_user=per_user,
        state=directories["STATE_DIR"],
        logs=directories["LOG_DIR"],
        credential=None if credential is None else _absolute(base / credential),
        readable_paths=tuple(_absolute(base / path) for path in _settings_files(settings, service)),
        service=service,
    )
    for text in (*launch.command, str(base), *map(str, launch.writable_paths), str(launch.credential or "")):
        require_printable(text)
    return launch


def _default_directories(
    settings: Settings, manager: ServiceManager, account: UnixAccount | None, *, per_user: bool
) -> dict[str, Path | None]:
    """Where state and logs go when nobody says: to the system's places for a service of the system's, else as ever."""
    if per_user or (manager == "supervisord" and account is None):
        return {"STATE_DIR": settings.state_path, "LOG_DIR": settings.log_path}
    if manager == "systemd":
        return {"STATE_DIR": None, "LOG_DIR": None}
    return {"STATE_DIR": SYSTEM_STATE_DIR, "LOG_DIR": SYSTEM_LOG_DIR}


def require_printable(text: str) -> None:
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


def unescape_percent(value: str) -> str:
    """The text that a value stands for; empty where a specifier, or in supervisord's file an expansion, decides."""
    return "" if "%" in value.replace("%%", "") else value.replace("%%", "%")


def find_problems(launch: LaunchSpec, manager: ServiceManager, account: UnixAccount | None) -> list[str]:
    """What would keep the service from working, as sentences; empty when nothing is seen."""
    essential_paths = (launch.python, launch.program, launch.directory)
    problems = [f"{path} is not there." for path in essential_paths if not os.path.exists(path)]  # never raises  # noqa: PTH110  # never raises
    if launch.credential is not None and not launch.credential.is_file():
        problems.append(
            f"{launch.credential} is not there: put {launch.service.secret_description} into it, owner root, mode 0600."
        )
    if manager == "systemd":
        hidden_paths = [path for path in launch.required_paths if _is_below_any(path, _TEMPORARY_DIRS)]
        problems += [f"{path} will not be seen: a unit has a /tmp of its own." for path in hidden_paths]
    if account is None:
        return problems
    closed_directories: dict[Path, Path] = {}
    for path in launch.required_paths:
        closed_directories |= {parent: path for parent in _existing_parents(path) if not account.can_enter(parent)}
    problems += [
        f"{account.name} cannot get to {path}: {parent} is closed to it." for parent, path in closed_directories.items()
    ]
    env = launch.directory / ENV_FILE
    if env.is_file() and not account.can_read(env):
        problems.append(f"{account.name} cannot read {env}. Run: chown {account.name} {env}")
    return problems


def _settings_files(settings: Settings, service: ServiceKind) -> Iterator[Path]:
    """The files that settings name, beside the directories that are written to."""
    if service is FLEET_SERVICE:
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
    return Path("/" + os.path.abspath(path).lstrip("/"))  # Path.absolute keeps `..`  # noqa: PTH100  # Path.absolute keeps `..`


def _is_below_any(path: Path, directories: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in directories)


def _existing_parents(path: Path) -> list[Path]:
    """The directories that lead to it, as far as they are there."""
    return [parent for parent in reversed(path.parents) if os.path.isdir(parent)]  # never raises  # noqa: PTH112  # never raises
