"""A service file before it is written: its text, its place, what to mind, and what to type afterwards."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forecastd.service import accounts, systemd
from forecastd.service.accounts import UnixAccount
from forecastd.service.installed import render_file
from forecastd.service.launch import (
    DAEMON_SERVICE,
    FLEET_SERVICE,
    LaunchSpec,
    ServiceKind,
    ServiceManager,
    find_problems,
    plan_launch,
)
from forecastd.settings import ENV_FILE, Settings

_LOOPBACK_HOSTS = {"127.0.0.1", "::1", "localhost"}
_MANAGER_VARIABLES = {
    "STATE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
}
_NAMESPACE_SWITCHES = {  # what each kernel switch holds when nobody but root may make a user namespace that is good for anything
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "1",
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "0",
    Path("/proc/sys/user/max_user_namespaces"): "0",
}


@dataclass(frozen=True)
class ServiceRequest:
    """What a person asks for; None leaves it to what is usual here.

    `own`: a unit for one's own manager. `directory`: where `.env` is.
    """

    manager: ServiceManager
    per_user: bool
    directory: Path
    python: Path
    run_as: str | None
    credential: Path | None
    service: ServiceKind = DAEMON_SERVICE


@dataclass(frozen=True)
class ServiceDraft:
    """A file that is not written yet. `minds`: what would keep the service from working. `steps`: commands to type next."""

    text: str
    warnings: list[str]
    steps: list[str]


def draft_service(request: ServiceRequest, settings: Settings, sources: Mapping[str, str]) -> ServiceDraft:
    """The file for this wish. `given`: where each variable that is set comes from.

    Raises:
        NeedsHuman: there is no such account, or a path cannot be expressed.
    """
    account = _choose_account(request)
    launch = plan_launch(
        settings,
        request.manager,
        account,
        per_user=request.per_user,
        directory=request.directory,
        python=request.python,
        env_file_names={name for name, source in sources.items() if source == str(ENV_FILE)},
        credential=request.credential,
        service=request.service,
    )
    secret_warnings = _api_key_warnings if request.service is FLEET_SERVICE else _wallet_warnings
    warnings = [
        *find_problems(launch, request.manager, account),
        *_shell_only_warnings(sources, launch),
        *secret_warnings(request, settings, launch),
    ]
    if request.per_user and any(_read_switch(switch) == value for switch, value in _NAMESPACE_SWITCHES.items()):
        warnings.append(
            "This kernel keeps user namespaces from everybody but root, so the unit will end with 226/NAMESPACE. "
            f"Install it for the system: as root, with --run-as {launch.user}."
        )
    if request.service is FLEET_SERVICE and request.manager == "systemd" and settings.fleet_engine == "library":
        warnings.append(
            "The unit allows no memory that is both writable and executable, which FLEET_ENGINE=library needs. Choose "
            "another engine, or type: systemctl edit forecastd-fleet, and write: [Service] MemoryDenyWriteExecute=no"
        )
    return ServiceDraft(render_file(request.manager, launch), warnings, _next_steps(request, launch))


def steps_after_removal(manager: ServiceManager, *, per_user: bool) -> list[str]:
    """What to type once the file is gone."""
    return (
        [f"{_systemctl_command(per_user=per_user)} daemon-reload"] if manager == "systemd" else ["supervisorctl update"]
    )


def _choose_account(request: ServiceRequest) -> UnixAccount | None:
    """Whose service it is. None: supervisord runs it as itself, which is this person."""
    if request.run_as is not None:
        return accounts.find_account(request.run_as)
    account = accounts.current_account()
    if account.uid == 0:
        return accounts.default_account(request.directory)
    return account if request.manager == "systemd" else None


def _shell_only_warnings(sources: Mapping[str, str], launch: LaunchSpec) -> list[str]:
    passed_on = {"STATE_DIR", "LOG_DIR"} | _MANAGER_VARIABLES
    setting_names = {name.upper() for name in Settings.model_fields} - passed_on
    names = sorted(name for name, source in sources.items() if name in setting_names and source != str(ENV_FILE))
    if not names:
        return []
    return [
        f"Set in this shell alone, so not for the service: {', '.join(names)}. Write it into {launch.directory / ENV_FILE}."
    ]


def _wallet_warnings(request: ServiceRequest, settings: Settings, launch: LaunchSpec) -> list[str]:
    if settings.allora_network == "local" or settings.mnemonic or settings.mnemonic_file or launch.credential:
        return []
    return _missing_secret_warnings("No wallet is set", request)


def _api_key_warnings(request: ServiceRequest, settings: Settings, launch: LaunchSpec) -> list[str]:
    if (
        settings.fleet_host in _LOOPBACK_HOSTS
        or settings.fleet_api_keys
        or settings.fleet_api_keys_file
        or launch.credential
    ):
        return []
    return _missing_secret_warnings(
        f"FLEET_HOST is {settings.fleet_host}, and no API key is set, without which it does not start", request
    )


def _missing_secret_warnings(problem: str, request: ServiceRequest) -> list[str]:
    """That a secret is missing, and where it may be put; nothing where systemd has it already."""
    service, problem = request.service, f"{problem}: set {request.service.setting} in .env"
    if request.manager == "supervisord" or request.per_user:
        return [f"{problem}."]
    if os.path.exists(service.credential_path):  # never raises  # noqa: PTH110  # never raises
        return []
    return [f"{problem}, or put {service.secret_description} into {service.credential_path} (owner root, mode 0600)."]


def _next_steps(request: ServiceRequest, launch: LaunchSpec) -> list[str]:
    directories = systemd.writable_directories(launch) if request.manager == "systemd" else launch.writable_paths
    missing = [path for path in directories if not os.path.isdir(path)]  # never raises  # noqa: PTH112  # never raises
    owner = "" if request.per_user or launch.user is None else f" -o {launch.user}"
    steps = [f"install -d{owner} -m 700 {shlex.quote(str(path))}" for path in missing]
    if request.manager == "supervisord":
        return [*steps, "supervisorctl reread", "supervisorctl update"]
    systemctl = _systemctl_command(per_user=request.per_user)
    steps += [f"{systemctl} daemon-reload", f"{systemctl} enable --now {launch.service.name}"]
    return [*steps, "loginctl enable-linger"] if request.per_user else steps


def _systemctl_command(*, per_user: bool) -> str:
    return "systemctl --user" if per_user else "systemctl"


def _read_switch(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
