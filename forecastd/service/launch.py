"""What a service manager runs: the program, its working directory, its user and its directories.

Invariant: a setting in `.env` stays in `.env`, where a user can change it. A value from elsewhere (an option, a shell
variable) would be lost to the service, so it goes on the command line.
"""

from __future__ import annotations

import os
import re
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
CREDENTIAL_STORE = Path("/etc/credstore")  # where systemd looks for a credential given without a directory
_HOME_DIRS = (Path("/home"), Path("/root"), Path("/run/user"))
_PLAIN = re.compile(r"[\w@+=:,.~/-]+")
_TEMPORARY_DIRS = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108  # only used in a warning


@dataclass(frozen=True)
class ServiceKind:
    """One of forecastd's services, with its two template files.

    Attributes:
        name: the name of the systemd unit and of the supervisord program.
        arguments: the first arguments of the command line.
        credential: the name of the systemd credential.
        secret_description: what the credential contains.
        setting: the variable that names a file with the same secret.
    """

    name: str
    arguments: tuple[str, ...]
    credential: str
    secret_description: str
    setting: str

    def template_path(self, manager: ServiceManager) -> Path:
        """The template file for a service manager."""
        return PROJECT_ROOT / (f"{self.name}.service" if manager == "systemd" else f"supervisord-{self.name}.conf")

    @property
    def credential_path(self) -> Path:
        """The credential file that the template unit loads."""
        return CREDENTIAL_STORE / f"forecastd.{self.credential}"


DAEMON_SERVICE = ServiceKind("allora-submission", ("--daemon",), "mnemonic", "the wallet's phrase", "MNEMONIC_FILE")
FLEET_SERVICE = ServiceKind(
    "forecastd-fleet", ("fleet", "serve"), "fleet-api-keys", "the API keys", "FLEET_API_KEYS_FILE"
)
SERVICES = (DAEMON_SERVICE, FLEET_SERVICE)


@dataclass(frozen=True)
class ServiceRequest:
    """A user's request for a service file; None selects the default.

    `per_user`: a unit for the user's own manager. `directory`: the working directory, which holds `.env`; relative paths
    start there.
    """

    manager: ServiceManager
    per_user: bool
    directory: Path
    python: Path
    run_as: str | None = None
    credential: Path | None = None
    service: ServiceKind = DAEMON_SERVICE


