"""Who watches a pool: told everything in its order, from a thread of its own.

Supervision never waits for whoever watches it: one that is slow misses progress first and then the rest, and one that
raises hears no more. Either costs it what it would have heard, and no child its verdict.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread, current_thread

from forecastd.supervise.events import ProcessEvent

log = logging.getLogger(__name__)

MAX_PENDING_EVENTS = 4096  # events that wait for a slow observer; reports of progress may fill half of it

Observer = Callable[[ProcessEvent], None]


class EventDispatcher:
    """One observer, or none."""

    def __init__(self, observer: Observer | None) -> None:
        self._condition = Condition()
        self._pending: deque[ProcessEvent] = deque()
        self._published = self._delivered = 0
        self._closed = self._detached = observer is None
        self._thread: Thread | None = None
        if observer is not None:
            self._thread = Thread(target=self._deliver_all, args=(observer,), name="observer", daemon=True)
            self._thread.start()

    def publish(self, event: ProcessEvent) -> None:
        """Have the observer told, if it keeps up. Returns at once."""
        with self._condition:
            capacity = MAX_PENDING_EVENTS // 2 if event.kind == "progress" else MAX_PENDING_EVENTS
            if self._detached or len(self._pending) >= capacity:
                return
            self._pending.append(event)
            self._published += 1
            self._condition.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until the observer has heard all that was told so far, but no longer than this."""
        if current_thread() is self._thread:
            return
        with self._condition:
            target = self._published
            self._condition.wait_for(lambda: self._detached or self._delivered >= target, seconds)

    def close(self, seconds: float) -> None:
        """Tell what is left within this time, and nothing after it."""
        self.flush(seconds)
        with self._condition:
            self._closed = True
            self._pending.clear()
            self._condition.notify_all()
        if self._thread is not None and current_thread() is not self._thread:
            self._thread.join(seconds)

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
            with self._condition:
                self._detached = True
                self._pending.clear()
                self._condition.notify_all()
            if not completed:
                log.error("What watches the model's processes failed and hears no more of them; they go on as ever.")

    def _next_event(self) -> ProcessEvent | None:
        """The next event, when there is one; None when there will be none."""
        with self._condition:
            self._condition.wait_for(lambda: self._pending or self._closed)
            return self._pending.popleft() if self._pending else None
