"""Supervision events, their delivery to an observer, and counters of what happened.

Invariant: supervision never waits for its observer. A slow observer loses progress events first, then other events; an
observer that raises is detached. Neither affects a child process or a verdict.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Condition, Thread, current_thread
from typing import Any, Literal

from forecastd.supervise import detector
from forecastd.supervise.detector import ProcessState

log = logging.getLogger(__name__)

EventKind = Literal[
    "launched", "ready", "dispatched", "progress", "slow", "hung", "died", "invalid_result", "deadline_exceeded",
    "stacks", "failed_over", "backing_off", "quarantined", "finished", "refused", "exited",
]  # fmt: skip

MAX_PENDING_EVENTS = 4096  # undelivered events for a slow observer; progress events may fill half of it


@dataclass(frozen=True)
class ProcessEvent:
    """Something that happened to a child process. `detail`: what the work itself reported with its progress."""

    kind: EventKind
    pid: int
    state: ProcessState
    job: str = ""
    text: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def without_child(cls, kind: EventKind, now: float, text: str) -> ProcessEvent:
        """An event of the pool as a whole: pid 0, and the state of a child that was just started."""
        return cls(kind, 0, detector.start(now, ""), text=text)


Observer = Callable[[ProcessEvent], None]


class EventDispatcher:
    """Delivers events in order to one observer, or to none, from a thread of its own."""

    def __init__(self, observer: Observer | None) -> None:
        self._condition = Condition()
        self._pending: deque[ProcessEvent] = deque()
        self._published = self._delivered = 0
        self._open = observer is not None
        self._thread: Thread | None = None
        if observer is not None:
            self._thread = Thread(target=self._deliver_all, args=(observer,), name="observer", daemon=True)
            self._thread.start()

    def publish(self, event: ProcessEvent) -> None:
        """Queue an event for the observer, unless its backlog is full. Returns at once."""
        capacity = MAX_PENDING_EVENTS // 2 if event.kind == "progress" else MAX_PENDING_EVENTS
        with self._condition:
            if self._open and len(self._pending) < capacity:
                self._pending.append(event)
                self._published += 1
                self._condition.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until every event published so far is delivered, at most this many seconds."""
        if current_thread() is not self._thread:
            with self._condition:
                target = self._published
                self._condition.wait_for(lambda: not self._open or self._delivered >= target, seconds)

    def close(self, seconds: float) -> None:
        """Deliver what is pending within this many seconds, then stop."""
        self.flush(seconds)
        self._stop()
        if self._thread is not None and current_thread() is not self._thread:
            self._thread.join(seconds)

    def _stop(self) -> None:
        with self._condition:
            self._open = False
            self._pending.clear()
            self._condition.notify_all()

    def _deliver_all(self, observer: Observer) -> None:
        completed = False
        try:
            while (event := self._next_event()) is not None:
                observer(event)
                with self._condition:
                    self._delivered += 1
                    self._condition.notify_all()
            completed = True
        finally:
            self._stop()
            if not completed:
                log.error("The event observer failed and was detached; the model processes are unaffected.")

    def _next_event(self) -> ProcessEvent | None:
        """Wait for the next event; None when the dispatcher is closed."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or not self._open)
            return self._pending.popleft() if self._pending else None


@dataclass
class SupervisionCounts:
    """Counters since the pool was opened. Only the pool's thread writes them."""

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
    jobs: Counter[str] = field(default_factory=Counter)  # by status: result, failed, refused

    def as_json(self) -> dict[str, object]:
        """The counters as one JSON object; hangs as a list of `{phase, bundle, count}`."""
        entries = sorted(dict(self.hangs).items())  # a copy: the pool's thread may change it now
        hangs = [{"phase": phase, "bundle": bundle, "count": count} for (phase, bundle), count in entries]
        plain = {name: value for name, value in vars(self).items() if isinstance(value, int)}
        return {**plain, "hangs": hangs, "jobs": dict(self.jobs)}
