"""The health of the daemon: a pure function of its status.

Invariant: a running process is not necessarily healthy, and a topic without open windows is not unhealthy. What
counts is the number of blocks since the oldest epoch opened that should have been served and was not.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.runtime.formatting import format_count, format_duration
from forecastd.status.model import DaemonStatus, TopicStatus

MAX_UNCONFIRMED_EPOCHS = 2  # maximum age of the last confirmed submission
DEFAULT_EPOCH_SECONDS = 3600.0  # of an epoch whose length is not known yet
MAX_MISSED_WRITES = 12  # write intervals after which a status that was not renewed is stale
MIN_STALE_SECONDS = 60.0  # a status that is younger is never stale


@dataclass(frozen=True)
class DaemonHealth:
    """Whether the daemon is healthy; if not, one sentence per reason."""

    ok: bool
    reasons: tuple[str, ...] = ()


def check_health(status: DaemonStatus, now: float, *, alive: bool | None = True) -> DaemonHealth:
    """The health at `now` (unix seconds). `alive`: whether the daemon's process is running, None when unknown."""
    if alive is False:
        return DaemonHealth(False, (_exit_reason(status),))
    reasons = [*_state_reasons(status), *_stale_reasons(status, now), *_watchdog_reasons(status)]
    for topic in status.topics:
        reasons += _topic_reasons(topic, status.uptime)
    return DaemonHealth(not reasons, tuple(reasons))


def _exit_reason(status: DaemonStatus) -> str:
    if status.state == "ended":
        return "The daemon has exited as requested."
    return f"The daemon's process {status.pid} exited unexpectedly. Look at the end of its log."


def _state_reasons(status: DaemonStatus) -> list[str]:
    if status.state in {"stopping", "ended"}:
        return ["The daemon is shutting down."]
    return []


def _stale_reasons(status: DaemonStatus, now: float) -> list[str]:
    """The status is not renewed although the process is running. A clock that was set back is not an error."""
    age = now - status.written_at
    if age > max(MIN_STALE_SECONDS, MAX_MISSED_WRITES * status.write_interval):
        since = format_duration(age)
        return [f"The daemon has not written its status for {since}: it hangs, is stopped, or cannot write STATE_DIR."]
    return []


def _watchdog_reasons(status: DaemonStatus) -> list[str]:
    watchdog = status.watchdog
    if watchdog is None or not watchdog.would_fire:
        return []
    since = "" if watchdog.age is None else f" for {format_duration(watchdog.age)}"
    return [f"The daemon's loop has made no progress{since}: the watchdog would kill it."]


def _topic_reasons(topic: TopicStatus, up: float) -> list[str]:
    reasons = []
    epoch_length = topic.epoch_length or 0
    epoch_seconds = epoch_length * (topic.block_seconds or 0.0) or DEFAULT_EPOCH_SECONDS
    height_age = up if topic.height_age is None else topic.height_age
    if height_age > MAX_UNCONFIRMED_EPOCHS * epoch_seconds:
        reasons.append(
            f"Topic {topic.topic_id}: no node has reported the chain's height for {format_duration(height_age)}."
        )
    overdue = blocks_overdue(topic)
    if overdue > 0:
        since_nonce = "" if topic.confirmed_nonce is None else f" since nonce {topic.confirmed_nonce}"
        reasons.append(
            f"Topic {topic.topic_id}: no submission confirmed{since_nonce} for more than {MAX_UNCONFIRMED_EPOCHS} epochs; "
            f"{format_count(overdue, 'block')} overdue at height {topic.height}."
        )
    return reasons


def blocks_overdue(topic: TopicStatus) -> int:
    """Blocks since the last confirmed submission became older than two epochs in which windows opened; 0 if it is not.

    A process that has just started gets two epochs.
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
    # The two epochs count from the start of the epoch before the unserved one, which is one epoch length earlier.
    limit = max(
        unserved_nonce + (MAX_UNCONFIRMED_EPOCHS - 1) * epoch_length,
        watch_start + MAX_UNCONFIRMED_EPOCHS * epoch_length,
    )
    return max(0, height - limit)
