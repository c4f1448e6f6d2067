"""The evaluation of a tick, and the alert state while the disk cannot be written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES
from forecastd.fleet.risk.thresholds import load_thresholds
from forecastd.fleet.tick_evaluator import TickEvaluator
from forecastd.fleet.window.window import WindowBlock


class RecordingOperatorNotifier:
    """Records the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def fire(self, _: str, key: str, text: str) -> None:
        self.messages.append(text)

    def resolve(self, _: str, key: str, text: str) -> None:
        self.messages.append(text)


def block(tick: int, disk: float) -> WindowBlock:
    values = np.full((1, 20, len(METRIC_NAMES)), 20.0, dtype=np.float32)
    values[:, :, METRIC_INDEX["disk_percent"]] = disk
    return WindowBlock(tick, ("db-01",), ("database",), ("ok",), values)


def test_alert_state_write_failure_is_logged_once_and_retried(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    obstacle = tmp_path / "in-the-way"
    obstacle.write_text("no directory")
    path = obstacle / "alertbook.json"
    evaluator = TickEvaluator(load_thresholds(), path, 5, RecordingOperatorNotifier())
    for tick in range(100, 110):
        snapshot = evaluator.evaluate(block(tick, 99.0), None, METRIC_NAMES, 10)
    assert snapshot.alert_counts.open >= 1
    assert caplog.text.count("Cannot save the alert state") == 1
    obstacle.unlink()
    evaluator.evaluate(block(110, 99.0), None, METRIC_NAMES, 10)
    assert caplog.text.count("The alert state is saved again") == 1
    assert json.loads(path.read_text())
    notifier = RecordingOperatorNotifier()
    restarted = TickEvaluator(load_thresholds(), path, 5, notifier).evaluate(block(111, 99.0), None, METRIC_NAMES, 10)
    assert restarted.alert_counts == snapshot.alert_counts
    assert notifier.messages == [], "a restart opens no alert a second time"
