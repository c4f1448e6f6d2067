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
from forecastd.runtime.unexpected import UnexpectedError, run_guarded

log = logging.getLogger(__name__)

CLOSE_DELAY_STEPS = 0.1  # of a step
MAX_WAIT_SECONDS = 1.0  # seconds; a clock may be set meanwhile
ERROR_PAUSE_SECONDS = 1.0  # seconds


def newest_closed_tick(now: float, step: int) -> int:
    """The newest tick that is closed at `now`."""
    return math.floor(now / step - CLOSE_DELAY_STEPS) - 1


def closing_time(tick: int, step: int) -> float:
    """When this tick is closed, in unix seconds."""
    return (tick + 1 + CLOSE_DELAY_STEPS) * step


class Ticker:
    """Calls `close` with the newest closed tick, each time there is one, and `set_back` with it when the clock was set back.

    `beat` is the monotonic second at which it last looked at the clock.
    """

    def __init__(
        self, clock: Clock, step: int, on_close: Callable[[int], None], on_clock_set_back: Callable[[int], None]
    ) -> None:
        self.last_heartbeat = clock.monotonic()
        self._clock, self._step, self._on_close, self._on_clock_set_back = clock, step, on_close, on_clock_set_back
        self._last_closed = newest_closed_tick(clock.now(), step)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ticker", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin. The ticks that are closed already are not told."""
        self._thread.start()

    def request_stop(self) -> None:
        """Have it end after the tick that is being closed. Returns at once."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait for its end, so long at most; whether it has come."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self.last_heartbeat = self._clock.monotonic()
            wait = seconds_until(self._clock, closing_time(self._last_closed + 1, self._step))
            if self._stop.wait(min(max(wait, 0.0), MAX_WAIT_SECONDS)):
                return
            if isinstance(run_guarded("the fleet's ticker", self._check_clock), UnexpectedError):
                self._stop.wait(ERROR_PAUSE_SECONDS)

    def _check_clock(self) -> None:
        newest, last = newest_closed_tick(self._clock.now(), self._step), self._last_closed
        if newest > last:
            self._last_closed = newest
            self._on_close(newest)
        elif newest < last - 1:
            self._last_closed = newest
            log.warning("The clock was set back by %d s.", (last - newest) * self._step, extra={"action": "clock"})
            self._on_clock_set_back(newest)
