"""What a person is told with a service file: what to mind, what to type next, and whose service it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forecastd.service import accounts, launch
from forecastd.service import draft as module
from forecastd.service.accounts import Account
from forecastd.service.draft import Draft, Wish, draft, steps_after_removal
from forecastd.service.installed import PROGRAMS, UNITS, place, usual_places
from forecastd.service.launch import FLEET, SERVICES, Manager
from forecastd.settings import load_settings

WORKER = Account("worker", 1234, frozenset({1234}))
ROOT = Account("root", 0, frozenset({0}))


@pytest.fixture(autouse=True)
def a_machine_without_peculiarities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounts, "myself", lambda: WORKER)
    monkeypatch.setattr(accounts, "find", lambda name: Account(name, 999, frozenset({999})))
    monkeypatch.setattr(launch, "CREDENTIALS", tmp_path)
    monkeypatch.setattr(module, "_NAMESPACES", {})


def drafted(given: Mapping[str, str] | None = None, **more: Any) -> Draft:
    names = ("manager", "own", "directory", "python", "run_as", "credential", "service")
    usual: dict[str, Any] = {"manager": "systemd", "own": False, "directory": Path("/"), "python": Path("/bin/sh"),
                             "run_as": None, "credential": None}  # fmt: skip
    wish = Wish(**(usual | {name: value for name, value in more.items() if name in names}))
    return draft(wish, load_settings(**{name: value for name, value in more.items() if name not in names}), given or {})


def told(found: Draft, part: str) -> bool:
    return any(part in mind for mind in found.minds)


@pytest.mark.parametrize(
    ("more", "exists", "missing"),
    [
        ({"allora_network": "local"}, False, False),
        ({"allora_network": "testnet"}, False, True),
        ({"allora_network": "testnet"}, True, False),
        ({"allora_network": "testnet", "own": True}, True, True),
        ({"allora_network": "testnet", "manager": "supervisord"}, True, True),
        ({"allora_network": "testnet", "mnemonic_file": "/phrase"}, False, False),
        ({"allora_network": "testnet", "mnemonic": "a b c"}, False, False),
        ({"allora_network": "testnet", "credential": Path("/phrase")}, False, False),
    ],
)
def test_a_wallet_that_the_service_would_not_find_is_missed(
    more: dict[str, Any], exists: bool, missing: bool, tmp_path: Path
) -> None:
    if exists:
        (tmp_path / "forecastd.mnemonic").touch()
    assert told(drafted(**more), "No wallet is set") is missing


def test_what_only_this_shell_knows_is_named_but_for_what_is_passed_on_or_not_a_persons_to_set() -> None:
    given = dict.fromkeys(("MODEL", "TOPIC_ID", "STATE_DIR", "LOG_DIR", "WATCHDOG_PID", "PATH"), "the environment")
    found = drafted(given | {"SYMBOL": ".env"})
    assert told(found, "not for the service: MODEL, TOPIC_ID. Write it into /.env")
    assert not told(drafted({"SYMBOL": ".env"}), "not for the service")


@pytest.mark.parametrize(("holds", "own", "warned"), [("1", True, True), ("0", True, False), ("1", False, False)])
def test_a_kernel_that_keeps_user_namespaces_to_root_is_told_of(
    holds: str, own: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "switch").write_text(f"{holds}\n")
    monkeypatch.setattr(module, "_NAMESPACES", {tmp_path / "absent": "1", tmp_path / "switch": "1"})
    assert told(drafted(own=own), "226/NAMESPACE") is warned


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        ({}, ["systemctl daemon-reload", "systemctl enable --now allora-submission"]),
        ({"state_dir": "/no state"}, ["install -d -o worker -m 700 '/no state'", "systemctl daemon-reload",
                                      "systemctl enable --now allora-submission"]),
        ({"own": True, "state_dir": "/no/s", "log_dir": "/"},
         ["install -d -m 700 /no/s", "systemctl --user daemon-reload", "systemctl --user enable --now allora-submission",
          "loginctl enable-linger"]),
        ({"manager": "supervisord", "state_dir": "/", "log_dir": "/no/l"},
         ["install -d -m 700 /no/l", "supervisorctl reread", "supervisorctl update"]),
        ({"manager": "supervisord", "state_dir": "/", "log_dir": "/no/l", "run_as": "worker"},
         ["install -d -o worker -m 700 /no/l", "supervisorctl reread", "supervisorctl update"]),
    ],
)  # fmt: skip
def test_the_next_steps_make_what_is_missing_and_start_it(more: dict[str, Any], steps: list[str]) -> None:
    assert drafted(**more).steps == steps


def test_the_fleets_service_bears_its_own_name() -> None:
    assert drafted(service=FLEET).steps[-1] == "systemctl enable --now forecastd-fleet"
    assert "ExecStart=/bin/sh " in drafted(service=FLEET).text
    assert " fleet serve" in drafted(service=FLEET).text
    assert "[program:forecastd-fleet]" in drafted(service=FLEET, manager="supervisord").text


@pytest.mark.parametrize(
    ("more", "exists", "missing"),
    [
        ({}, False, False),
        ({"fleet_host": "::1"}, False, False),
        ({"fleet_host": "0.0.0.0"}, False, True),  # noqa: S104  # what is asked about
        ({"fleet_host": "10.0.0.7"}, True, False),
        ({"fleet_host": "10.0.0.7", "own": True}, True, True),
        ({"fleet_host": "10.0.0.7", "manager": "supervisord"}, True, True),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys": "a-key-that-is-long-enough"}, False, False),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys_file": "/keys"}, False, False),
        ({"fleet_host": "10.0.0.7", "credential": Path("/keys")}, False, False),
    ],
)
def test_keys_that_the_fleet_would_not_start_without_are_missed(
    more: dict[str, Any], exists: bool, missing: bool, tmp_path: Path
) -> None:
    if exists:
        (tmp_path / "forecastd.fleet-api-keys").touch()
    found = drafted(service=FLEET, **more)
    assert told(found, "no API key is set") is missing
    assert not told(found, "No wallet")
    assert not told(drafted(**more), "API key")


@pytest.mark.parametrize(
    ("more", "warned"),
    [({"fleet_engine": "library"}, True), ({"fleet_engine": "stream"}, False), ({}, False),
     ({"fleet_engine": "library", "manager": "supervisord"}, False)],
)  # fmt: skip
def test_an_engine_that_the_unit_would_not_let_run_is_told(more: dict[str, Any], warned: bool) -> None:
    assert told(drafted(service=FLEET, **more), "MemoryDenyWriteExecute=no") is warned


def test_after_a_removal_the_manager_is_told() -> None:
    assert steps_after_removal("systemd", own=False) == ["systemctl daemon-reload"]
    assert steps_after_removal("systemd", own=True) == ["systemctl --user daemon-reload"]
    assert steps_after_removal("supervisord", own=False) == ["supervisorctl update"]


@pytest.mark.parametrize(
    ("me", "manager", "run_as", "user"),
    [(WORKER, "systemd", None, "worker"), (WORKER, "supervisord", None, None), (WORKER, "systemd", "other", "other"),
     (ROOT, "systemd", None, "forecastd"), (ROOT, "supervisord", None, "forecastd"), (ROOT, "supervisord", "other", "other")],
)  # fmt: skip
def test_the_service_is_nobodys_but_a_plain_accounts(
    me: Account, manager: Manager, run_as: str | None, user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "myself", lambda: me)
    text = drafted(manager=manager, run_as=run_as, directory=Path("/")).text  # root's own directory
    key = "User=" if manager == "systemd" else "user="
    assert [line for line in text.splitlines() if line.startswith(key)] == ([f"{key}{user}"] if user else [])


def test_a_file_goes_where_its_manager_looks(tmp_path: Path) -> None:
    found = [
        place("systemd", own=False),
        place("systemd", own=True),
        place("supervisord", own=False, directory=tmp_path),
    ]
    assert found[0] == UNITS / "allora-submission.service"
    assert found[1].parts[-3:] == ("systemd", "user", "allora-submission.service")
    assert found[2] == tmp_path / "allora-submission.conf"
    assert place("systemd", own=False, service=FLEET) == UNITS / "forecastd-fleet.service"
    assert {place("systemd", own=False, service=service) for service in SERVICES} < set(usual_places())
    assert place("supervisord", own=False, directory=PROGRAMS[1]).suffix == ".ini"  # all that its [include] takes there
    assert set(found[:2]) < set(usual_places())
