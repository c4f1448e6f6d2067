"""The daemon's status in sentences: the heartbeat line, the service manager's status line, and the shutdown summary."""

from __future__ import annotations

from collections.abc import Sequence

from forecastd.clock import to_iso
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.status.model import DaemonStatus, TopicStatus

_MEGABYTE = 1_000_000


def heartbeat_line(status: DaemonStatus) -> str:
    """The hourly line, which begins with `heartbeat`."""
    ok = sum(endpoint.state == "ok" for endpoint in status.endpoints)
    memory = f"{(status.memory_bytes or 0) / _MEGABYTE:.0f} MB"
    children = f"{(status.children_memory_bytes or 0) / _MEGABYTE:.0f} MB"
    parts = [
        f"heartbeat: running since {to_iso(status.started_at)} ({format_duration(status.uptime)})",
        format_count(sum(topic.cycles for topic in status.topics), "cycle"),
        format_last_submission(status.topics),
        _missed_epochs(status),
        f"{ok} of {format_count(len(status.endpoints), 'endpoint')} ok",
        *(f"topic {topic.topic_id}: {format_window(topic)}" for topic in status.topics),
        f"memory {memory}, {children} in model processes, {format_count(status.open_files or 0, 'open file')}",
    ]
    return "; ".join(parts)


def status_line(status: DaemonStatus) -> str:
    """The line that the service manager shows."""
    if status.state != "running":
        return status.state
    parts = [format_last_submission(status.topics), _missed_epochs(status)]
    parts += [f"topic {topic.topic_id}: {format_window(topic)}" for topic in status.topics]
    return "; ".join(parts + ([status.attention] if status.attention else []))


def format_last_submission(topics: Sequence[TopicStatus]) -> str:
    """Topic, nonce and time of the last submission of all topics."""
    submissions = [(topic.last_submitted, topic.topic_id) for topic in topics if topic.last_submitted]
    if not submissions:
        return "no submission yet"
    last, topic_id = max(submissions, key=lambda submission: submission[0].submitted_at)
    return f"last submission topic {topic_id} nonce {last.nonce} at {to_iso(last.submitted_at)}"


def format_window(topic: TopicStatus) -> str:
    """The open submission window or the next one, with the blocks and the time until it closes or opens."""
    window = topic.window
    if window is None:
        return "inactive" if topic.active is False else "next window unknown"
    blocks = format_count(window.blocks_until_change or 0, "block")
    duration = format_duration(window.seconds_until_change or 0.0)
    if not window.open:
        return f"next window at height {window.first_height}, in {blocks} (about {duration})"
    served = window.nonce is not None and (topic.confirmed_nonce or 0) >= window.nonce
    return f"window {window.nonce} closes in {blocks} (about {duration}), {'served' if served else topic.phase}"


def shutdown_summary(status: DaemonStatus, reason: str) -> str:
    """The daemon's last line: its uptime, its cycles by outcome, and the missed epochs."""
    counts: dict[str, int] = {}
    for topic in status.topics:
        for count in topic.outcomes:
            counts[count.outcome] = counts.get(count.outcome, 0) + count.count
    outcomes = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in sorted(counts.items())) or "none"
    cycles = format_count(sum(topic.cycles for topic in status.topics), "cycle")
    uptime, missed = format_duration(status.uptime), _missed_epochs(status)
    return f"shutdown complete: {reason}. Up {uptime}, {cycles}: {outcomes}; {missed}"


def _missed_epochs(status: DaemonStatus) -> str:
    return format_count(sum(topic.missed for topic in status.topics), "missed epoch")
