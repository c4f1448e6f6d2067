"""The recorder of a supervised run waits in one thread for events of another."""

from __future__ import annotations

from threading import Thread

import pytest

from forecastd.inference.supervision_run import SupervisionRecorder
from forecastd.supervise import detector
from forecastd.supervise.events import EventKind, ProcessEvent
from forecastd.testing import ManualClock


@pytest.mark.parametrize(
    ("kinds", "waits"),
    [
        (["ready"], True),
        (["ready", "ready"], False),
        (["ready", "ready", "died"], True),
        (["ready", "quarantined"], False),
        (["refused"], False),
        (["backing_off"], False),
    ],
)
def test_recorder_waits_until_children_are_ready_or_failed(kinds: list[EventKind], waits: bool) -> None:
    recorder = SupervisionRecorder(ManualClock(), lambda _: None)
    for pid, kind in enumerate(kinds):
        recorder(ProcessEvent(kind, 0 if kind == "died" else pid, detector.start(0.0, str(pid))))
    waiting = Thread(target=recorder.wait_until_ready, args=(2, 60.0), daemon=True)
    waiting.start()
    waiting.join(0.1 if waits else 60.0)
    assert waiting.is_alive() is waits
    recorder(ProcessEvent("quarantined", 0, detector.start(0.0, "")))
    waiting.join(60.0)
    assert not waiting.is_alive()
