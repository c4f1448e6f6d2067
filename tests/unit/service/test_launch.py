"""What is to be run: where settings come from decides what goes on the command line, and what would hinder it is told."""

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
    find_problems,
    plan_launch,
)
from forecastd.settings import Settings, load_settings

WORKER = UnixAccount("worker", 1234, frozenset({1234}))
PYTHON = Path("/opt/forecastd/.venv/bin/python")
HERE = Path("/opt/forecastd")


def make_launch(manager: ServiceManager = "systemd", account: UnixAccount | None = WORKER, **more: Any) -> LaunchSpec:
    settings = {name: more.pop(name) for name in list(more) if name in Settings.model_fields}
    wanted: dict[str, Any] = {"own": False, "directory": HERE, "python": PYTHON, "in_file": ()} | more
    return plan_launch(load_settings(**settings), manager, account, **wanted)


@pytest.mark.parametrize(
    ("manager", "more", "state", "logs", "options"),
    [
        # Nothing is set: systemd makes its directories, supervisord is told of the same ones.
        ("systemd", {}, None, None, ()),
        ("supervisord", {}, SYSTEM_STATE_DIR, SYSTEM_LOG_DIR, ("--state-dir", str(SYSTEM_STATE_DIR), "--log-dir", str(SYSTEM_LOG_DIR))),
        # What .env has is left to it, relative paths begin at the working directory.
        ("systemd", {"state_dir": "s", "log_dir": "/l", "in_file": ("STATE_DIR", "LOG_DIR")},
         HERE / "s", Path("/l"), ()),
        # An empty line of .env says nothing.
        ("supervisord", {"log_dir": "/l", "in_file": ("STATE_DIR", "LOG_DIR")},
         SYSTEM_STATE_DIR, Path("/l"), ("--state-dir", str(SYSTEM_STATE_DIR))),
        # What only this shell knows has to be said.
        ("systemd", {"state_dir": "/s"}, Path("/s"), None, ("--state-dir", "/s")),
        ("supervisord", {"state_dir": "/s", "log_dir": "../l", "in_file": ("LOG_DIR",)},
         Path("/s"), Path("/opt/l"), ("--state-dir", "/s")),
    ],
)  # fmt: skip
def test_launch_directories_follow_settings_and_manager(
    manager: ServiceManager, more: dict[str, Any], state: Path | None, logs: Path | None, options: tuple[str, ...]
) -> None:
    launch_spec = make_launch(manager, WORKER, **more)
    assert (launch_spec.state, launch_spec.logs, launch_spec.options) == (state, logs, options)
    assert launch_spec.command == [str(PYTHON), str(ENTRY_POINT), "--daemon", *options]
    fleet = make_launch(manager, service=FLEET_SERVICE, **more)
    assert fleet.command == [str(PYTHON), str(ENTRY_POINT), "fleet", "serve", *options]


@pytest.mark.parametrize(("manager", "account", "own"), [("systemd", WORKER, True), ("supervisord", None, False)])
def test_launch_per_user_uses_the_command_directories(
    manager: ServiceManager, account: UnixAccount | None, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    launch_spec = make_launch(manager, account, own=own)
    assert launch_spec.state == tmp_path / "forecastd" == load_settings().state_path
    assert launch_spec.logs == load_settings().log_path
    assert launch_spec.options == ("--state-dir", str(launch_spec.state), "--log-dir", str(launch_spec.logs))


@pytest.mark.parametrize("wrong", ["/a\nExecStartPre=/bin/evil", "/a\rb", "/a\x7fb", "/a\x85b", "/a\udcffb", "/a\tb"])
@pytest.mark.parametrize("where", ["directory", "python", "credential", "state_dir", "log_dir"])
def test_launch_control_characters_are_refused(wrong: str, where: str) -> None:
    as_named: dict[str, Any] = {where: Path(wrong)}
    with pytest.raises(NeedsHuman, match="No service file can express"):
        make_launch(**as_named)


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
    ("more", "at_home"),
    [({}, False), ({"directory": Path("/home/a/forecastd")}, True), ({"model": "/home/a/model"}, True),
     ({"mnemonic_file": "/root/phrase"}, True), ({"data_source": "file:/home/a/candles.csv"}, True),
     ({"data_source": "exchange:kraken"}, False), ({"state_dir": "/home/a/state"}, True),
     ({"topics_file": "/homes/t"}, False), ({"fleet_model": "/home/a/bundle"}, False),
     ({"service": FLEET_SERVICE}, False), ({"service": FLEET_SERVICE, "model": "/home/a/model"}, False),
     ({"service": FLEET_SERVICE, "fleet_model": "/home/a/bundle"}, True), ({"service": FLEET_SERVICE, "fleet_thresholds": "/root/t"}, True),
     ({"service": FLEET_SERVICE, "fleet_api_keys_file": "/home/a/keys"}, True)],
)  # fmt: skip
def test_launch_paths_below_home_are_detected(
    more: dict[str, Any], at_home: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forecastd.service.launch.ENTRY_POINT", Path("/opt/forecastd/submit_prediction.py"))
    assert make_launch(**more).uses_home is at_home


def test_launch_problems_are_reported(tmp_path: Path) -> None:
    closed_directory = tmp_path / "closed"
    closed_directory.mkdir(mode=0o700)
    python = closed_directory / "python"
    python.touch()
    (tmp_path / ".env").touch(mode=0o600)
    other_account = UnixAccount("stranger", 2**30, frozenset({2**30}))
    launch_spec = make_launch(directory=tmp_path, python=python, credential=tmp_path / "phrase")
    told = "\n".join(find_problems(launch_spec, "systemd", other_account))
    assert f"stranger cannot get to {python}: {closed_directory} is closed to it." in told
    assert f"stranger cannot read {tmp_path}/.env. Run: chown stranger {tmp_path}/.env" in told
    assert f"{tmp_path}/phrase is not there" in told


def test_launch_without_problems_reports_none() -> None:
    launch_spec = make_launch(directory=Path("/"), python=Path("/bin/sh"))
    told = find_problems(launch_spec, "supervisord", None)
    assert told == []
    missing = make_launch(directory=Path("/nowhere"), python=Path("/nowhere/python"))
    assert find_problems(missing, "supervisord", None) == ["/nowhere/python is not there.", "/nowhere is not there."]


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp"])  # named to be warned of  # noqa: S108  # named to be warned of
def test_launch_path_below_tmp_is_reported(place: str) -> None:
    told = find_problems(make_launch(directory=Path(place, "forecastd")), "systemd", None)
    assert f"{place}/forecastd will not be seen: a unit has a /tmp of its own." in told


@pytest.mark.parametrize(
    ("mode", "who", "may"),
    [(0o700, "owner", {"enter", "read"}), (0o077, "owner", set()), (0o070, "group", {"enter", "read"}),
     (0o707, "group", set()), (0o001, "other", {"enter"}), (0o004, "other", {"read"})],
)  # fmt: skip
def test_account_permission_matches_the_kernel(tmp_path: Path, mode: int, who: str, may: set[str]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    info = place.stat()
    account = UnixAccount("a", info.st_uid + (who != "owner"), frozenset({info.st_gid + (who != "group")}))
    allowed = {name for name, ask in (("enter", account.can_enter), ("read", account.can_read)) if ask(place)}
    place.chmod(0o700)
    assert allowed == may


@pytest.mark.parametrize(("name", "told"), [("nobody-of-this-name", "useradd --system"), ("root", "only root may do")])
def test_account_root_or_unknown_is_refused(name: str, told: str) -> None:
    with pytest.raises(NeedsHuman, match=told):
        find_account(name)
