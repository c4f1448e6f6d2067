"""What the daemon says of itself, from what it knows; and its loops' signs of progress."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event

import pytest

from forecastd.daemon import telling
from forecastd.daemon.beats import BeatingEvent, Beats
from forecastd.daemon.guarded import Unforeseen, guarded
from forecastd.pulse import Count, EndpointPulse, Pulse, Submitted, TopicPulse, WindowPulse

NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z


@dataclass
class Hands:
    """A clock whose hands are moved."""

    at: float = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


def topic(**more: object) -> TopicPulse:
    outcomes = (Count("submitted", None, 20), Count("failed", None, 2))
    last = Submitted(720, NOW - 60, "AA", 731, 0.1)
    fields = {"cycles": 22, "submitted": 20, "missed": 1, "outcomes": outcomes, "last_submitted": last, **more}
    return TopicPulse(67, **fields)  # type: ignore[arg-type]


def pulse(*topics: TopicPulse, **more: object) -> Pulse:
    return Pulse(
        1, NOW - 90_061, NOW, 90_061.0, "daemon", "running", "local", topics=topics, memory_bytes=80_000_000,
        children_memory_bytes=70_000_000, open_files=30,
        endpoints=(EndpointPulse("a:1", "ok"), EndpointPulse("b:1", "quarantined")), **more,  # type: ignore[arg-type]
    )  # fmt: skip


OPEN = WindowPulse(True, 720, 720, 1439, 600, 3000.0)
NEXT = WindowPulse(False, None, 1440, 2159, 100, 500.0)


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
def test_a_length_of_time_is_told_in_two_units(seconds: float, told: str) -> None:
    assert telling.span(seconds) == told


def test_the_heartbeat_tells_everything_in_one_line() -> None:
    line = telling.heartbeat(pulse(topic(window=OPEN, confirmed_nonce=720)))
    assert "\n" not in line
    found = [
        "alive since 2026-02-28T10:58:59Z (1 d 1 h)", "22 cycles", "topic 67 nonce 720", "1 missed", "1 of 2 endpoints ok",
        "window 720 open for 600 blocks more, served", "memory 80 MB and 70 MB in models' processes, 30 files",
    ]  # fmt: skip
    for words in found:
        assert words in line, line


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (topic(window=OPEN, phase="sign"), "window 720 open for 600 blocks more, sign"),
        (topic(window=OPEN, confirmed_nonce=720), "window 720 open for 600 blocks more, served"),
        (topic(window=NEXT), "next window at height 1440, in about 8 min 20 s"),
        (topic(active=False), "inactive"),
        (topic(), "no window known"),
    ],
)
def test_a_window_is_told_in_a_few_words(seen: TopicPulse, told: str) -> None:
    assert telling.window(seen) == told


def test_the_last_of_all_submissions_is_the_last() -> None:
    later = topic(last_submitted=Submitted(1440, NOW, "BB", 1450, 0.1))
    assert telling.last_submission((topic(), later)) == "last submission topic 67 nonce 1440 at 2026-03-01T12:00:00Z"
    assert telling.last_submission((topic(last_submitted=None),)) == "nothing submitted yet"


def test_the_last_words_count_what_was_done() -> None:
    told = telling.summary(pulse(topic(), topic()), "told to by SIGTERM")
    assert told == "ended: told to by SIGTERM. Up 1 d 1 h, 44 cycles: 4 failed, 40 submitted; 2 epochs missed"


def test_a_status_shows_what_needs_a_person() -> None:
    assert telling.status(pulse(topic(), trouble="Send some ALLO.")).endswith("Send some ALLO.")


def test_the_stacks_name_this_thread_and_this_place() -> None:
    assert "MainThread" in telling.stacks()
    assert "test_the_stacks_name" in telling.stacks()


def test_a_loop_is_late_when_its_sign_is_overdue_and_not_before() -> None:
    hands = Hands()
    beats = Beats(hands)
    beats.beat("watcher", 90.0)
    hands.at = 90.0
    assert beats.late() == []
    hands.at = 90.1
    assert [(one.name, one.bound) for one in beats.late()] == [("watcher", 90.0)]
    beats.beat("watcher", 90.0)
    assert beats.late() == []
    hands.at = 1e9
    beats.end("watcher")
    assert beats.late() == []


def test_a_wait_of_a_known_length_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    hands = Hands()
    beats = Beats(hands)
    seen: list[list[str]] = []

    def sleeps(_: Event, timeout: float) -> bool:
        hands.at += timeout
        seen.append([one.name for one in beats.late()])
        hands.at += 61
        seen.append([one.name for one in beats.late()])
        return False

    monkeypatch.setattr(Event, "wait", sleeps)
    BeatingEvent(beats, "worker", 60.0).wait(600.0)
    assert seen == [[], ["worker"]], "late when the wait is over and nothing comes"
    assert beats.late() == []


def test_an_error_that_nobody_foresaw_is_one_line_and_the_traceback_is_for_the_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    result = guarded("the work", lambda: 1 // 0)
    assert isinstance(result, Unforeseen)
    assert result.reason.startswith("ZeroDivisionError")
    line, trace = caplog.records
    assert (line.levelname, line.exc_info) == ("ERROR", None)
    assert trace.levelname == "DEBUG"
    assert trace.exc_info is not None


def test_an_end_that_is_wanted_is_not_caught() -> None:
    def leaves() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        guarded("the work", leaves)
