"""Who watches a pool: told everything in its order, from a thread of its own.

Supervision never waits for whoever watches it: one that is slow misses progress first and then the rest, and one that
raises hears no more. Either costs it what it would have heard, and no child its verdict.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread, current_thread

from forecastd.supervise.report import Event

log = logging.getLogger(__name__)

BACKLOG = 4096  # events that wait for a slow observer; reports of progress may fill half of it

Observer = Callable[[Event], None]


class Audience:
    """One observer, or none."""

    def __init__(self, observe: Observer | None) -> None:
        self._news = Condition()
        self._waiting: deque[Event] = deque()
        self._entered = self._heard = 0
        self._closed = self._gone = observe is None
        self._thread: Thread | None = None
        if observe is not None:
            self._thread = Thread(target=self._tell_all, args=(observe,), name="observer", daemon=True)
            self._thread.start()

    def tell(self, event: Event) -> None:
        """Have the observer told, if it keeps up. Returns at once."""
        with self._news:
            room = BACKLOG // 2 if event.kind == "progress" else BACKLOG
            if self._gone or len(self._waiting) >= room:
                return
            self._waiting.append(event)
            self._entered += 1
            self._news.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until the observer has heard all that was told so far, but no longer than this."""
        if current_thread() is self._thread:
            return
        with self._news:
            wanted = self._entered
            self._news.wait_for(lambda: self._gone or self._heard >= wanted, seconds)

    def close(self, seconds: float) -> None:
        """Tell what is left within this time, and nothing after it."""
        self.settle(seconds)
        with self._news:
            self._closed = True
            self._waiting.clear()
            self._news.notify_all()
        if self._thread is not None and current_thread() is not self._thread:
            self._thread.join(seconds)

    def _tell_all(self, observe: Observer) -> None:
        well = False
        try:
            while (event := self._next()) is not None:
                observe(event)
                with self._news:
                    self._heard += 1
                    self._news.notify_all()
            well = True
        finally:
            with self._news:
                self._gone = True
                self._waiting.clear()
                self._news.notify_all()
            if not well:
                log.error("What watches the model's processes failed and hears no more of them; they go on as ever.")

    def _next(self) -> Event | None:
        """The next event, when there is one; None when there will be none."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closed)
            return self._waiting.popleft() if self._waiting else None
