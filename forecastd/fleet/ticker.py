"""The ticker: a thread that closes each tick shortly after its time is over.

Tick `k` is the time from `k * step` to `(k + 1) * step`. It closes a tenth of a step after its end, because rows need
a moment to arrive. A row that arrives later still goes to its own tick. If the clock is set back by more than a tick,
the owner of the window is notified, because closed ticks are then in the future.
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
MAX_WAIT_SECONDS = 1.0  # the clock may be set while the thread waits
ERROR_PAUSE_SECONDS = 1.0


def newest_closed_tick(now: float, step: int) -> int:
    """The newest tick that is closed at `now`."""
    return math.floor(now / step - CLOSE_DELAY_STEPS) - 1


def closing_time(tick: int, step: int) -> float:
    """When this tick closes, in unix seconds."""
    return (tick + 1 + CLOSE_DELAY_STEPS) * step


class Ticker:
    """Calls `on_close` with the newest closed tick, and `on_clock_set_back` with it after the clock was set back.

    `last_heartbeat`: the monotonic second of the last look at the clock.
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
        """Start the thread. It does not report ticks that are closed already."""
        self._thread.start()

    def request_stop(self) -> None:
        """Stop after the tick that is being closed. Returns at once."""
        self._stop.set()

    def join(self, timeout: float) -> bool:
        """Wait at most `timeout` seconds for the end of the thread; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            self.last_heartbeat = self._clock.monotonic()
            wait = seconds_until(self._clock, closing_time(self._last_closed + 1, self._step))
            if self._stop.wait(min(max(wait, 0.0), MAX_WAIT_SECONDS)):
                return
            if isinstance(run_guarded("the fleet ticker", self._check_clock), UnexpectedError):
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
