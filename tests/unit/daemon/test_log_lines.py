"""The heartbeat line, the status line and the shutdown summary, from a status."""

from __future__ import annotations

import pytest

from forecastd.daemon import log_lines
from forecastd.status.model import (
    DaemonStatus,
    EndpointStatus,
    OutcomeCount,
    SubmissionRecord,
    TopicStatus,
    WindowStatus,
)

NOW = 1_772_366_400.0  # 2026-03-01T12:00:00Z


def make_topic(**fields: object) -> TopicStatus:
    outcomes = (OutcomeCount("submitted", None, 20), OutcomeCount("failed", None, 2))
    last = SubmissionRecord(720, NOW - 60, "AA", 731, 0.1)
    defaults = {"cycles": 22, "submitted": 20, "missed": 1, "outcomes": outcomes, "last_submitted": last}
    return TopicStatus(67, **{**defaults, **fields})  # type: ignore[arg-type]


def make_status(*topics: TopicStatus, **fields: object) -> DaemonStatus:
    return DaemonStatus(
        1, NOW - 90_061, NOW, 90_061.0, "daemon", "running", "local", topics=topics, memory_bytes=80_000_000,
        children_memory_bytes=70_000_000, open_files=30,
        endpoints=(EndpointStatus("a:1", "ok"), EndpointStatus("b:1", "quarantined")), **fields,  # type: ignore[arg-type]
    )  # fmt: skip


OPEN_WINDOW = WindowStatus(True, 720, 720, 1439, 600, 3000.0)
NEXT_WINDOW = WindowStatus(False, None, 1440, 2159, 1, 5.0)


def test_heartbeat_line_has_every_value() -> None:
    line = log_lines.heartbeat_line(make_status(make_topic(window=OPEN_WINDOW, confirmed_nonce=720)))
    assert "\n" not in line
    expected_parts = [
        "heartbeat: running since 2026-02-28T10:58:59Z (1 d 1 h)", "22 cycles", "topic 67 nonce 720", "1 missed epoch;",
        "1 of 2 endpoints ok", "window 720 closes in 600 blocks (about 50 min), served",
        "memory 80 MB, 70 MB in model processes, 30 open files",
    ]  # fmt: skip
    assert line.startswith("heartbeat")
    for part in expected_parts:
        assert part in line, line


@pytest.mark.parametrize(
    ("topic", "text"),
    [
        (make_topic(window=OPEN_WINDOW, phase="sign"), "window 720 closes in 600 blocks (about 50 min), sign"),
        (make_topic(window=OPEN_WINDOW, confirmed_nonce=720), "window 720 closes in 600 blocks (about 50 min), served"),
        (make_topic(window=NEXT_WINDOW), "next window at height 1440, in 1 block (about 5 s)"),
        (make_topic(active=False), "inactive"),
        (make_topic(), "next window unknown"),
    ],
    ids=["open", "served", "next", "inactive", "unknown"],
)
def test_window_text(topic: TopicStatus, text: str) -> None:
    assert log_lines.format_window(topic) == text


def test_last_submission_is_the_latest_of_all_topics() -> None:
    later = make_topic(last_submitted=SubmissionRecord(1440, NOW, "BB", 1450, 0.1))
    assert (
        log_lines.format_last_submission((make_topic(), later))
        == "last submission topic 67 nonce 1440 at 2026-03-01T12:00:00Z"
    )
    assert log_lines.format_last_submission((make_topic(last_submitted=None),)) == "no submission yet"


def test_shutdown_summary_has_the_counts() -> None:
    text = log_lines.shutdown_summary(make_status(make_topic(), make_topic()), "received SIGTERM")
    assert text == "shutdown complete: received SIGTERM. Up 1 d 1 h, 44 cycles: 4 failed, 40 submitted; 2 missed epochs"


def test_status_line_shows_attention() -> None:
    assert log_lines.status_line(make_status(make_topic(), attention="Send some ALLO.")).endswith("Send some ALLO.")
