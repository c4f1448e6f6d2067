"""The thread that forecasts: it takes the newest tick there is, and what was closed meanwhile is passed over and counted.

The one thing to know before changing it: there is one place for a tick that waits, never a queue. A model that is slower than
the ticks makes forecasts less often; they are never older than one run of the model, and nothing else waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

from forecastd.daemon.guarded import Unforeseen, guarded


class Forecasting:
    """Calls `work` with a tick. `passed_over` counts ticks for which there was no time; `faults` unforeseen errors."""

    def __init__(self, prepare: Callable[[], bool], work: Callable[[int], None]) -> None:
        """`prepare` is called once, first, in the thread; False from it ends the thread."""
        self.passed_over = self.faults = 0
        self._prepare, self._work = prepare, work
        self._wake = threading.Condition()
        self._tick: int | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="forecasting", daemon=True)

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

    def offer(self, tick: int, *, anew: bool = False) -> None:
        """This tick is closed. Returns at once. `anew`: it is the same one again, for another model."""
        with self._wake:
            if self._tick is not None and not anew:
                self.passed_over += 1
            self._tick = tick
            self._wake.notify()

    def tell_to_stop(self) -> None:
        """Have it end after the tick it is at. Returns at once."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def join(self, seconds: float) -> None:
        """Wait for its end."""
        if self._thread.ident is not None:
            self._thread.join(seconds)

    def _run(self) -> None:
        if guarded("the start of the fleet's model", self._prepare) is not True:
            return
        while (tick := self._next()) is not None:
            if isinstance(guarded("the fleet's forecast", partial(self._work, tick)), Unforeseen):
                self.faults += 1

    def _next(self) -> int | None:
        with self._wake:
            while self._tick is None and not self._stopping:
                self._wake.wait()
            tick, self._tick = self._tick, None
            return None if self._stopping else tick
