"""The ticker: a thread that acts on each tick at a fixed delay.

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

CLOSE_STEPS = 1.1  # from the start of a tick to its closing, in steps
MAX_WAIT_SECONDS = 1.0  # the clock may be set while the thread waits
ERROR_PAUSE_SECONDS = 1.0


def newest_due_tick(now: float, step: int, delay: float = CLOSE_STEPS) -> int:
    """The newest tick whose start is at least `delay` steps before `now`."""
    return math.floor(now / step - delay)


def due_time(tick: int, step: int, delay: float = CLOSE_STEPS) -> float:
    """`delay` steps after the start of this tick, in unix seconds."""
    return (tick + delay) * step


class Ticker(threading.Thread):
    """Calls `on_tick` with the newest tick that is due, and `on_clock_set_back` with it after the clock was set back.

    `last_heartbeat`: the monotonic second of the last look at the clock.
    """

    def __init__(
        self, name: str, clock: Clock, step: int, on_tick: Callable[[int], None],
        on_clock_set_back: Callable[[int], None], *, delay: float = CLOSE_STEPS,
    ) -> None:  # fmt: skip
        """`delay`: steps from the start of a tick to its call. Ticks that are due already are not reported."""
        super().__init__(name=name, daemon=True)
        self.last_heartbeat = clock.monotonic()
        self._clock, self._step, self._delay = clock, step, delay
        self._on_tick, self._on_clock_set_back = on_tick, on_clock_set_back
        self._last_tick = newest_due_tick(clock.now(), step, delay)
        self._stop_event = threading.Event()

    def request_stop(self) -> None:
        """Stop after the tick that is being worked on. Returns at once."""
        self._stop_event.set()

    def run(self) -> None:
        """The thread's work."""
        while True:
            self.last_heartbeat = self._clock.monotonic()
            wait = seconds_until(self._clock, due_time(self._last_tick + 1, self._step, self._delay))
            if self._stop_event.wait(min(max(wait, 0.0), MAX_WAIT_SECONDS)):
                return
            if isinstance(run_guarded(self.name, self._check_clock), UnexpectedError):
                self._stop_event.wait(ERROR_PAUSE_SECONDS)

    def _check_clock(self) -> None:
        newest, last = newest_due_tick(self._clock.now(), self._step, self._delay), self._last_tick
        if newest > last:
            self._last_tick = newest
            self._on_tick(newest)
        elif newest < last - 1:
            self._last_tick = newest
            log.warning("The clock was set back by %d s.", (last - newest) * self._step, extra={"action": "clock"})
            self._on_clock_set_back(newest)
