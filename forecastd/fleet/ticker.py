"""The beat of a fleet: a thread that closes each tick when its time is over, and a little later still.

Tick `k` is the time from `k * step` to `(k + 1) * step`; it is closed a tenth of a step after its end, because rows are on
their way for a moment. What comes later still is a late row, which has its place too. A clock that is set back by more than a
tick is told to whoever keeps the window, since ticks that were closed are in the future then.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable

from forecastd.clock import Clock, seconds_until
from forecastd.daemon.guarded import Unforeseen, guarded

log = logging.getLogger(__name__)

GRACE = 0.1  # of a step
LONGEST_WAIT = 1.0  # seconds; a clock may be set meanwhile
AFTER_A_FAULT = 1.0  # seconds


def closed_tick(now: float, step: int) -> int:
    """The newest tick that is closed at `now`."""
    return math.floor(now / step - GRACE) - 1


def closing_time(tick: int, step: int) -> float:
    """When this tick is closed, in unix seconds."""
    return (tick + 1 + GRACE) * step


class Ticker:
    """Calls `close` with the newest closed tick, each time there is one, and `set_back` with it when the clock was set back.

    `beat` is the monotonic second at which it last looked at the clock.
    """

    def __init__(self, clock: Clock, step: int, close: Callable[[int], None], set_back: Callable[[int], None]) -> None:
        self.beat = clock.monotonic()
        self._clock, self._step, self._close, self._set_back = clock, step, close, set_back
        self._last = closed_tick(clock.now(), step)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin. The ticks that are closed already are not told."""
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Have it end after the tick that is being closed. Returns at once."""
        self._stop.set()

    def join(self, seconds: float) -> bool:
        """Wait for its end, so long at most; whether it has come."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self.beat = self._clock.monotonic()
            wait = seconds_until(self._clock, closing_time(self._last + 1, self._step))
            if self._stop.wait(min(max(wait, 0.0), LONGEST_WAIT)):
                return
            if isinstance(guarded("the fleet's ticker", self._look), Unforeseen):
                self._stop.wait(AFTER_A_FAULT)

    def _look(self) -> None:
        newest, last = closed_tick(self._clock.now(), self._step), self._last
        if newest > last:
            self._last = newest
            self._close(newest)
        elif newest < last - 1:
            self._last = newest
            log.warning("The clock was set back by %d s.", (last - newest) * self._step, extra={"action": "clock"})
            self._set_back(newest)
