"""What is to be run: where settings come from decides what goes on the command line, and what would hinder it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forecastd.errors import NeedsHuman
from forecastd.service.accounts import Account, find
from forecastd.service.launch import FLEET, LOGS, PROGRAM, STATE, Launch, Manager, hindrances, plan
from forecastd.settings import Settings, load_settings

WORKER = Account("worker", 1234, frozenset({1234}))
PYTHON = Path("/opt/forecastd/.venv/bin/python")
HERE = Path("/opt/forecastd")


def planned(manager: Manager = "systemd", account: Account | None = WORKER, **more: Any) -> Launch:
    settings = {name: more.pop(name) for name in list(more) if name in Settings.model_fields}
    wanted: dict[str, Any] = {"own": False, "directory": HERE, "python": PYTHON, "in_file": ()} | more
    return plan(load_settings(**settings), manager, account, **wanted)


@pytest.mark.parametrize(
    ("manager", "more", "state", "logs", "options"),
    [
        # Nothing is set: systemd makes its directories, supervisord is told of the same ones.
        ("systemd", {}, None, None, ()),
        ("supervisord", {}, STATE, LOGS, ("--state-dir", str(STATE), "--log-dir", str(LOGS))),
        # What .env has is left to it, relative paths begin at the working directory.
        ("systemd", {"state_dir": "s", "log_dir": "/l", "in_file": ("STATE_DIR", "LOG_DIR")},
         HERE / "s", Path("/l"), ()),
        # An empty line of .env says nothing.
        ("supervisord", {"log_dir": "/l", "in_file": ("STATE_DIR", "LOG_DIR")},
         STATE, Path("/l"), ("--state-dir", str(STATE))),
        # What only this shell knows has to be said.
        ("systemd", {"state_dir": "/s"}, Path("/s"), None, ("--state-dir", "/s")),
        ("supervisord", {"state_dir": "/s", "log_dir": "../l", "in_file": ("LOG_DIR",)},
         Path("/s"), Path("/opt/l"), ("--state-dir", "/s")),
    ],
)  # fmt: skip
def test_state_and_logs_go_where_the_settings_or_the_manager_say(
    manager: Manager, more: dict[str, Any], state: Path | None, logs: Path | None, options: tuple[str, ...]
) -> None:
    found = planned(manager, WORKER, **more)
    assert (found.state, found.logs, found.options) == (state, logs, options)
    assert found.command == [str(PYTHON), str(PROGRAM), "--daemon", *options]
    fleet = planned(manager, service=FLEET, **more)
    assert fleet.command == [str(PYTHON), str(PROGRAM), "fleet", "serve", *options]


@pytest.mark.parametrize(("manager", "account", "own"), [("systemd", WORKER, True), ("supervisord", None, False)])
def test_a_service_of_ones_own_uses_the_directories_that_the_command_uses(
    manager: Manager, account: Account | None, own: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    found = planned(manager, account, own=own)
    assert found.state == tmp_path / "forecastd" == load_settings().state
    assert found.logs == load_settings().logs
    assert found.options == ("--state-dir", str(found.state), "--log-dir", str(found.logs))


@pytest.mark.parametrize("wrong", ["/a\nExecStartPre=/bin/evil", "/a\rb", "/a\x7fb", "/a\x85b", "/a\udcffb", "/a\tb"])
@pytest.mark.parametrize("where", ["directory", "python", "credential", "state_dir", "log_dir"])
def test_what_could_break_out_of_its_line_is_refused(wrong: str, where: str) -> None:
    as_named: dict[str, Any] = {where: Path(wrong)}
    with pytest.raises(NeedsHuman, match="No service file can express"):
        planned(**as_named)


def test_a_python_that_is_a_link_stays_one_and_what_it_leads_to_is_needed_too(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.touch()
    link = tmp_path / "bin" / ".." / "python"
    (tmp_path / "bin").mkdir()
    link.symlink_to(real)
    found = planned(python=link)
    assert found.python == tmp_path / "python"
    assert real in found.needs


@pytest.mark.parametrize(
    ("more", "at_home"),
    [({}, False), ({"directory": Path("/home/a/forecastd")}, True), ({"model": "/home/a/model"}, True),
     ({"mnemonic_file": "/root/phrase"}, True), ({"data_source": "file:/home/a/candles.csv"}, True),
     ({"data_source": "exchange:kraken"}, False), ({"state_dir": "/home/a/state"}, True),
     ({"topics_file": "/homes/t"}, False), ({"fleet_model": "/home/a/bundle"}, False),
     ({"service": FLEET}, False), ({"service": FLEET, "model": "/home/a/model"}, False),
     ({"service": FLEET, "fleet_model": "/home/a/bundle"}, True), ({"service": FLEET, "fleet_thresholds": "/root/t"}, True),
     ({"service": FLEET, "fleet_api_keys_file": "/home/a/keys"}, True)],
)  # fmt: skip
def test_what_lies_in_a_home_is_noticed(more: dict[str, Any], at_home: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forecastd.service.launch.PROGRAM", Path("/opt/forecastd/submit_prediction.py"))
    assert planned(**more).at_home is at_home


def test_what_would_keep_the_service_from_working_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    python = closed / "python"
    python.touch()
    (tmp_path / ".env").touch(mode=0o600)
    stranger = Account("stranger", 2**30, frozenset({2**30}))
    found = planned(directory=tmp_path, python=python, credential=tmp_path / "phrase")
    told = "\n".join(hindrances(found, "systemd", stranger))
    assert f"stranger cannot get to {python}: {closed} is closed to it." in told
    assert f"stranger cannot read {tmp_path}/.env. Run: chown stranger {tmp_path}/.env" in told
    assert f"{tmp_path}/phrase is not there" in told


def test_nothing_is_told_of_what_is_in_order() -> None:
    found = planned(directory=Path("/"), python=Path("/bin/sh"))
    told = hindrances(found, "supervisord", None)
    assert told == []
    missing = planned(directory=Path("/nowhere"), python=Path("/nowhere/python"))
    assert hindrances(missing, "supervisord", None) == ["/nowhere/python is not there.", "/nowhere is not there."]


@pytest.mark.parametrize("place", ["/tmp", "/var/tmp"])  # noqa: S108  # named to be warned of
def test_a_unit_does_not_see_tmp(place: str) -> None:
    told = hindrances(planned(directory=Path(place, "forecastd")), "systemd", None)
    assert f"{place}/forecastd will not be seen: a unit has a /tmp of its own." in told


@pytest.mark.parametrize(
    ("mode", "who", "may"),
    [(0o700, "owner", {"enter", "read"}), (0o077, "owner", set()), (0o070, "group", {"enter", "read"}),
     (0o707, "group", set()), (0o001, "other", {"enter"}), (0o004, "other", {"read"})],
)  # fmt: skip
def test_a_mode_is_read_as_the_kernel_reads_it(tmp_path: Path, mode: int, who: str, may: set[str]) -> None:
    place = tmp_path / "place"
    place.mkdir()
    place.chmod(mode)
    info = place.stat()
    account = Account("a", info.st_uid + (who != "owner"), frozenset({info.st_gid + (who != "group")}))
    allowed = {name for name, ask in (("enter", account.may_enter), ("read", account.may_read)) if ask(place)}
    place.chmod(0o700)
    assert allowed == may


@pytest.mark.parametrize(("name", "told"), [("nobody-of-this-name", "useradd --system"), ("root", "only root may do")])
def test_an_account_that_cannot_serve_is_refused(name: str, told: str) -> None:
    with pytest.raises(NeedsHuman, match=told):
        find(name)