@dataclass(frozen=True)
class LaunchSpec:
    """What to run. All paths are absolute.

    Invariant: the texts that a service file contains are plain, so that it needs no quotes and no escapes. The managers
    disagree about both.

    Attributes:
        user: the account; None when the manager runs everything as its own user.
        per_user: run by the user's own systemd manager, without root.
        state, logs: the directories it writes to; None when systemd creates its own.
        credential: the file with the wallet's phrase or the API keys, for systemd.
        readable_paths: other files that it must be able to read.
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

    def __post_init__(self) -> None:
        """Raises NeedsHuman when a service file cannot express a path."""
        for text in (*self.command, str(self.directory), *map(str, self.writable_paths), str(self.credential or "")):
            if text and not is_plain(text):
                raise NeedsHuman(
                    f"A service file cannot express {text!a}. Rename it, or use a symbolic link to it: letters, digits and "
                    "the characters . _ - + = @ : , ~ / are allowed."
                )

    @property
    def command(self) -> list[str]:
        """The command line, as a list of arguments."""
        return [str(self.python), str(self.program), *self.service.arguments, *self.options]

    @property
    def writable_paths(self) -> list[Path]:
        """The directories it writes to, except those that systemd creates."""
        return [path for path in (self.state, self.logs) if path is not None]

    @property
    def unmanaged_directories(self) -> dict[str, Path]:
        """The directories that must exist before a unit starts, by the key with which systemd would create its own one.

        A user's own manager creates none, because its directories vary by version.
        """
        choices = {"StateDirectory": (self.state, SYSTEM_STATE_DIR), "LogsDirectory": (self.logs, SYSTEM_LOG_DIR)}
        return {
            key: path
            for key, (path, default) in choices.items()
            if path is not None and (self.per_user or path != default)
        }

    @property
    def required_paths(self) -> list[Path]:
        """All paths that it must be able to access, including the targets of symbolic links."""
        paths = [self.python, self.program, self.directory, *self.readable_paths]
        return sorted({*paths, *(Path(os.path.realpath(path)) for path in paths)})

    @property
    def uses_home(self) -> bool:
        """Whether a required path is below a home directory, which a unit cannot access by default."""
        return any(_is_below_any(path, _HOME_DIRS) for path in [*self.required_paths, *self.writable_paths])


def plan_launch(
    request: ServiceRequest, settings: Settings, account: UnixAccount | None, env_file_names: Collection[str]
) -> LaunchSpec:
    """Build the launch for these settings.

    `account`: the account that runs it; None for the manager's own user. `env_file_names`: the names of the variables that
    `.env` sets.

    Raises:
        NeedsHuman: a path has a character that a service file cannot express.
    """
    base = _absolute(request.directory)
    options: list[str] = []
    directories: list[Path | None] = []
    choices = (("STATE_DIR", settings.files.state_dir), ("LOG_DIR", settings.files.log_dir))
    for (name, setting), default in zip(choices, _default_directories(request, settings, account), strict=True):
        value = setting or default
        directories.append(None if value is None else _absolute(base / value))
        if value is not None and not (setting is not None and name in env_file_names):
            options += [f"--{name.lower().replace('_', '-')}", str(directories[-1])]
    return LaunchSpec(
        python=_absolute(base / request.python),
        program=ENTRY_POINT,
        directory=base,
        options=tuple(options),
        user=None if account is None else account.name,
        per_user=request.per_user,
        state=directories[0],
        logs=directories[1],
        credential=None if request.credential is None else _absolute(base / request.credential),
        readable_paths=tuple(_absolute(base / path) for path in _settings_files(settings, request.service)),
        service=request.service,
    )


def _default_directories(
    request: ServiceRequest, settings: Settings, account: UnixAccount | None
) -> tuple[Path | None, Path | None]:
    """The state and the log directory: the system's for a system service, else those of the settings. None: systemd's."""
    if request.per_user or (request.manager == "supervisord" and account is None):
        return settings.state_path, settings.log_path
    return (None, None) if request.manager == "systemd" else (SYSTEM_STATE_DIR, SYSTEM_LOG_DIR)


def is_plain(text: str) -> bool:
    """Whether every manager reads the text as it is, without quotes and escapes."""
    return _PLAIN.fullmatch(text) is not None


def find_problems(launch: LaunchSpec, manager: ServiceManager, account: UnixAccount | None) -> list[str]:
    """Problems that would prevent the service from working, one sentence each."""
    essential_paths = (launch.python, launch.program, launch.directory)
    problems = [f"{path} does not exist." for path in essential_paths if not os.path.exists(path)]  # noqa: PTH110  # never raises
    if launch.credential is not None and not launch.credential.is_file():
        problems.append(
            f"{launch.credential} does not exist: write {launch.service.secret_description} to it (owner root, mode 0600)."
        )
    if manager == "systemd":
        hidden_paths = [path for path in launch.required_paths if _is_below_any(path, _TEMPORARY_DIRS)]
        problems += [f"The service cannot see {path}: a unit has its own /tmp." for path in hidden_paths]
    if account is None:
        return problems
    closed_directories: dict[Path, Path] = {}
    for path in launch.required_paths:
        closed_directories |= {parent: path for parent in _existing_parents(path) if not account.can_enter(parent)}
    problems += [
        f"{account.name} cannot access {path}: it may not enter {parent}."
        for parent, path in closed_directories.items()
    ]
    env = launch.directory / ENV_FILE
    if env.is_file() and not account.can_read(env):
        problems.append(f"{account.name} cannot read {env}. Run: chown {account.name} {env}")
    return problems


def _settings_files(settings: Settings, service: ServiceKind) -> Iterator[Path]:
    """The files that the settings name, without the directories that the service writes to."""
    fleet, model = settings.fleet, settings.model
    if service is FLEET_SERVICE:
        paths = [fleet.model, fleet.models_dir, fleet.thresholds, fleet.api_keys_file]
    else:
        paths = [model.bundle, model.features, settings.topic.file, settings.wallet.mnemonic_file]
        if settings.source.name.startswith("file:"):
            paths.append(Path(settings.source.name.removeprefix("file:")))
    yield from (path for path in paths if path is not None)


def _absolute(path: Path) -> Path:
    """Remove `..` and double slashes; keep symbolic links, because a virtual environment's Python is one."""
    return Path("/" + os.path.abspath(path).lstrip("/"))  # noqa: PTH100  # Path.absolute keeps `..`


def _is_below_any(path: Path, directories: tuple[Path, ...]) -> bool:
    return any(path.is_relative_to(place) for place in directories)


def _existing_parents(path: Path) -> list[Path]:
    """The existing parent directories of a path, from the root down."""
    return [parent for parent in reversed(path.parents) if os.path.isdir(parent)]  # noqa: PTH112  # never raises
