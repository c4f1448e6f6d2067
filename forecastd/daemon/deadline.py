"""The time at and after which no cycle starts, kept although the wall clock may jump.

A clock that jumps past the deadline would end the daemon for good, one that jumps back would let it go on. So after a jump
the wall clock is not believed until the chain's own time confirms it. Meanwhile time goes on from where it was, or from the
chain's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from forecastd.clock import iso
from forecastd.daemon.background import Background
from forecastd.epoch import CLOCK_TOLERANCE
from forecastd.schedule import jumped

log = logging.getLogger(__name__)

ASK_AGAIN = 60.0  # seconds between two questions to the chain for its time


class Deadline:
    """`at` in unix seconds, None for never. `block_time` asks the chain for the time of its latest block."""

    def __init__(self, at: float | None, mono: float, wall: float, block_time: Callable[[], float]) -> None:
        self.at = at
        self._block_time = block_time
        self._before = (mono, wall)
        self._offset: float | None = None  # of the time that is believed against the monotonic one; None: wall time
        self._asking: Background[float] | None = None
        self._asked = mono

    def tick(self, mono: float, wall: float) -> None:
        """Look at both clocks. Call it every second or so, from one thread."""
        earlier, self._before = self._before, (mono, wall)
        parted = jumped(mono, wall, *earlier)
        if parted:
            log.warning(
                "This machine's clock has jumped by %.0f s, or the machine was asleep; it is %s now.", parted, iso(wall),
                extra={"action": "clock"},
            )  # fmt: skip
            if self._offset is None:
                self._offset = earlier[1] - earlier[0]
            self._asked = mono - ASK_AGAIN
        if self._offset is not None:
            self._confirm(mono, wall)

    def passed(self, mono: float, wall: float) -> bool:
        """Whether no cycle may start any more. Any thread."""
        offset = self._offset
        return self.at is not None and (wall if offset is None else mono + offset) >= self.at

    def _confirm(self, mono: float, wall: float) -> None:
        """Ask the chain for the time, and believe the wall clock again when the two agree."""
        if self._asking is None:
            if mono - self._asked >= ASK_AGAIN:
                self._asked = mono
                self._asking = Background("asking for the time", self._block_time)
            return
        if not self._asking.done:
            return
        told, self._asking = self._asking.result, None
        if not isinstance(told, float):
            log.debug("the chain does not tell the time: %s", told, extra={"action": "clock"})
        elif abs(told - wall) <= CLOCK_TOLERANCE:
            self._offset = None
        else:
            self._offset = told - mono
            log.warning(
                "This machine's clock says %s, the chain %s: the deadline is kept by the chain's. Set the clock.",
                iso(wall), iso(told), extra={"action": "clock"},
            )  # fmt: skip
