"""What a tick means, and what of it is kept when the disk takes nothing for a while."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES
from forecastd.fleet.risk.thresholds import load_thresholds
from forecastd.fleet.snapshot import FleetSnapshot
from forecastd.fleet.tick_evaluator import TickEvaluator
from forecastd.fleet.window.window import WindowBlock


class RecordingOperatorNotifier:
    """Who is told; keeps what."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def fire(self, _: str, key: str, text: str) -> None:
        self.told.append(text)

    def resolve(self, _: str, key: str, text: str) -> None:
        self.told.append(text)


def block(tick: int, disk: float) -> WindowBlock:
    values = np.full((1, 20, len(METRIC_NAMES)), 20.0, dtype=np.float32)
    values[:, :, METRIC_INDEX["disk_percent"]] = disk
    return WindowBlock(tick, ("db-01",), ("database",), ("ok",), values)


def test_alert_state_write_failure_is_logged_once_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    place = tmp_path / "in-the-way"
    place.write_text("no directory")
    path, found = place / "alertbook.json", FleetSnapshot(0)
    judge = TickEvaluator(load_thresholds(), path, 5, RecordingOperatorNotifier())
    for tick in range(100, 110):
        found = judge.evaluate(block(tick, 99.0), None, METRIC_NAMES, 10, found)
    assert found.alert_counts["open"] >= 1
    assert caplog.text.count("The alerts' state is not kept") == 1
    place.unlink()
    judge.evaluate(block(110, 99.0), None, METRIC_NAMES, 10, found)
    assert caplog.text.count("The alerts' state is kept again") == 1
    assert json.loads(path.read_text())
    silent = RecordingOperatorNotifier()
    again = TickEvaluator(load_thresholds(), path, 5, silent).evaluate(block(111, 99.0), None, METRIC_NAMES, 10, found)
    assert again.alert_counts == found.alert_counts
    assert silent.told == [], "a restart opens no alert a second time"
