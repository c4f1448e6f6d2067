"""A thread that works on the newest tick there is; those that were closed while it worked are passed over.

The one thing to know before changing it: there is one place for a tick that waits, never a queue. Work that takes longer than
a tick is done less often; what it gives is never older than one run of it, and nothing else waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from forecastd.runtime.unexpected import UnexpectedError, run_guarded


class LatestTickWorker:
    """Calls `work` with a tick. `passed_over` counts ticks there was no time for, `faults` errors that nobody foresaw."""

    def __init__(self, name: str, work: Callable[[int], None], setup: Callable[[], bool] = lambda: True) -> None:
        """`prepare` is called once in the thread, before everything else; the thread ends when it gives False."""
        self.name = name
        self.skipped_ticks = self.errors = 0
        self._setup, self._work = setup, work
        self._condition = threading.Condition()
        self._tick: int | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        """Whether it is to end, so that nobody waits for what it does any more."""
        return self._stopping

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def submit(self, tick: int) -> None:
        """This tick is closed. Returns at once."""
        with self._condition:
            if self._tick is not None and self._tick != tick:
                self.skipped_ticks += 1
            self._tick = tick
            self._condition.notify()

    def request_stop(self) -> None:
        """Have it end after what it is at. Returns at once."""
        with self._condition:
            self._stopping = True
            self._condition.notify()

    def join(self, timeout: float) -> None:
        """Wait for its end, so long at most."""
        if self._thread.ident is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
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
