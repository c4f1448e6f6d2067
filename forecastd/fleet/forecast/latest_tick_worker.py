"""A thread that works on the newest closed tick; ticks closed during the work are skipped.

Invariant: one tick can wait, never a queue. Work that takes longer than a tick runs less often; its result is never
older than one run, and nothing else waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from forecastd.runtime.unexpected import UnexpectedError, run_guarded


class LatestTickWorker(threading.Thread):
    """Calls `work` with a tick. `skipped_ticks` counts ticks without a run, `errors` counts unexpected exceptions."""

    def __init__(self, name: str, work: Callable[[int], None], setup: Callable[[], bool] = lambda: True) -> None:
        """`setup` is called once in the thread, before any work; the thread ends if it returns False."""
        super().__init__(name=name, daemon=True)
        self.skipped_ticks = self.errors = 0
        self._setup, self._work = setup, work
        self._condition = threading.Condition()
        self._tick: int | None = None
        self._stopping = False

    def submit(self, tick: int) -> None:
        """Report that this tick is closed. Returns at once."""
        with self._condition:
            if self._tick is not None and self._tick != tick:
                self.skipped_ticks += 1
            self._tick = tick
            self._condition.notify()

    def request_stop(self) -> None:
        """Stop after the current work. Returns at once."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def run(self) -> None:
        """The thread's work."""
        if run_guarded(f"the start of {self.name}", self._setup) is not True:
            return
        while (tick := self._next_tick()) is not None:
            if isinstance(run_guarded(self.name, partial(self._work, tick)), UnexpectedError):
                self.errors += 1

    def _next_tick(self) -> int | None:
        with self._condition:
            while self._tick is None and not self._stopping:
                self._condition.wait()
            tick, self._tick = self._tick, None
            return None if self._stopping else tick
