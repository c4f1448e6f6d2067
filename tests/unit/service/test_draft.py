"""Service drafts: their warnings, the commands to run next, and the account of the service."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from forecastd.service import accounts, launch
from forecastd.service import draft as module
from forecastd.service.accounts import UnixAccount
from forecastd.service.draft import ServiceDraft, draft_service, steps_after_removal
from forecastd.service.installed import SUPERVISORD_DIRS, SYSTEM_UNIT_DIR, file_path, known_file_paths
from forecastd.service.launch import FLEET_SERVICE, SERVICES, ServiceManager, ServiceRequest
from forecastd.settings import load_settings

WORKER = UnixAccount("worker", 1234, frozenset({1234}))
ROOT = UnixAccount("root", 0, frozenset({0}))


@pytest.fixture(autouse=True)
def default_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(accounts, "current_account", lambda: WORKER)
    monkeypatch.setattr(accounts, "find_account", lambda name: UnixAccount(name, 999, frozenset({999})))
    monkeypatch.setattr(launch, "CREDENTIAL_STORE", tmp_path)
    monkeypatch.setattr(module, "_NAMESPACE_SWITCHES", {})


def make_draft(sources: Mapping[str, str] | None = None, **options: Any) -> ServiceDraft:
    names = ("manager", "per_user", "directory", "python", "run_as", "credential", "service")
    defaults: dict[str, Any] = {"manager": "systemd", "per_user": False, "directory": Path("/"), "python": Path("/bin/sh"),
                             "run_as": None, "credential": None}  # fmt: skip
    request = ServiceRequest(**(defaults | {name: value for name, value in options.items() if name in names}))
    return draft_service(
        request, load_settings(**{name: value for name, value in options.items() if name not in names}), sources or {}
    )


def has_warning_about(draft: ServiceDraft, part: str) -> bool:
    return any(part in warning for warning in draft.warnings)


@pytest.mark.parametrize(
    ("options", "exists", "missing"),
    [
        ({"allora_network": "local"}, False, False),
        ({"allora_network": "testnet"}, False, True),
        ({"allora_network": "testnet"}, True, False),
        ({"allora_network": "testnet", "per_user": True}, True, True),
        ({"allora_network": "testnet", "manager": "supervisord"}, True, True),
        ({"allora_network": "testnet", "mnemonic_file": "/phrase"}, False, False),
        ({"allora_network": "testnet", "mnemonic": "a b c"}, False, False),
        ({"allora_network": "testnet", "credential": Path("/phrase")}, False, False),
    ],
)
def test_draft_without_wallet_warns(options: dict[str, Any], exists: bool, missing: bool, tmp_path: Path) -> None:
    if exists:
        (tmp_path / "forecastd.mnemonic").touch()
    assert has_warning_about(make_draft(**options), "No wallet is set") is missing


def test_draft_shell_only_settings_are_listed() -> None:
    sources = dict.fromkeys(("MODEL", "TOPIC_ID", "STATE_DIR", "LOG_DIR", "WATCHDOG_PID", "PATH"), "the environment")
    draft = make_draft(sources | {"SYMBOL": ".env"})
    assert has_warning_about(draft, "not for the service: MODEL, TOPIC_ID. Add to /.env")
    assert not has_warning_about(make_draft({"SYMBOL": ".env"}), "not for the service")


@pytest.mark.parametrize(
    ("holds", "per_user", "has_warning"), [("1", True, True), ("0", True, False), ("1", False, False)]
)
def test_draft_restricted_user_namespaces_warns(
    holds: str, per_user: bool, has_warning: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "switch").write_text(f"{holds}\n")
    monkeypatch.setattr(module, "_NAMESPACE_SWITCHES", {tmp_path / "absent": "1", tmp_path / "switch": "1"})
    assert has_warning_about(make_draft(per_user=per_user), "226/NAMESPACE") is has_warning


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, ["systemctl daemon-reload", "systemctl enable --now allora-submission"]),
        ({"state_dir": "/no/state"}, ["install -d -o worker -m 700 /no/state", "systemctl daemon-reload",
                                      "systemctl enable --now allora-submission"]),
        ({"per_user": True, "state_dir": "/no/s", "log_dir": "/"},
         ["install -d -m 700 /no/s", "systemctl --user daemon-reload", "systemctl --user enable --now allora-submission",
          "loginctl enable-linger"]),
        ({"manager": "supervisord", "state_dir": "/", "log_dir": "/no/l"},
         ["install -d -m 700 /no/l", "supervisorctl reread", "supervisorctl update"]),
        ({"manager": "supervisord", "state_dir": "/", "log_dir": "/no/l", "run_as": "worker"},
         ["install -d -o worker -m 700 /no/l", "supervisorctl reread", "supervisorctl update"]),
    ],
)  # fmt: skip
def test_draft_next_steps_create_directories_and_start(options: dict[str, Any], steps: list[str]) -> None:
    assert make_draft(**options).steps == steps


def test_draft_fleet_service_has_its_own_name() -> None:
    assert make_draft(service=FLEET_SERVICE).steps[-1] == "systemctl enable --now forecastd-fleet"
    assert "ExecStart=/bin/sh " in make_draft(service=FLEET_SERVICE).text
    assert " fleet serve" in make_draft(service=FLEET_SERVICE).text
    assert "[program:forecastd-fleet]" in make_draft(service=FLEET_SERVICE, manager="supervisord").text


@pytest.mark.parametrize(
    ("options", "exists", "missing"),
    [
        ({}, False, False),
        ({"fleet_host": "::1"}, False, False),
        ({"fleet_host": "0.0.0.0"}, False, True),  # noqa: S104  # the value under test
        ({"fleet_host": "10.0.0.7"}, True, False),
        ({"fleet_host": "10.0.0.7", "per_user": True}, True, True),
        ({"fleet_host": "10.0.0.7", "manager": "supervisord"}, True, True),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys": "a-key-that-is-long-enough"}, False, False),
        ({"fleet_host": "10.0.0.7", "fleet_api_keys_file": "/keys"}, False, False),
        ({"fleet_host": "10.0.0.7", "credential": Path("/keys")}, False, False),
    ],
)
def test_draft_fleet_without_api_keys_warns(
    options: dict[str, Any], exists: bool, missing: bool, tmp_path: Path
) -> None:
    if exists:
        (tmp_path / "forecastd.fleet-api-keys").touch()
    draft = make_draft(service=FLEET_SERVICE, **options)
    assert has_warning_about(draft, "without an API key") is missing
    assert not has_warning_about(draft, "No wallet")
    assert not has_warning_about(make_draft(**options), "API key")


@pytest.mark.parametrize(
    ("options", "has_warning"),
    [({"fleet_engine": "library"}, True), ({"fleet_engine": "stream"}, False), ({}, False),
     ({"fleet_engine": "library", "manager": "supervisord"}, False)],
)  # fmt: skip
def test_draft_fleet_library_engine_warns(options: dict[str, Any], has_warning: bool) -> None:
    assert has_warning_about(make_draft(service=FLEET_SERVICE, **options), "MemoryDenyWriteExecute=no") is has_warning


def test_removal_steps_reload_the_manager() -> None:
    assert steps_after_removal("systemd", per_user=False) == ["systemctl daemon-reload"]
    assert steps_after_removal("systemd", per_user=True) == ["systemctl --user daemon-reload"]
    assert steps_after_removal("supervisord", per_user=False) == ["supervisorctl update"]


@pytest.mark.parametrize(
    ("current", "manager", "run_as", "user"),
    [(WORKER, "systemd", None, "worker"), (WORKER, "supervisord", None, None), (WORKER, "systemd", "other", "other"),
     (ROOT, "systemd", None, "forecastd"), (ROOT, "supervisord", None, "forecastd"), (ROOT, "supervisord", "other", "other")],
)  # fmt: skip
def test_draft_never_runs_as_root(
    current: UnixAccount, manager: ServiceManager, run_as: str | None, user: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "current_account", lambda: current)
    text = make_draft(manager=manager, run_as=run_as, directory=Path("/")).text  # root's per_user directory
    key = "User=" if manager == "systemd" else "user="
    assert [line for line in text.splitlines() if line.startswith(key)] == ([f"{key}{user}"] if user else [])


def test_file_path_is_where_the_manager_looks(tmp_path: Path) -> None:
    paths = [
        file_path("systemd", per_user=False),
        file_path("systemd", per_user=True),
        file_path("supervisord", per_user=False, directory=tmp_path),
    ]
    assert paths[0] == SYSTEM_UNIT_DIR / "allora-submission.service"
    assert paths[1].parts[-3:] == ("systemd", "user", "allora-submission.service")
    assert paths[2] == tmp_path / "allora-submission.conf"
    assert file_path("systemd", per_user=False, service=FLEET_SERVICE) == SYSTEM_UNIT_DIR / "forecastd-fleet.service"
    assert {file_path("systemd", per_user=False, service=service) for service in SERVICES} < set(known_file_paths())
    assert (
        file_path("supervisord", per_user=False, directory=SUPERVISORD_DIRS[1]).suffix == ".ini"
    )  # the [include] of that directory matches only this suffix
    assert set(paths[:2]) < set(known_file_paths())
