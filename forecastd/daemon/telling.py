"""What the daemon tells of itself in words: the heartbeat line, the status line, the summary at the end, and every stack."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence

from forecastd.clock import iso
from forecastd.pulse import Pulse, TopicPulse

_MEGABYTE = 1_000_000


def span(seconds: float) -> str:
    """A length of time in two units: `3 d 4 h`, `2 h 5 min`, `40 s`."""
    left, parts = max(0, int(seconds)), []
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        number, left = divmod(left, size)
        parts += [f"{number} {unit}"] if number else []
    return " ".join(parts[:2]) or "0 s"


def heartbeat(pulse: Pulse) -> str:
    """The hourly line."""
    cycles = sum(topic.cycles for topic in pulse.topics)
    missed = sum(topic.missed for topic in pulse.topics)
    ok = sum(endpoint.state == "ok" for endpoint in pulse.endpoints)
    memory = f"{(pulse.memory_bytes or 0) / _MEGABYTE:.0f} MB"
    children = f"{(pulse.children_memory_bytes or 0) / _MEGABYTE:.0f} MB"
    parts = [
        f"alive since {iso(pulse.started)} ({span(pulse.up)})",
        f"{cycles} cycles",
        last_submission(pulse.topics),
        f"{missed} missed",
        f"{ok} of {len(pulse.endpoints)} endpoints ok",
        *(f"topic {topic.topic_id}: {window(topic)}" for topic in pulse.topics),
        f"memory {memory} and {children} in models' processes, {pulse.open_files} files",
    ]
    return "; ".join(parts)


def status(pulse: Pulse) -> str:
    """The line that the service manager shows."""
    if pulse.state != "running":
        return pulse.state
    missed = sum(topic.missed for topic in pulse.topics)
    told = [last_submission(pulse.topics), f"{missed} missed"]
    told += [f"topic {topic.topic_id}: {window(topic)}" for topic in pulse.topics]
    return "; ".join(told + ([pulse.trouble] if pulse.trouble else []))


def last_submission(topics: Sequence[TopicPulse]) -> str:
    """Which and when the last submission was, of all topics."""
    found = [(one.last_submitted.at, one.topic_id, one.last_submitted) for one in topics if one.last_submitted]
    if not found:
        return "nothing submitted yet"
    at, topic_id, last = max(found, key=lambda one: one[0])
    return f"last submission topic {topic_id} nonce {last.nonce} at {iso(at)}"


def window(topic: TopicPulse) -> str:
    """The open window or the next one, in a few words."""
    seen = topic.window
    if seen is None:
        return "inactive" if topic.active is False else "no window known"
    blocks, seconds = seen.changes_in_blocks or 0, span(seen.changes_in_seconds or 0.0)
    if not seen.open:
        return f"next window at height {seen.first_height}, in about {seconds}"
    served = seen.nonce is not None and (topic.confirmed_nonce or 0) >= seen.nonce
    return f"window {seen.nonce} open for {blocks} blocks more, {'served' if served else topic.phase}"


def summary(pulse: Pulse, reason: str) -> str:
    """The last words."""
    counts: dict[str, int] = {}
    for topic in pulse.topics:
        for one in topic.outcomes:
            counts[one.outcome] = counts.get(one.outcome, 0) + one.count
    outcomes = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in sorted(counts.items())) or "none"
    missed = sum(topic.missed for topic in pulse.topics)
    cycles = sum(topic.cycles for topic in pulse.topics)
    return f"ended: {reason}. Up {span(pulse.up)}, {cycles} cycles: {outcomes}; {missed} epochs missed"


def stacks() -> str:
    """What every thread is doing right now."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        parts.append(f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}")
    return "\n".join(parts)
