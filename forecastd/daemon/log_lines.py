"""What the daemon tells of itself in words: the heartbeat line, the status line, the summary at the end, and every stack."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence

from forecastd.clock import to_iso
from forecastd.status.model import DaemonStatus, TopicStatus

_MEGABYTE = 1_000_000


def format_duration(seconds: float) -> str:
    """A length of time in two units: `3 d 4 h`, `2 h 5 min`, `40 s`."""
    remaining, parts = max(0, int(seconds)), []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, remaining = divmod(remaining, size)
        parts += [f"{number} {unit}"] if number else []
    return " ".join(parts[:2]) or "0 s"


def heartbeat_line(status: DaemonStatus) -> str:
    """The hourly line."""
    cycles = sum(topic.cycles for topic in status.topics)
    missed = sum(topic.missed for topic in status.topics)
    ok = sum(endpoint.state == "ok" for endpoint in status.endpoints)
    memory = f"{(status.memory_bytes or 0) / _MEGABYTE:.0f} MB"
    children = f"{(status.children_memory_bytes or 0) / _MEGABYTE:.0f} MB"
    parts = [
        f"alive since {to_iso(status.started_at)} ({format_duration(status.uptime)})",
        f"{cycles} cycles",
        format_last_submission(status.topics),
        f"{missed} missed",
        f"{ok} of {len(status.endpoints)} endpoints ok",
        *(f"topic {topic.topic_id}: {format_window(topic)}" for topic in status.topics),
        f"memory {memory} and {children} in models' processes, {status.open_files} files",
    ]
    return "; ".join(parts)


def status_line(status: DaemonStatus) -> str:
    """The line that the service manager shows."""
    if status.state != "running":
        return status.state
    missed = sum(topic.missed for topic in status.topics)
    parts = [format_last_submission(status.topics), f"{missed} missed"]
    parts += [f"topic {topic.topic_id}: {format_window(topic)}" for topic in status.topics]
    return "; ".join(parts + ([status.attention] if status.attention else []))


def format_last_submission(topics: Sequence[TopicStatus]) -> str:
    """Which and when the last submission was, of all topics."""
    submissions = [
        (submission.last_submitted.submitted_at, submission.topic_id, submission.last_submitted)
        for submission in topics
        if submission.last_submitted
    ]
    if not submissions:
        return "nothing submitted yet"
    submitted_at, topic_id, submission = max(submissions, key=lambda submission: submission[0])
    return f"last submission topic {topic_id} nonce {submission.nonce} at {to_iso(submitted_at)}"


def format_window(topic: TopicStatus) -> str:
    """The open window or the next one, in a few words."""
    current = topic.window
    if current is None:
        return "inactive" if topic.active is False else "no window known"
    blocks, seconds = current.blocks_until_change or 0, format_duration(current.seconds_until_change or 0.0)
    if not current.open:
        return f"next window at height {current.first_height}, in about {seconds}"
    served = current.nonce is not None and (topic.confirmed_nonce or 0) >= current.nonce
    return f"window {current.nonce} open for {blocks} blocks more, {'served' if served else topic.phase}"


def shutdown_summary(status: DaemonStatus, reason: str) -> str:
    """The last words."""
    counts: dict[str, int] = {}
    for topic in status.topics:
        for count in topic.outcomes:
            counts[count.outcome] = counts.get(count.outcome, 0) + count.count
    outcomes = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in sorted(counts.items())) or "none"
    missed = sum(topic.missed for topic in status.topics)
    cycles = sum(topic.cycles for topic in status.topics)
    return f"ended: {reason}. Up {format_duration(status.uptime)}, {cycles} cycles: {outcomes}; {missed} epochs missed"


def format_stacks() -> str:
    """What every thread is doing right now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
