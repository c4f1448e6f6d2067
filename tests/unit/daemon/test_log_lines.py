"""What the daemon says of itself, from what it knows; and its loops' signs of progress."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event

import pytest

from forecastd.daemon import log_lines
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.status.model import (
    DaemonStatus,
    EndpointStatus,
    OutcomeCount,
    SubmissionRecord,
    TopicStatus,
    WindowStatus,
)

NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z


@dataclass
class ManualLivenessClock:
    """A clock whose hands are moved."""

    time: float = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def make_topic(**more: object) -> TopicStatus:
    outcomes = (OutcomeCount("submitted", None, 20), OutcomeCount("failed", None, 2))
    last = SubmissionRecord(720, NOW - 60, "AA", 731, 0.1)
    fields = {"cycles": 22, "submitted": 20, "missed": 1, "outcomes": outcomes, "last_submitted": last, **more}
    return TopicStatus(67, **fields)  # type: ignore[arg-type]


def make_status(*topics: TopicStatus, **more: object) -> DaemonStatus:
    return DaemonStatus(
        1, NOW - 90_061, NOW, 90_061.0, "daemon", "running", "local", topics=topics, memory_bytes=80_000_000,
        children_memory_bytes=70_000_000, open_files=30,
        endpoints=(EndpointStatus("a:1", "ok"), EndpointStatus("b:1", "quarantined")), **more,  # type: ignore[arg-type]
    )  # fmt: skip


OPEN_WINDOW = WindowStatus(True, 720, 720, 1439, 600, 3000.0)
NEXT_WINDOW = WindowStatus(False, None, 1440, 2159, 100, 500.0)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0, "0 s"),
        (59.9, "59 s"),
        (61, "1 min 1 s"),
        (3600, "1 h"),
        (90_061, "1 d 1 h"),
        (-5, "0 s"),
        (4e7, "462 d 23 h"),
    ],
)
def test_duration_uses_two_units(seconds: float, text: str) -> None:
    assert log_lines.format_duration(seconds) == text


def test_heartbeat_line_has_every_value() -> None:
    line = log_lines.heartbeat_line(make_status(make_topic(window=OPEN_WINDOW, confirmed_nonce=720)))
    assert "\n" not in line
    heartbeat_text = [
        "alive since 2026-02-28T10:58:59Z (1 d 1 h)", "22 cycles", "topic 67 nonce 720", "1 missed", "1 of 2 endpoints ok",
        "window 720 open for 600 blocks more, served", "memory 80 MB and 70 MB in models' processes, 30 files",
    ]  # fmt: skip
    for words in heartbeat_text:
        assert words in line, line


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (make_topic(window=OPEN_WINDOW, phase="sign"), "window 720 open for 600 blocks more, sign"),
        (make_topic(window=OPEN_WINDOW, confirmed_nonce=720), "window 720 open for 600 blocks more, served"),
        (make_topic(window=NEXT_WINDOW), "next window at height 1440, in about 8 min 20 s"),
        (make_topic(active=False), "inactive"),
        (make_topic(), "no window known"),
    ],
)
def test_window_text(window: TopicStatus, text: str) -> None:
    assert log_lines.format_window(window) == text


def test_last_submission_is_the_latest_of_all_topics() -> None:
    later = make_topic(last_submitted=SubmissionRecord(1440, NOW, "BB", 1450, 0.1))
    assert (
        log_lines.format_last_submission((make_topic(), later))
        == "last submission topic 67 nonce 1440 at 2026-03-01T12:00:00Z"
    )
    assert log_lines.format_last_submission((make_topic(last_submitted=None),)) == "nothing submitted yet"


def test_shutdown_summary_has_the_counts() -> None:
    text = log_lines.shutdown_summary(make_status(make_topic(), make_topic()), "told to by SIGTERM")
    assert text == "ended: told to by SIGTERM. Up 1 d 1 h, 44 cycles: 4 failed, 40 submitted; 2 epochs missed"


def test_status_line_shows_attention() -> None:
    assert log_lines.status_line(make_status(make_topic(), trouble="Send some ALLO.")).endswith("Send some ALLO.")


def test_stacks_name_the_thread_and_the_function() -> None:
    assert "MainThread" in log_lines.format_stacks()
    assert "test_the_stacks_name" in log_lines.format_stacks()


def test_loop_is_stalled_after_its_limit() -> None:
    clock = ManualLivenessClock()
    liveness = LivenessMonitor(clock)
    liveness.beat("watcher", 90.0)
    clock.time = 90.0
    assert liveness.stalled_loops() == []
    clock.time = 90.1
    assert [(loop.name, loop.max_silence) for loop in liveness.stalled_loops()] == [("watcher", 90.0)]
    liveness.beat("watcher", 90.0)
    assert liveness.stalled_loops() == []
    clock.time = 1e9
    liveness.remove("watcher")
    assert liveness.stalled_loops() == []


def test_bounded_wait_is_not_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualLivenessClock()
    liveness = LivenessMonitor(clock)
    stalled_loops: list[list[str]] = []

    def sleeps(_: Event, timeout: float) -> bool:
        clock.time += timeout
        stalled_loops.append([loop.name for loop in liveness.stalled_loops()])
        clock.time += 61
        stalled_loops.append([loop.name for loop in liveness.stalled_loops()])
        return False

    monkeypatch.setattr(Event, "wait", sleeps)
    HeartbeatEvent(liveness, "worker", 60.0).wait(600.0)
    assert stalled_loops == [[], ["worker"]], "late when the wait is over and nothing comes"
    assert liveness.stalled_loops() == []


def test_unexpected_error_logs_one_line_and_the_traceback_at_debug(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    result = run_guarded("the work", lambda: 1 // 0)
    assert isinstance(result, UnexpectedError)
    assert result.reason.startswith("ZeroDivisionError")
    line, trace = caplog.records
    assert (line.levelname, line.exc_info) == ("ERROR", None)
    assert trace.levelname == "DEBUG"
    assert trace.exc_info is not None


def test_system_exit_is_not_caught() -> None:
    def leaves() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        run_guarded("the work", leaves)
