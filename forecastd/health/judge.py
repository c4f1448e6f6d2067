"""Whether the daemon does its work: a pure function of its pulse.

The one thing to know before changing it: a process that runs is not yet healthy, and a topic that opens no windows is not
yet ill. What counts is how many blocks ago the oldest epoch opened that should have been served and was not.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.pulse import Pulse, TopicPulse

EPOCHS = 2  # a confirmed submission may be this old
EPOCH_SECONDS = 3600.0  # of an epoch whose length no node has told yet
QUIET_WRITINGS = 12  # intervals after which a pulse that is not renewed counts as stopped
QUIET_SECONDS = 60.0  # at the least


@dataclass(frozen=True)
class Health:
    """Healthy or not, and why not, in sentences. What is fine has no reasons."""

    ok: bool
    reasons: tuple[str, ...] = ()


def judge(pulse: Pulse, now: float, *, alive: bool | None = True) -> Health:
    """The health that `pulse` means at `now` (unix seconds). `alive`: whether its process runs, None when unknown."""
    if alive is False:
        return Health(False, (_gone(pulse),))
    reasons = [*_state(pulse), *_stopped(pulse, now), *_watchdog(pulse)]
    for topic in pulse.topics:
        reasons += _topic(topic, pulse.up)
    return Health(not reasons, tuple(reasons))


def _gone(pulse: Pulse) -> str:
    if pulse.state == "ended":
        return "The daemon has ended, as it was told to."
    return f"The daemon's process {pulse.pid} is gone, and it had not been told to end. Look at the end of its log."


def _state(pulse: Pulse) -> list[str]:
    if pulse.state in {"stopping", "ended"}:
        return ["The daemon is ending."]
    return []


def _stopped(pulse: Pulse, now: float) -> list[str]:
    """A pulse that is not renewed although its process lives. (A clock that was put back says nothing.)"""
    quiet = now - pulse.written
    if quiet > max(QUIET_SECONDS, QUIET_WRITINGS * pulse.every):
        return [
            f"The daemon has not told of itself for {quiet:.0f} s: it hangs, was stopped, or cannot write STATE_DIR."
        ]
    return []


def _watchdog(pulse: Pulse) -> list[str]:
    watchdog = pulse.watchdog
    if watchdog is None or not watchdog.would_fire:
        return []
    since = "" if watchdog.age is None else f" for {watchdog.age:.0f} s"
    return [f"The daemon's loop has made no progress{since}: the watchdog would end it."]


def _topic(topic: TopicPulse, up: float) -> list[str]:
    reasons = []
    length = topic.epoch_length or 0
    seconds = length * (topic.block_seconds or 0.0) or EPOCH_SECONDS
    silent = up if topic.height_age is None else topic.height_age
    if silent > EPOCHS * seconds:
        reasons.append(f"Topic {topic.topic_id}: no node has told the chain's height for {silent:.0f} s.")
    late = blocks_overdue(topic)
    if late > 0:
        after = "" if topic.confirmed_nonce is None else f" since nonce {topic.confirmed_nonce}"
        reasons.append(
            f"Topic {topic.topic_id}: nothing has been confirmed{after} for more than {EPOCHS} epochs; it is "
            f"{late} blocks late at height {topic.height}."
        )
    return reasons


def blocks_overdue(topic: TopicPulse) -> int:
    """For how many blocks the last confirmed submission has been older than two epochs in which windows opened; 0: it is not.

    A process that has just begun to look has two epochs' time.
    """
    height, newest, length = topic.height, topic.newest_nonce, topic.epoch_length
    if height is None or newest is None or not length:
        return 0
    confirmed = topic.confirmed_nonce
    if confirmed is not None and newest <= confirmed:
        return 0
    begun = topic.watched_from if topic.watched_from is not None else newest
    unserved = topic.oldest_unserved
    if unserved is None:
        unserved = begun if confirmed is None else confirmed + length
    # The epoch before the one that was not served began a length earlier: two epochs from there.
    limit = max(unserved + (EPOCHS - 1) * length, begun + EPOCHS * length)
    return max(0, height - limit)
