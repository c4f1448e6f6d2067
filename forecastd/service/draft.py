"""Prepare a service file: its text, warnings, and the commands to run after it is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forecastd.runtime.http import is_loopback
from forecastd.service import accounts
from forecastd.service.accounts import UnixAccount
from forecastd.service.installed import render_file
from forecastd.service.launch import (
    FLEET_SERVICE,
    LaunchSpec,
    ServiceManager,
    ServiceRequest,
    find_problems,
    plan_launch,
)
from forecastd.settings import DEFAULTS, ENV_FILE, Settings

_MANAGER_VARIABLES = {
    "STATE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
}
_NAMESPACE_SWITCHES = {  # the values with which the kernel restricts user namespaces to root
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "1",
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "0",
    Path("/proc/sys/user/max_user_namespaces"): "0",
}


@dataclass(frozen=True)
class ServiceDraft:
    """A service file that is not written yet. `warnings`: likely problems. `steps`: commands to run next."""

    text: str
    warnings: list[str]
    steps: list[str]


def draft_service(request: ServiceRequest, settings: Settings, sources: Mapping[str, str]) -> ServiceDraft:
    """Prepare the file for a request. `sources`: the source of each variable that is set.

    Raises:
        NeedsHuman: there is no such account, or a service file cannot express a path.
    """
    account = _choose_account(request)
    env_file_names = {name for name, source in sources.items() if source == str(ENV_FILE)}
    launch = plan_launch(request, settings, account, env_file_names)
    warnings = [
        *find_problems(launch, request.manager, account),
        *_shell_only_warnings(sources, launch),
        *_secret_warnings(request, settings, launch),
    ]
    if request.per_user and any(_read_switch(switch) == value for switch, value in _NAMESPACE_SWITCHES.items()):
        warnings.append(
            "This kernel allows user namespaces to root only, so the unit will fail with 226/NAMESPACE. "
            f"Install it for the system instead: as root, with --run-as {launch.user}."
        )
    if request.service is FLEET_SERVICE and request.manager == "systemd" and settings.fleet.engine == "library":
        warnings.append(
            "The unit forbids memory that is both writable and executable, which FLEET_ENGINE=library requires. Choose "
            "another engine, or run: systemctl edit forecastd-fleet, and add: [Service] MemoryDenyWriteExecute=no"
        )
    return ServiceDraft(render_file(request.manager, launch), warnings, _next_steps(request, launch))


def steps_after_removal(manager: ServiceManager, *, per_user: bool) -> list[str]:
    """The commands to run after the file is removed."""
    return (
        [f"{_systemctl_command(per_user=per_user)} daemon-reload"] if manager == "systemd" else ["supervisorctl update"]
    )


def _choose_account(request: ServiceRequest) -> UnixAccount | None:
    """The account of the service. None: supervisord runs it as its own user."""
    if request.run_as is not None:
        return accounts.find_account(request.run_as)
    account = accounts.current_account()
    if account.uid == 0:
        return accounts.default_account(request.directory)
    return account if request.manager == "systemd" else None


def _shell_only_warnings(sources: Mapping[str, str], launch: LaunchSpec) -> list[str]:
    passed_on = {"STATE_DIR", "LOG_DIR"} | _MANAGER_VARIABLES
    setting_names = set(DEFAULTS) - passed_on
    names = sorted(name for name, source in sources.items() if name in setting_names and source != str(ENV_FILE))
    if not names:
        return []
    return [f"Set only in this shell, not for the service: {', '.join(names)}. Add to {launch.directory / ENV_FILE}."]


def _secret_warnings(request: ServiceRequest, settings: Settings, launch: LaunchSpec) -> list[str]:
    """A warning about a missing wallet or API key, and where to store it; none when systemd's credential exists."""
    service, wallet, fleet = request.service, settings.wallet, settings.fleet
    if service is FLEET_SERVICE:
        problem = f"FLEET_HOST is {fleet.host}, and the fleet does not start there without an API key"
        is_complete = is_loopback(fleet.host) or fleet.api_keys or fleet.api_keys_file
    else:
        problem = "No wallet is set"
        is_complete = settings.chain.network == "local" or wallet.mnemonic or wallet.mnemonic_file
    if is_complete or launch.credential:
        return []
    problem += f": set {service.setting} in .env"
    if request.manager == "supervisord" or request.per_user:
        return [f"{problem}."]
    if os.path.exists(service.credential_path):  # noqa: PTH110  # never raises
        return []
    return [f"{problem}, or write {service.secret_description} to {service.credential_path} (owner root, mode 0600)."]


def _next_steps(request: ServiceRequest, launch: LaunchSpec) -> list[str]:
    directories = list(launch.unmanaged_directories.values()) if request.manager == "systemd" else launch.writable_paths
    missing = [path for path in directories if not os.path.isdir(path)]  # noqa: PTH112  # never raises
    owner = "" if request.per_user or launch.user is None else f" -o {launch.user}"
    steps = [f"install -d{owner} -m 700 {path}" for path in missing]
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
