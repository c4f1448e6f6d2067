"""A state directory written before 0.1.0 opens, and nothing in it is lost.

`tests/support/data/state-before-0.1` was made by that program: a ledger with rows in the states admitted, missed, dead (with
one and with two signatures), included and signed (its process was killed before the bytes were sent), the local chains and
their wallet, the rolling window, a good bundle, the status and the alerts of a daemon, and a fleet's window and alerts.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from forecastd.alerts.dispatcher import AlertDispatcher
from forecastd.fleet.contract import METRIC_INDEX
from forecastd.fleet.window.store import TickStore
from forecastd.fleet.window.window import FleetWindow
from forecastd.inference.bundle_store import open_bundle_store
from forecastd.ledger.ledger import Ledger, SubmissionState
from forecastd.ledger.snapshot import open_snapshot
from forecastd.market.window import RollingWindow
from forecastd.settings import AlertSettings, load_settings
from forecastd.status.file import read_status
from forecastd.testing import ManualClock

WALLET = "allo1gzk5dw7s0xaqkmzv8a3vqmh4leqraty85hna6n"
REPLAY = "localnet-20191017T090000Z-04652492"
OPEN_KEY = (REPLAY, 67, 314_260_560, WALLET)
STATES = {
    359_176_320: SubmissionState.ADMITTED,
    359_177_040: SubmissionState.MISSED,
    359_177_760: SubmissionState.ABANDONED,
    359_178_480: SubmissionState.ABANDONED,
    359_179_200: SubmissionState.INCLUDED,
}
ALERT_TIME = 1_795_890_000.0
FLEET_TIME = 1_795_897_360.0


@pytest.fixture
def state(root: Path, tmp_path: Path) -> Path:
    """A copy of the directory, with the modes that the program gave its files."""
    copy = tmp_path / "state"
    shutil.copytree(root / "tests" / "support" / "data" / "state-before-0.1", copy)
    for path in copy.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
    return copy


def test_old_ledger_keeps_every_row_and_signature(state: Path) -> None:
    with Ledger(state / "ledger.sqlite") as ledger:
        entries = {entry.nonce: entry for entry in ledger.entries("localnet", WALLET)}
        assert {nonce: entry.row.state for nonce, entry in entries.items()} == STATES
        assert [len(ledger.attempts(entries[nonce].key)) for nonce in (359_177_760, 359_178_480)] == [1, 2]
        assert entries[359_177_760].row.reason == "out of gas"
        opened = ledger.find(OPEN_KEY)
        assert opened is not None
        assert opened.row.state is SubmissionState.SIGNED
        assert ledger.find_problems() == []
    assert not list(state.glob("*.damaged-*"))
    with Ledger(state / "ledger.sqlite") as ledger:  # and once more, as the new version
        assert len(ledger.entries("localnet", WALLET)) == len(STATES)


def test_old_ledger_is_read_beside_the_file_without_changing_it(state: Path) -> None:
    before = (state / "ledger.sqlite").read_bytes()
    with open_snapshot(state / "ledger.sqlite") as ledger:
        assert {entry.nonce: entry.row.state for entry in ledger.entries("localnet", WALLET)} == STATES
    assert (state / "ledger.sqlite").read_bytes() == before


def test_old_ledger_migration_that_fails_leaves_the_old_file(state: Path) -> None:
    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            if sql.startswith("DROP TABLE epochs_2"):
                raise sqlite3.OperationalError("disk I/O error")
            return super().execute(sql, *values)  # type: ignore[arg-type]

    def connect(path: Path, timeout_seconds: float) -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, factory=Failing)

    with pytest.raises(Exception, match="disk I/O error"):
        Ledger(state / "ledger.sqlite", connect=connect)
    with Ledger(state / "ledger.sqlite") as ledger:
        assert {entry.nonce: entry.row.state for entry in ledger.entries("localnet", WALLET)} == STATES


def test_open_row_of_an_old_ledger_is_resumed_with_the_same_bytes(root: Path, state: Path, tmp_path: Path) -> None:
    with open_snapshot(state / "ledger.sqlite") as ledger:
        (signed,) = ledger.attempts(OPEN_KEY)
    command = subprocess.run(
        [sys.executable, str(root / "submit_prediction.py"), "--once", "--json", "--as-of", "2019-10-17T09:00:00Z"],
        cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        env={"PATH": os.defpath, "HOME": str(tmp_path), "STATE_DIR": str(state), "LOG_DIR": str(tmp_path / "logs")},
    )  # fmt: skip
    outcome = json.loads(command.stdout)
    assert (command.returncode, outcome["outcome"]) == (0, "submitted"), command.stderr
    assert outcome["tx_hash"] == signed.tx_hash
    with open_snapshot(state / "ledger.sqlite") as ledger:
        assert len(ledger.attempts(OPEN_KEY)) == 1


def test_old_status_file_is_understood(state: Path) -> None:
    stored = read_status(state)
    assert stored is not None
    assert stored.status is not None
    assert (stored.status.state, stored.status.network, stored.status.topics[0].cycles) == ("ended", "local", 1)
    assert stored.status.topics[0].last_outcomes[0].outcome == "already_submitted"


def test_old_alerts_are_not_sent_again(state: Path, tmp_path: Path) -> None:
    received = tmp_path / "received"
    with AlertDispatcher(
        AlertSettings.model_validate({"alert_command": f"tee -a {received}", "alert_repeat_interval": 86_400}),
        state,
        ManualClock(ALERT_TIME + 60),
    ) as alerts:
        alerts.epoch_missed(67, 359_177_040, "the same epoch", wallet=WALLET)
        alerts.fire("needs_human", "topic 68", "Register first.")
        alerts.resolve("needs_human", "topic 68", "Registered.")
    (message,) = [json.loads(line) for line in received.read_text(encoding="utf-8").splitlines()]
    assert (message["event"], message["key"]) == ("resolved", "topic 68")


def test_good_bundle_of_an_old_store_is_offered(state: Path) -> None:
    store = open_bundle_store(load_settings(state_dir=state), ManualClock())
    (bundle,) = store.list_good(67)
    assert (bundle / "manifest.json").is_file()


def test_rolling_window_and_fleet_window_are_loaded(state: Path) -> None:
    with RollingWindow.open(state / "window.sqlite") as candles:
        stored_candles = candles.load("tiingo:btcusd@127.0.0.1:18111", "btcusd", 3600, 1_794_427_200, 1_795_896_000)
    assert stored_candles is not None
    assert len(stored_candles) == 408
    window = FleetWindow(5, 720, 10)
    with TickStore(state / "fleet" / "window.sqlite", step=5) as store:
        report = store.load(window, FLEET_TIME)
    assert (report.servers, report.damaged_ticks) == (1, 0)
    assert window.servers() == ("web-1",)
    last = window.block(int(FLEET_TIME // 5) - 1, 24).values[0][:, METRIC_INDEX["cpu_percent"]]
    assert (last == 99.0).any()
