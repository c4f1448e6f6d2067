"""Whether the daemon does its work, by its pulse alone: a table of situations, and a worker that is followed for weeks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.health import judge
from forecastd.health.judge import blocks_overdue
from forecastd.pulse import Pulse, TopicPulse, WatchdogPulse

NOW = 1_790_000_000.0
EPOCH = 720
TOPIC = TopicPulse(
    67,
    active=True,
    height=10 * EPOCH + 100,
    height_age=3.0,
    newest_nonce=10 * EPOCH,
    confirmed_nonce=10 * EPOCH,
    watched_from=100,
    epoch_length=EPOCH,
    block_seconds=5.0,
)
PULSE = Pulse(4711, NOW - 36_000, NOW - 2, 36_000.0, "daemon", "running", "testnet", topics=(TOPIC,))


def told(topic: TopicPulse, **changes: float) -> Pulse:
    return replace(PULSE, topics=(replace(topic, **changes),))  # type: ignore[arg-type]


CASES: dict[str, tuple[Pulse, bool | None, str | None]] = {
    "all is well": (PULSE, True, None),
    "nothing is known yet": (replace(PULSE, up=5.0, state="starting", topics=(TopicPulse(67),)), True, None),
    "no topic": (replace(PULSE, topics=()), True, None),
    "it is ending": (replace(PULSE, state="stopping"), True, "is ending"),
    "it has ended": (replace(PULSE, state="ended"), False, "has ended, as it was told to"),
    "it was killed": (PULSE, False, "process 4711 is gone"),
    "in another container": (PULSE, None, None),
    "the watchdog would fire": (
        replace(PULSE, watchdog=WatchdogPulse(NOW - 90, 90.0, 60.0, would_fire=True)), True, "no progress for 90 s",
    ),
    "the watchdog is fed": (replace(PULSE, watchdog=WatchdogPulse(NOW - 9, 9.0, 60.0)), True, None),
    "it does not tell of itself any more": (replace(PULSE, written=NOW - 300), True, "has not told of itself for 300 s"),
    "it tells of itself seldom, as it should": (replace(PULSE, written=NOW - 300, every=60.0), True, None),
    "the clock was put back": (replace(PULSE, written=NOW + 90_000), True, None),
    "one epoch was missed, the next is not due": (told(TOPIC, confirmed_nonce=9 * EPOCH), True, None),
    "two epochs were missed": (
        told(TOPIC, confirmed_nonce=8 * EPOCH), True, "nothing has been confirmed since nonce 5760 for more than 2 epochs",
    ),
    "two epochs were missed, but it has just started": (
        told(TOPIC, confirmed_nonce=8 * EPOCH, watched_from=9 * EPOCH), True, None,
    ),
    "it never submitted, and has been there for long": (
        replace(PULSE, topics=(replace(TOPIC, confirmed_nonce=None),)), True, "nothing has been confirmed",
    ),
    "no window has opened for long": (told(TOPIC, height=100 * EPOCH), True, None),
    "a window opened after a long pause": (
        told(TOPIC, height=100 * EPOCH + 9, newest_nonce=100 * EPOCH, oldest_unserved=100 * EPOCH), True, None,
    ),
    "and it was not served": (
        told(TOPIC, height=101 * EPOCH + 1, newest_nonce=101 * EPOCH, oldest_unserved=100 * EPOCH), True, "1 blocks late",
    ),
    "no node for a while": (told(TOPIC, height_age=2 * 3600.0), True, None),
    "no node for two epochs": (told(TOPIC, height_age=2 * 3600.0 + 1), True, "no node has told the chain's height"),
    "no node since the start": (
        replace(PULSE, up=7300.0, topics=(TopicPulse(67),)), True, "no node has told the chain's height for 7300 s",
    ),
    "short epochs, no node for a minute": (
        told(TOPIC, height_age=61.0, epoch_length=6, block_seconds=5.0), True, "no node has told",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("pulse", "alive", "reason"), CASES.values(), ids=CASES.keys())
def test_health(pulse: Pulse, alive: bool | None, reason: str | None) -> None:
    health = judge(pulse, NOW, alive=alive)
    assert health.ok == (reason is None) == (not health.reasons)
    assert reason is None or reason in " ".join(health.reasons)


def test_every_reason_is_told() -> None:
    ill = replace(TOPIC, confirmed_nonce=EPOCH)
    topics = (ill, replace(ill, topic_id=69), replace(TOPIC, topic_id=70))
    health = judge(replace(PULSE, state="stopping", written=NOW - 1000, topics=topics), NOW)
    assert len(health.reasons) == 4


@given(
    served=st.lists(st.booleans(), min_size=1, max_size=60),
    length=st.integers(2, 1000),
    begun=st.integers(0, 5000),
    known=st.booleans(),
)
def test_it_is_unhealthy_just_while_the_last_submission_is_older_than_two_epochs(
    served: list[bool], length: int, begun: int, known: bool
) -> None:
    """A topic with an epoch every `length` blocks; each is served in its second block, or not at all."""
    first = (begun // length + 1) * length
    topic = TopicPulse(67, watched_from=begun, height=begun, epoch_length=length, newest_nonce=None)
    last = None
    for number, good in enumerate(served):
        nonce = first + number * length
        for height in (nonce, nonce + 1, nonce + length - 1):
            if height == nonce + 1 and good:
                last = nonce
            oldest = first if last is None else last + length
            topic = replace(
                topic,
                height=height,
                newest_nonce=nonce,
                confirmed_nonce=last,
                oldest_unserved=oldest if known and oldest <= nonce else None,
            )
            due = max(begun, last if last is not None else begun) + 2 * length
            slack = 0 if last is not None or not known else length  # before the first submission: from the first window
            assert (blocks_overdue(topic) > 0) <= (height > due)
            assert (blocks_overdue(topic) > 0) >= (height > due + slack)
