"""What supervision tells: events for whoever watches, and counts for those who look later."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from forecastd.supervise.detector import ProcessState

EventKind = Literal[
    "launched", "ready", "dispatched", "progress", "slow", "hung", "died", "bad", "late", "stacks", "handed_over",
    "backing_off", "quarantined", "finished", "refused", "gone",
]  # fmt: skip


@dataclass(frozen=True)
class ProcessEvent:
    """Something that happened to a child. `detail` is what the work itself told with its progress."""

    kind: EventKind
    pid: int
    state: ProcessState
    job: str = ""
    text: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class SupervisionCounts:
    """How often what happened since the pool was opened. Written by the pool's thread only."""

    launches: int = 0
    replacements: int = 0
    failovers: int = 0
    recovered_stalls: int = 0
    crashes: int = 0
    invalid_results: int = 0
    deadlines_exceeded: int = 0
    stale_messages: int = 0
    quarantines: int = 0
    hangs: Counter[tuple[str, str]] = field(default_factory=Counter)  # by phase and bundle
    jobs: Counter[str] = field(default_factory=Counter)  # by how they ended: result, failed, refused

    def as_json(self) -> dict[str, object]:
        """The counts as one JSON object; hangs as a list of `{phase, bundle, count}`."""
        entries = sorted(dict(self.hangs).items())  # a copy: the pool's thread may be at it
        hangs = [{"phase": phase, "bundle": bundle, "count": count} for (phase, bundle), count in entries]
        plain = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {**plain, "hangs": hangs, "jobs": dict(self.jobs)}


def hang_line(now: float, pid: int, state: ProcessState, *, job: str, reason: str, actions: str) -> str:
    """The one line that an operator needs of a hang, in one piece."""
    return (
        f"Model process {pid} hung: {reason}. Phase {state.phase}, job {job or 'none'}, at {state.percent:.0f} %, "
        f"last sign of life {now - state.last_heartbeat:.1f} s ago, last progress {now - state.last_progress:.1f} s ago. "
        f"{actions}"
    )
