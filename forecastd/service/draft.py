"""A service file before it is written: its text, its place, what to mind, and what to type afterwards."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from forecastd.service import accounts, systemd
from forecastd.service.accounts import Account
from forecastd.service.installed import rendered
from forecastd.service.launch import DAEMON, FLEET, Launch, Manager, Service, hindrances, plan
from forecastd.settings import ENV_FILE, Settings

_THIS_MACHINE = {"127.0.0.1", "::1", "localhost"}
_BY_MANAGER = {
    "STATE_DIRECTORY",
    "LOGS_DIRECTORY",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
}
_NAMESPACES = {  # what each kernel switch holds when nobody but root may make a user namespace that is good for anything
    Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns"): "1",
    Path("/proc/sys/kernel/unprivileged_userns_clone"): "0",
    Path("/proc/sys/user/max_user_namespaces"): "0",
}


@dataclass(frozen=True)
class Wish:
    """What a person asks for; None leaves it to what is usual here.

    `own`: a unit for one's own manager. `directory`: where `.env` is.
    """

    manager: Manager
    own: bool
    directory: Path
    python: Path
    run_as: str | None
    credential: Path | None
    service: Service = DAEMON


@dataclass(frozen=True)
class Draft:
    """A file that is not written yet. `minds`: what would keep the service from working. `steps`: commands to type next."""

    text: str
    minds: list[str]
    steps: list[str]


def draft(wish: Wish, settings: Settings, given: Mapping[str, str]) -> Draft:
    """The file for this wish. `given`: where each variable that is set comes from.

    Raises:
        NeedsHuman: there is no such account, or a path cannot be expressed.
    """
    account = _account(wish)
    launch = plan(
        settings,
        wish.manager,
        account,
        own=wish.own,
        directory=wish.directory,
        python=wish.python,
        in_file={name for name, where in given.items() if where == str(ENV_FILE)},
        credential=wish.credential,
        service=wish.service,
    )
    secret = _keys if wish.service is FLEET else _wallet
    minds = [*hindrances(launch, wish.manager, account), *_unseen(given, launch), *secret(wish, settings, launch)]
    if wish.own and any(_content(switch) == value for switch, value in _NAMESPACES.items()):
        minds.append(
            "This kernel keeps user namespaces from everybody but root, so the unit will end with 226/NAMESPACE. "
            f"Install it for the system: as root, with --run-as {launch.user}."
        )
    if wish.service is FLEET and wish.manager == "systemd" and settings.fleet_engine == "library":
        minds.append(
            "The unit allows no memory that is both writable and executable, which FLEET_ENGINE=library needs. Choose "
            "another engine, or type: systemctl edit forecastd-fleet, and write: [Service] MemoryDenyWriteExecute=no"
        )
    return Draft(rendered(wish.manager, launch), minds, _steps(wish, launch))


def steps_after_removal(manager: Manager, *, own: bool) -> list[str]:
    """What to type once the file is gone."""
    return [f"{_systemctl(own=own)} daemon-reload"] if manager == "systemd" else ["supervisorctl update"]


def _account(wish: Wish) -> Account | None:
    """Whose service it is. None: supervisord runs it as itself, which is this person."""
    if wish.run_as is not None:
        return accounts.find(wish.run_as)
    me = accounts.myself()
    if me.uid == 0:
        return accounts.usual(wish.directory)
    return me if wish.manager == "systemd" else None


def _unseen(given: Mapping[str, str], launch: Launch) -> list[str]:
    told = {"STATE_DIR", "LOG_DIR"} | _BY_MANAGER
    known = {name.upper() for name in Settings.model_fields} - told
    names = sorted(name for name, where in given.items() if name in known and where != str(ENV_FILE))
    if not names:
        return []
    return [
        f"Set in this shell alone, so not for the service: {', '.join(names)}. Write it into {launch.directory / ENV_FILE}."
    ]


def _wallet(wish: Wish, settings: Settings, launch: Launch) -> list[str]:
    if settings.allora_network == "local" or settings.mnemonic or settings.mnemonic_file or launch.credential:
        return []
    return _secret("No wallet is set", wish)


def _keys(wish: Wish, settings: Settings, launch: Launch) -> list[str]:
    if (
        settings.fleet_host in _THIS_MACHINE
        or settings.fleet_api_keys
        or settings.fleet_api_keys_file
        or launch.credential
    ):
        return []
    return _secret(f"FLEET_HOST is {settings.fleet_host}, and no API key is set, without which it does not start", wish)


def _secret(told: str, wish: Wish) -> list[str]:
    """That a secret is missing, and where it may be put; nothing where systemd has it already."""
    service, told = wish.service, f"{told}: set {wish.service.setting} in .env"
    if wish.manager == "supervisord" or wish.own:
        return [f"{told}."]
    if os.path.exists(service.stored):  # noqa: PTH110  # never raises
        return []
    return [f"{told}, or put {service.secret} into {service.stored} (owner root, mode 0600)."]


def _steps(wish: Wish, launch: Launch) -> list[str]:
    wanted = systemd.writable(launch) if wish.manager == "systemd" else launch.writes
    absent = [path for path in wanted if not os.path.isdir(path)]  # noqa: PTH112  # never raises
    owner = "" if wish.own or launch.user is None else f" -o {launch.user}"
    steps = [f"install -d{owner} -m 700 {shlex.quote(str(path))}" for path in absent]
    if wish.manager == "supervisord":
        return [*steps, "supervisorctl reread", "supervisorctl update"]
    call = _systemctl(own=wish.own)
    steps += [f"{call} daemon-reload", f"{call} enable --now {launch.service.name}"]
    return [*steps, "loginctl enable-linger"] if wish.own else steps


def _systemctl(*, own: bool) -> str:
    return "systemctl --user" if own else "systemctl"


def _content(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""
