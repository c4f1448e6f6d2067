"""Launches: the source of a setting decides whether it goes on the command line, and problems are reported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forecastd.errors import NeedsHuman
from forecastd.service.accounts import UnixAccount, find_account
from forecastd.service.launch import (
    ENTRY_POINT,
    FLEET_SERVICE,
    SYSTEM_LOG_DIR,
    SYSTEM_STATE_DIR,
    LaunchSpec,
    ServiceManager,
    ServiceRequest,
    find_problems,
    plan_launch,
)
from forecastd.settings import DEFAULTS, load_settings

WORKER = UnixAccount("worker", 1234, frozenset({1234}))
PYTHON = Path("/opt/forecastd/.venv/bin/python")
DIRECTORY = Path("/opt/forecastd")


def make_launch(
    manager: ServiceManager = "systemd", account: UnixAccount | None = WORKER, **overrides: Any
) -> LaunchSpec:
    settings = {name: overrides.pop(name) for name in list(overrides) if name.upper() in DEFAULTS}
    env_file_names = overrides.pop("env_file_names", ())
    parts: dict[str, Any] = {"per_user": False, "directory": DIRECTORY, "python": PYTHON} | overrides
    return plan_launch(ServiceRequest(manager, **parts), load_settings(**settings), account, env_file_names)


@pytest.mark.parametrize(
    ("manager", "overrides", "state", "logs", "options"),
    [
        # Nothing is set: systemd creates its directories; supervisord gets the same ones as options.
        ("systemd", {}, None, None, ()),
        ("supervisord", {}, SYSTEM_STATE_DIR, SYSTEM_LOG_DIR,
         ("--state-dir", str(SYSTEM_STATE_DIR), "--log-dir", str(SYSTEM_LOG_DIR))),
        # A value in .env stays there; relative paths start at the working directory.
        ("systemd", {"state_dir": "s", "log_dir": "/l", "env_file_names": ("STATE_DIR", "LOG_DIR")},
         DIRECTORY / "s", Path("/l"), ()),
        # An empty value in .env counts as not set.
        ("supervisord", {"log_dir": "/l", "env_file_names": ("STATE_DIR", "LOG_DIR")},
         SYSTEM_STATE_DIR, Path("/l"), ("--state-dir", str(SYSTEM_STATE_DIR))),
        # A value from the shell goes on the command line.
        ("systemd", {"state_dir": "/s"}, Path("/s"), None, ("--state-dir", "/s")),
        ("supervisord", {"state_dir": "/s", "log_dir": "../l", "env_file_names": ("LOG_DIR",)},
         Path("/s"), Path("/opt/l"), ("--state-dir", "/s")),
    ],
)  # fmt: skip
def test_launch_directories_follow_settings_and_manager(
    manager: ServiceManager, overrides: dict[str, Any], state: Path | None, logs: Path | None, options: tuple[str, ...]
) -> None:
    launch_spec = make_launch(manager, WORKER, **overrides)
    assert (launch_spec.state, launch_spec.logs, launch_spec.options) == (state, logs, options)
    assert launch_spec.command == [str(PYTHON), str(ENTRY_POINT), "--daemon", *options]
    fleet = make_launch(manager, service=FLEET_SERVICE, **overrides)
    assert fleet.command == [str(PYTHON), str(ENTRY_POINT), "fleet", "serve", *options]


@pytest.mark.parametrize(("manager", "account", "per_user"), [("systemd", WORKER, True), ("supervisord", None, False)])
def test_launch_per_user_uses_the_command_directories(
    manager: ServiceManager,
    account: UnixAccount | None,
    per_user: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    launch_spec = make_launch(manager, account, per_user=per_user)
    assert launch_spec.state == tmp_path / "forecastd" == load_settings().state_path
    assert launch_spec.logs == load_settings().log_path
    assert launch_spec.options == ("--state-dir", str(launch_spec.state), "--log-dir", str(launch_spec.logs))


@pytest.mark.parametrize("invalid", ["/a\nExecStartPre=/bin/evil", "/a\rb", "/a\x7fb", "/a\x85b", "/a\udcffb", "/a\tb"])
@pytest.mark.parametrize("where", ["directory", "python", "credential", "state_dir", "log_dir"])
def test_launch_control_characters_are_refused(invalid: str, where: str) -> None:
    paths: dict[str, Any] = {where: Path(invalid)}
    with pytest.raises(NeedsHuman, match="A service file cannot express"):
        make_launch(**paths)


def test_launch_python_link_is_kept_and_target_required(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.touch()
    link = tmp_path / "bin" / ".." / "python"
    (tmp_path / "bin").mkdir()
    link.symlink_to(real)
    launch_spec = make_launch(python=link)
    assert launch_spec.python == tmp_path / "python"
    assert real in launch_spec.required_paths


@pytest.mark.parametrize(
    ("overrides", "uses_home"),
    [({}, False), ({"directory": Path("/home/a/forecastd")}, True), ({"model": "/home/a/model"}, True),
     ({"mnemonic_file": "/root/phrase"}, True), ({"data_source": "file:/home/a/candles.csv"}, True),
     ({"data_source": "exchange:kraken"}, False), ({"state_dir": "/home/a/state"}, True),
     ({"topics_file": "/homes/t"}, False), ({"fleet_model": "/home/a/bundle"}, False),
     ({"service": FLEET_SERVICE}, False), ({"service": FLEET_SERVICE, "model": "/home/a/model"}, False),
     ({"service": FLEET_SERVICE, "fleet_model": "/home/a/bundle"}, True),
     ({"service": FLEET_SERVICE, "fleet_thresholds": "/root/t"}, True),
     ({"service": FLEET_SERVICE, "fleet_api_keys_file": "/home/a/keys"}, True)],
)  # fmt: skip
def test_launch_paths_below_home_are_detected(
    overrides: dict[str, Any], uses_home: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forecastd.service.launch.ENTRY_POINT", Path("/opt/forecastd/submit_prediction.py"))
    assert make_launch(**overrides).uses_home is uses_home


def test_launch_problems_are_reported(tmp_path: Path) -> None:
    closed_directory = tmp_path / "closed"
    closed_directory.mkdir(mode=0o700)
    python = closed_directory / "python"
    python.touch()
    (tmp_path / ".env").touch(mode=0o600)
    other_account = UnixAccount("stranger", 2**30, frozenset({2**30}))
    launch_spec = make_launch(directory=tmp_path, python=python, credential=tmp_path / "phrase")
    problems = "\n".join(find_problems(launch_spec, "systemd", other_account))
    assert f"stranger cannot access {python}: it may not enter {closed_directory}." in problems
    assert f"stranger cannot read {tmp_path}/.env. Run: chown stranger {tmp_path}/.env" in problems
    assert f"{tmp_path}/phrase does not exist" in problems


def test_launch_without_problems_reports_none() -> None:
    launch_spec = make_launch(directory=Path("/"), python=Path("/bin/sh"))
    problems = find_problems(launch_spec, "supervisord", None)
    assert problems == []
    missing = make_launch(directory=Path("/nowhere"), python=Path("/nowhere/python"))
    assert find_problems(missing, "supervisord", None) == [
        "/nowhere/python does not exist.",
        "/nowhere does not exist.",
    ]


@pytest.mark.parametrize("directory", ["/tmp", "/var/tmp"])  # noqa: S108  # only used in a warning
def test_launch_path_below_tmp_is_reported(directory: str) -> None:
    problems = find_problems(make_launch(directory=Path(directory, "forecastd")), "systemd", None)
    assert f"The service cannot see {directory}/forecastd: a unit has its own /tmp." in problems


@pytest.mark.parametrize(
    ("mode", "who", "may"),
    [(0o700, "owner", {"enter", "read"}), (0o077, "owner", set()), (0o070, "group", {"enter", "read"}),
     (0o707, "group", set()), (0o001, "other", {"enter"}), (0o004, "other", {"read"})],
)  # fmt: skip
def test_account_permission_matches_the_kernel(tmp_path: Path, mode: int, who: str, may: set[str]) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    directory.chmod(mode)
    info = directory.stat()
    account = UnixAccount("a", info.st_uid + (who != "owner"), frozenset({info.st_gid + (who != "group")}))
    allowed = {name for name, check in (("enter", account.can_enter), ("read", account.can_read)) if check(directory)}
    directory.chmod(0o700)
    assert allowed == may


@pytest.mark.parametrize(
    ("name", "message"), [("nobody-of-this-name", "useradd --system"), ("root", "does not need root")]
)
def test_account_root_or_unknown_is_refused(name: str, message: str) -> None:
    with pytest.raises(NeedsHuman, match=message):
        find_account(name)
