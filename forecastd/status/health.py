"""Whether the daemon does its work: a pure function of its pulse.

The one thing to know before changing it: a process that runs is not yet healthy, and a topic that opens no windows is not
yet ill. What counts is how many blocks ago the oldest epoch opened that should have been served and was not.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.status.model import DaemonStatus, TopicStatus

MAX_UNCONFIRMED_EPOCHS = 2  # a confirmed submission may be this old
DEFAULT_EPOCH_SECONDS = 3600.0  # of an epoch whose length no node has told yet
MAX_MISSED_WRITES = 12  # intervals after which a pulse that is not renewed counts as stopped
MIN_STALE_SECONDS = 60.0  # at the least


@dataclass(frozen=True)
class DaemonHealth:
    """Healthy or not, and why not, in sentences. What is fine has no reasons."""

    ok: bool
    reasons: tuple[str, ...] = ()


def check_health(status: DaemonStatus, now: float, *, alive: bool | None = True) -> DaemonHealth:
    """The health that `pulse` means at `now` (unix seconds). `alive`: whether its process runs, None when unknown."""
    if alive is False:
        return DaemonHealth(False, (_exit_reason(status),))
    reasons = [*_state_reasons(status), *_stale_reasons(status, now), *_watchdog_reasons(status)]
    for topic in status.topics:
        reasons += _topic_reasons(topic, status.uptime)
    return DaemonHealth(not reasons, tuple(reasons))


def _exit_reason(status: DaemonStatus) -> str:
    if status.state == "ended":
        return "The daemon has ended, as it was told to."
    return f"The daemon's process {status.pid} is gone, and it had not been told to end. Look at the end of its log."


def _state_reasons(status: DaemonStatus) -> list[str]:
    if status.state in {"stopping", "ended"}:
        return ["The daemon is ending."]
    return []


def _stale_reasons(status: DaemonStatus, now: float) -> list[str]:
    """A pulse that is not renewed although its process lives. (A clock that was put back says nothing.)"""
    age = now - status.written_at
    if age > max(MIN_STALE_SECONDS, MAX_MISSED_WRITES * status.write_interval):
        return [f"The daemon has not told of itself for {age:.0f} s: it hangs, was stopped, or cannot write STATE_DIR."]
    return []


def _watchdog_reasons(status: DaemonStatus) -> list[str]:
    watchdog = status.watchdog
    if watchdog is None or not watchdog.would_fire:
        return []
    since = "" if watchdog.age is None else f" for {watchdog.age:.0f} s"
    return [f"The daemon's loop has made no progress{since}: the watchdog would end it."]


def _topic_reasons(topic: TopicStatus, up: float) -> list[str]:
    reasons = []
    epoch_length = topic.epoch_length or 0
    epoch_seconds = epoch_length * (topic.block_seconds or 0.0) or DEFAULT_EPOCH_SECONDS
    height_age = up if topic.height_age is None else topic.height_age
    if height_age > MAX_UNCONFIRMED_EPOCHS * epoch_seconds:
        reasons.append(f"Topic {topic.topic_id}: no node has told the chain's height for {height_age:.0f} s.")
    overdue = blocks_overdue(topic)
    if overdue > 0:
        since_nonce = "" if topic.confirmed_nonce is None else f" since nonce {topic.confirmed_nonce}"
        reasons.append(
            f"Topic {topic.topic_id}: nothing has been confirmed{since_nonce} for more than {MAX_UNCONFIRMED_EPOCHS} epochs; it is "
            f"{overdue} blocks late at height {topic.height}."
        )
    return reasons


def blocks_overdue(topic: TopicStatus) -> int:
    """For how many blocks the last confirmed submission has been older than two epochs in which windows opened; 0: it is not.

    A process that has just begun to look has two epochs' time.
    """
    height, newest_nonce, epoch_length = topic.height, topic.newest_nonce, topic.epoch_length
    if height is None or newest_nonce is None or not epoch_length:
        return 0
    confirmed_nonce = topic.confirmed_nonce
    if confirmed_nonce is not None and newest_nonce <= confirmed_nonce:
        return 0
    watch_start = topic.watch_start_height if topic.watch_start_height is not None else newest_nonce
    unserved_nonce = topic.oldest_unserved_nonce
    if unserved_nonce is None:
        unserved_nonce = watch_start if confirmed_nonce is None else confirmed_nonce + epoch_length
    # The epoch before the one that was not served began a length earlier: two epochs from there.
    limit = max(
        unserved_nonce + (MAX_UNCONFIRMED_EPOCHS - 1) * epoch_length,
        watch_start + MAX_UNCONFIRMED_EPOCHS * epoch_length,
    )
    return max(0, height - limit)
