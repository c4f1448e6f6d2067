"""Loops report heartbeats, and one without is stalled."""

from __future__ import annotations

from threading import Event

import pytest

from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.testing import ManualClock


def test_loop_is_stalled_after_its_limit() -> None:
    clock = ManualClock(elapsed=0.0)
    liveness = LivenessMonitor(clock)
    liveness.beat("watcher", 90.0)
    clock.elapsed = 90.0
    assert liveness.stalled_loops() == []
    clock.elapsed = 90.1
    assert [(loop.name, loop.max_silence) for loop in liveness.stalled_loops()] == [("watcher", 90.0)]
    liveness.beat("watcher", 90.0)
    assert liveness.stalled_loops() == []
    clock.elapsed = 1e9
    liveness.remove("watcher")
    assert liveness.stalled_loops() == []


def test_bounded_wait_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock(elapsed=0.0)
    liveness = LivenessMonitor(clock)
    stalled_loops: list[list[str]] = []

    def wait(_: Event, timeout: float) -> bool:
        clock.elapsed += timeout
        stalled_loops.append([loop.name for loop in liveness.stalled_loops()])
        clock.elapsed += 61
        stalled_loops.append([loop.name for loop in liveness.stalled_loops()])
        return False

    monkeypatch.setattr(Event, "wait", wait)
    HeartbeatEvent(liveness, "worker", 60.0).wait(600.0)
    assert stalled_loops == [[], ["worker"]], "stalled when the wait is over and no heartbeat comes"
    assert liveness.stalled_loops() == []
