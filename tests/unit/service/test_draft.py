"""What a person is told with a service file: what to mind, what to type next, and whose service it becomes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forecastd.service import accounts, launch
from forecastd.service import draft as module
from forecastd.service.accounts import UnixAccount
from forecastd.service.draft import ServiceDraft, ServiceRequest, draft_service, steps_after_removal
from forecastd.service.installed import SUPERVISORD_DIRS, SYSTEM_UNIT_DIR, file_path, known_file_paths
from forecastd.service.launch import FLEET_SERVICE, SERVICES, ServiceManager
from forecastd.settings import load_settings

WORKER = UnixAccount("worker", 1234, frozenset({1234}))
ROOT = UnixAccount("root", 0, frozenset({0}))


@pytest.fixture(autouse=True)
def default_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounts, "current_account", lambda: WORKER)
    monkeypatch.setattr(accounts, "find_account", lambda name: UnixAccount(name, 999, frozenset({999})))
    monkeypatch.setattr(launch, "CREDENTIAL_STORE", tmp_path)
    monkeypatch.setattr(module, "_NAMESPACE_SWITCHES", {})


def make_draft(given: Mapping[str, str] | None = None, **more: Any) -> ServiceDraft:
    names = ("manager", "own", "directory", "python", "run_as", "credential", "service")
    usual: dict[str, Any] = {"manager": "systemd", "own": False, "directory": Path("/"), "python": Path("/bin/sh"),
                             "run_as": None, "credential": None}  # fmt: skip
    wish = ServiceRequest(**(usual | {name: value for name, value in more.items() if name in names}))
    return draft_service(
        wish, load_settings(**{name: value for name, value in more.items() if name not in names}), given or {}
    )


def require_warning(found: ServiceDraft, part: str) -> bool:
    return any(part in mind for mind in found.warnings)


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
def test_draft_without_wallet_warns(more: dict[str, Any], exists: bool, missing: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "forecastd.mnemonic").touch()
    assert require_warning(make_draft(**more), "No wallet is set") is missing


def test_draft_shell_only_settings_are_listed() -> None:
    given = dict.fromkeys(("MODEL", "TOPIC_ID", "STATE_DIR", "LOG_DIR", "WATCHDOG_PID", "PATH"), "the environment")
    found = make_draft(given | {"SYMBOL": ".env"})
    assert require_warning(found, "not for the service: MODEL, TOPIC_ID. Write it into /.env")
    assert not require_warning(make_draft({"SYMBOL": ".env"}), "not for the service")


@pytest.mark.parametrize(("holds", "own", "warned"), [("1", True, True), ("0", True, False), ("1", False, False)])
def test_draft_restricted_user_namespaces_warns(
    holds: str, own: bool, warned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "switch").write_text(f"{holds}\n")
    monkeypatch.setattr(module, "_NAMESPACE_SWITCHES", {tmp_path / "absent": "1", tmp_path / "switch": "1"})
    assert require_warning(make_draft(own=own), "226/NAMESPACE") is warned


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
def test_draft_next_steps_create_directories_and_start(more: dict[str, Any], steps: list[str]) -> None:
    assert make_draft(**more).steps == steps


def test_draft_fleet_service_has_its_own_name() -> None:
    assert make_draft(service=FLEET_SERVICE).steps[-1] == "systemctl enable --now forecastd-fleet"
    assert "ExecStart=/bin/sh " in make_draft(service=FLEET_SERVICE).text
    assert " fleet serve" in make_draft(service=FLEET_SERVICE).text
    assert "[program:forecastd-fleet]" in make_draft(service=FLEET_SERVICE, manager="supervisord").text


@pytest.mark.parametrize(
    ("more", "exists", "missing"),
    [
        ({}, False, False),
        ({"fleet_host": "::1"}, False, False),
        ({"fleet_host": "0.0.0.0"}, False, True),  # what is asked about  # noqa: S104  # what is asked about
        ({"fleet_host": "10.0.0.7"}, True, False),
        ({"fleet_host": "10.0.0.7", "own": True}, True, True),
        ({"fleet_host": "10.0.0.7", "manager": "supervisord"}, True, True),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys": "a-key-that-is-long-enough"}, False, False),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys_file": "/keys"}, False, False),
        ({"fleet_host": "10.0.0.7", "credential": Path("/keys")}, False, False),
    ],
)
def test_draft_fleet_without_api_keys_warns(more: dict[str, Any], exists: bool, missing: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "forecastd.fleet-api-keys").touch()
    found = make_draft(service=FLEET_SERVICE, **more)
    assert require_warning(found, "no API key is set") is missing
    assert not require_warning(found, "No wallet")
    assert not require_warning(make_draft(**more), "API key")


@pytest.mark.parametrize(
    ("more", "warned"),
    [({"fleet_engine": "library"}, True), ({"fleet_engine": "stream"}, False), ({}, False),
     ({"fleet_engine": "library", "manager": "supervisord"}, False)],
)  # fmt: skip
def test_draft_fleet_library_engine_warns(more: dict[str, Any], warned: bool) -> None:
    assert require_warning(make_draft(service=FLEET_SERVICE, **more), "MemoryDenyWriteExecute=no") is warned


def test_removal_steps_reload_the_manager() -> None:
    assert steps_after_removal("systemd", per_user=False) == ["systemctl daemon-reload"]
    assert steps_after_removal("systemd", per_user=True) == ["systemctl --user daemon-reload"]
    assert steps_after_removal("supervisord", per_user=False) == ["supervisorctl update"]


@pytest.mark.parametrize(
    ("me", "manager", "run_as", "user"),
    [(WORKER, "systemd", None, "worker"), (WORKER, "supervisord", None, None), (WORKER, "systemd", "other", "other"),
     (ROOT, "systemd", None, "forecastd"), (ROOT, "supervisord", None, "forecastd"), (ROOT, "supervisord", "other", "other")],
)  # fmt: skip
def test_draft_never_runs_as_root(
    me: UnixAccount, manager: ServiceManager, run_as: str | None, user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "current_account", lambda: me)
    text = make_draft(manager=manager, run_as=run_as, directory=Path("/")).text  # root's own directory
    key = "User=" if manager == "systemd" else "user="
    assert [line for line in text.splitlines() if line.startswith(key)] == ([f"{key}{user}"] if user else [])


def test_file_path_is_where_the_manager_looks(tmp_path: Path) -> None:
    found = [
        file_path("systemd", per_user=False),
        file_path("systemd", per_user=True),
        file_path("supervisord", per_user=False, directory=tmp_path),
    ]
    assert found[0] == SYSTEM_UNIT_DIR / "allora-submission.service"
    assert found[1].parts[-3:] == ("systemd", "user", "allora-submission.service")
    assert found[2] == tmp_path / "allora-submission.conf"
    assert file_path("systemd", per_user=False, service=FLEET_SERVICE) == SYSTEM_UNIT_DIR / "forecastd-fleet.service"
    assert {file_path("systemd", per_user=False, service=service) for service in SERVICES} < set(known_file_paths())
    assert (
        file_path("supervisord", per_user=False, directory=SUPERVISORD_DIRS[1]).suffix == ".ini"
    )  # all that its [include] takes there
    assert set(found[:2]) < set(known_file_paths())
