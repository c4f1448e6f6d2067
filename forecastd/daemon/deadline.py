"""The submission deadline, after which no cycle starts, kept even if the wall clock jumps.

Invariant: a wall clock that jumped is not trusted until the chain's time confirms it. Otherwise a jump past the
deadline would stop the daemon for good, and a jump back would let it continue. Until then, time advances from the
last trusted time, or from the chain's time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from forecastd.clock import to_iso
from forecastd.daemon.schedule import clock_jump
from forecastd.runtime.background import BackgroundTask
from forecastd.submission.cycle import CLOCK_TOLERANCE_SECONDS

log = logging.getLogger(__name__)

QUERY_INTERVAL_SECONDS = 60.0  # between two queries of the chain's time


class SubmissionDeadline:
    """`timestamp` in unix seconds, None for no deadline. `block_time` queries the time of the chain's latest block."""

    def __init__(self, timestamp: float | None, mono: float, wall: float, block_time: Callable[[], float]) -> None:
        self.timestamp = timestamp
        self._block_time = block_time
        self._last_times = (mono, wall)
        self._offset: float | None = None  # trusted time minus monotonic time; None: trust the wall clock
        self._query: BackgroundTask[float] | None = None
        self._queried_at = mono

    def tick(self, mono: float, wall: float) -> None:
        """Compare both clocks. Call it every second or so, always from the same thread."""
        previous, self._last_times = self._last_times, (mono, wall)
        jump = clock_jump(mono, wall, *previous)
        if jump:
            log.warning(
                "This machine's clock jumped by %.0f s, or the machine was suspended; it now shows %s.",
                jump, to_iso(wall), extra={"action": "clock"},
            )  # fmt: skip
            if self._offset is None:
                self._offset = previous[1] - previous[0]
            self._queried_at = mono - QUERY_INTERVAL_SECONDS
        if self._offset is not None:
            self._verify_wall_clock(mono, wall)

    def has_passed(self, mono: float, wall: float) -> bool:
        """Whether the deadline has passed. Thread-safe."""
        offset = self._offset
        return self.timestamp is not None and (wall if offset is None else mono + offset) >= self.timestamp

    def _verify_wall_clock(self, mono: float, wall: float) -> None:
        """Query the chain's time, and trust the wall clock again when the two agree."""
        if self._query is None:
            if mono - self._queried_at >= QUERY_INTERVAL_SECONDS:
                self._queried_at = mono
                self._query = BackgroundTask("the query of the block time", self._block_time)
            return
        if not self._query.done:
            return
        chain_time, self._query = self._query.result, None
        if not isinstance(chain_time, float):
            log.debug("cannot query the chain's time: %s", chain_time, extra={"action": "clock"})
        elif abs(chain_time - wall) <= CLOCK_TOLERANCE_SECONDS:
            self._offset = None
        else:
            self._offset = chain_time - mono
            log.warning(
                "This machine's clock shows %s, the chain's %s; the deadline follows the chain. Set the clock.",
                to_iso(wall), to_iso(chain_time), extra={"action": "clock"},
            )  # fmt: skip
