"""What a tick means, and what of it is kept when the disk takes nothing for a while."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from forecastd.fleet.contract import INDEX, NAMES
from forecastd.fleet.grid import Block
from forecastd.fleet.judging import Judge
from forecastd.fleet.published import Published
from forecastd.fleet.thresholds import load_thresholds


class Person:
    """Who is told; keeps what."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def raise_alarm(self, _: str, key: str, text: str) -> None:
        self.told.append(text)

    def recover(self, _: str, key: str, text: str) -> None:
        self.told.append(text)


def block(tick: int, disk: float) -> Block:
    values = np.full((1, 20, len(NAMES)), 20.0, dtype=np.float32)
    values[:, :, INDEX["disk_percent"]] = disk
    return Block(tick, ("db-01",), ("database",), ("ok",), values)


def test_a_disk_that_takes_nothing_is_told_once_and_what_was_not_kept_is_kept_when_it_can_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    place = tmp_path / "in-the-way"
    place.write_text("no directory")
    path, found = place / "alertbook.json", Published(0)
    judge = Judge(load_thresholds(), path, 5, Person())
    for tick in range(100, 110):
        found = judge.judge(block(tick, 99.0), None, NAMES, 10, found)
    assert found.alert_counts["open"] >= 1
    assert caplog.text.count("The alerts' state is not kept") == 1
    place.unlink()
    judge.judge(block(110, 99.0), None, NAMES, 10, found)
    assert caplog.text.count("The alerts' state is kept again") == 1
    assert json.loads(path.read_text())
    silent = Person()
    again = Judge(load_thresholds(), path, 5, silent).judge(block(111, 99.0), None, NAMES, 10, found)
    assert again.alert_counts == found.alert_counts
    assert silent.told == [], "a restart opens no alert a second time"
