"""The health check: a table of situations, and a simulation of many epochs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.status import check_health
from forecastd.status.health import blocks_overdue
from forecastd.status.model import DaemonStatus, TopicStatus, WatchdogStatus

NOW = 1_790_000_000.0
EPOCH_BLOCKS = 720
TOPIC = TopicStatus(
    67,
    active=True,
    height=10 * EPOCH_BLOCKS + 100,
    height_age=3.0,
    newest_nonce=10 * EPOCH_BLOCKS,
    confirmed_nonce=10 * EPOCH_BLOCKS,
    watch_start_height=100,
    epoch_length=EPOCH_BLOCKS,
    block_seconds=5.0,
)
STATUS = DaemonStatus(4711, NOW - 36_000, NOW - 2, 36_000.0, "daemon", "running", "testnet", topics=(TOPIC,))


def make_status(topic: TopicStatus, **changes: float) -> DaemonStatus:
    return replace(STATUS, topics=(replace(topic, **changes),))  # type: ignore[arg-type]


CASES: dict[str, tuple[DaemonStatus, bool | None, str | None]] = {
    "healthy": (STATUS, True, None),
    "starting": (replace(STATUS, uptime=5.0, state="starting", topics=(TopicStatus(67),)), True, None),
    "no-topic": (replace(STATUS, topics=()), True, None),
    "stopping": (replace(STATUS, state="stopping"), True, "is shutting down"),
    "ended": (replace(STATUS, state="ended"), False, "has exited as requested"),
    "killed": (STATUS, False, "process 4711 exited unexpectedly"),
    "other-container": (STATUS, None, None),
    "watchdog-would-fire": (
        replace(STATUS, watchdog=WatchdogStatus(NOW - 90, 90.0, 60.0, would_fire=True)), True, "no progress for 1 min 30 s",
    ),
    "watchdog-pinged": (replace(STATUS, watchdog=WatchdogStatus(NOW - 9, 9.0, 60.0)), True, None),
    "stale": (replace(STATUS, written_at=NOW - 300), True, "has not written its status for 5 min"),
    "long-write-interval": (replace(STATUS, written_at=NOW - 300, write_interval=60.0), True, None),
    "clock-set-back": (replace(STATUS, written_at=NOW + 90_000), True, None),
    "one-missed": (make_status(TOPIC, confirmed_nonce=9 * EPOCH_BLOCKS), True, None),
    "two-missed": (
        make_status(TOPIC, confirmed_nonce=8 * EPOCH_BLOCKS), True,
        "no submission confirmed since nonce 5760 for more than 2 epochs",
    ),
    "two-missed-just-started": (
        make_status(TOPIC, confirmed_nonce=8 * EPOCH_BLOCKS, watch_start_height=9 * EPOCH_BLOCKS), True, None,
    ),
    "never-submitted": (
        replace(STATUS, topics=(replace(TOPIC, confirmed_nonce=None),)), True, "no submission confirmed for",
    ),
    "no-window": (make_status(TOPIC, height=100 * EPOCH_BLOCKS), True, None),
    "window-after-pause": (
        make_status(
            TOPIC, height=100 * EPOCH_BLOCKS + 9, newest_nonce=100 * EPOCH_BLOCKS, oldest_unserved_nonce=100 * EPOCH_BLOCKS
        ), True, None,
    ),
    "window-after-pause-unserved": (
        make_status(
            TOPIC, height=101 * EPOCH_BLOCKS + 1, newest_nonce=101 * EPOCH_BLOCKS, oldest_unserved_nonce=100 * EPOCH_BLOCKS
        ), True, "1 block overdue",
    ),
    "no-node-short": (make_status(TOPIC, height_age=2 * 3600.0), True, None),
    "no-node-two-epochs": (make_status(TOPIC, height_age=2 * 3600.0 + 1), True, "no node has reported the chain's height"),
    "no-node-since-start": (
        replace(STATUS, uptime=7300.0, topics=(TopicStatus(67),)), True, "has reported the chain's height for 2 h 1 min",
    ),
    "no-node-short-epochs": (
        make_status(TOPIC, height_age=61.0, epoch_length=6, block_seconds=5.0), True, "no node has reported",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("status", "alive", "reason"), CASES.values(), ids=CASES.keys())
def test_health(status: DaemonStatus, alive: bool | None, reason: str | None) -> None:
    health = check_health(status, NOW, alive=alive)
    assert health.ok == (reason is None) == (not health.reasons)
    assert reason is None or reason in " ".join(health.reasons)


def test_every_reason_is_reported() -> None:
    overdue = replace(TOPIC, confirmed_nonce=EPOCH_BLOCKS)
    topics = (overdue, replace(overdue, topic_id=69), replace(TOPIC, topic_id=70))
    health = check_health(replace(STATUS, state="stopping", written_at=NOW - 1000, topics=topics), NOW)
    assert len(health.reasons) == 4


@given(
    served=st.lists(st.booleans(), min_size=1, max_size=60),
    length=st.integers(2, 1000),
    watch_start=st.integers(0, 5000),
    unserved_known=st.booleans(),
)
def test_health_fails_exactly_when_the_submission_is_two_epochs_old(
    served: list[bool], length: int, watch_start: int, unserved_known: bool
) -> None:
    """A topic with an epoch every `length` blocks; each is served in its second block, or not at all."""
    first = (watch_start // length + 1) * length
    topic = TopicStatus(67, watch_start_height=watch_start, height=watch_start, epoch_length=length, newest_nonce=None)
    last = None
    for number, is_served in enumerate(served):
        nonce = first + number * length
        for height in (nonce, nonce + 1, nonce + length - 1):
            if height == nonce + 1 and is_served:
                last = nonce
            oldest = first if last is None else last + length
            topic = replace(
                topic,
                height=height,
                newest_nonce=nonce,
                confirmed_nonce=last,
                oldest_unserved_nonce=oldest if unserved_known and oldest <= nonce else None,
            )
            due = max(watch_start, last if last is not None else watch_start) + 2 * length
            # Before the first submission, the two epochs count from the first window.
            slack = 0 if last is not None or not unserved_known else length
            assert (blocks_overdue(topic) > 0) <= (height > due)
            assert (blocks_overdue(topic) > 0) >= (height > due + slack)
