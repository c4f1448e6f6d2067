"""The time at and after which no cycle starts, kept although the wall clock may jump.

A clock that jumps past the deadline would end the daemon for good, one that jumps back would let it go on. So after a jump
the wall clock is not believed until the chain's own time confirms it. Meanwhile time goes on from where it was, or from the
chain's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from forecastd.clock import to_iso
from forecastd.daemon.schedule import clock_jump
from forecastd.runtime.background import BackgroundTask
from forecastd.submission.epochs import CLOCK_TOLERANCE_SECONDS

log = logging.getLogger(__name__)

QUERY_INTERVAL_SECONDS = 60.0  # seconds between two questions to the chain for its time


class SubmissionDeadline:
    """`at` in unix seconds, None for never. `block_time` asks the chain for the time of its latest block."""

    def __init__(self, timestamp: float | None, mono: float, wall: float, block_time: Callable[[], float]) -> None:
        self.timestamp = timestamp
        self._block_time = block_time
        self._last_times = (mono, wall)
        self._offset: float | None = None  # of the time that is believed against the monotonic one; None: wall time
        self._query: BackgroundTask[float] | None = None
        self._queried_at = mono

    def tick(self, mono: float, wall: float) -> None:
        """Look at both clocks. Call it every second or so, from one thread."""
        previous, self._last_times = self._last_times, (mono, wall)
        jump = clock_jump(mono, wall, *previous)
        if jump:
            log.warning(
                "This machine's clock has jumped by %.0f s, or the machine was asleep; it is %s now.", jump, to_iso(wall),
                extra={"action": "clock"},
            )  # fmt: skip
            if self._offset is None:
                self._offset = previous[1] - previous[0]
            self._queried_at = mono - QUERY_INTERVAL_SECONDS
        if self._offset is not None:
            self._verify_wall_clock(mono, wall)

    def has_passed(self, mono: float, wall: float) -> bool:
        """Whether no cycle may start any more. Any thread."""
        offset = self._offset
        return self.timestamp is not None and (wall if offset is None else mono + offset) >= self.timestamp

    def _verify_wall_clock(self, mono: float, wall: float) -> None:
        """Ask the chain for the time, and believe the wall clock again when the two agree."""
        if self._query is None:
            if mono - self._queried_at >= QUERY_INTERVAL_SECONDS:
                self._queried_at = mono
                self._query = BackgroundTask("asking for the time", self._block_time)
            return
        if not self._query.done:
            return
        chain_time, self._query = self._query.result, None
        if not isinstance(chain_time, float):
            log.debug("the chain does not tell the time: %s", chain_time, extra={"action": "clock"})
        elif abs(chain_time - wall) <= CLOCK_TOLERANCE_SECONDS:
            self._offset = None
        else:
            self._offset = chain_time - mono
            log.warning(
                "This machine's clock says %s, the chain %s: the deadline is kept by the chain's. Set the clock.",
                to_iso(wall), to_iso(chain_time), extra={"action": "clock"},
            )  # fmt: skip
