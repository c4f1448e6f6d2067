"""The only module that reads a clock.

Wall time is for display and for the age of data; monotonic time measures durations and timeouts. Code below the command
line receives a `Clock`, so a test can simulate a year in a second.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A source of wall and monotonic time."""

    def now(self) -> float:
        """Wall time in seconds since 1970-01-01T00:00:00Z."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never decreases."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ReplayClock:
    """Wall time is fixed at a reference time; monotonic time is the machine's own. For `--as-of`."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return time.monotonic()


class ScaledClock:
    """Wall time runs `speed` times as fast as real time; monotonic time is the machine's own. For rehearsals.

    Timeouts use monotonic time, so a rehearsal at speed 10 does not shorten them.
    """

    def __init__(self, speed: float = 1.0, clock: Clock | None = None, *, since: float | None = None) -> None:
        """Create a scaled clock.

        Args:
            speed: a finite number above 0.
            clock: the reference clock; the machine's own clocks by default.
            since: unix time at which both clocks agree; now by default. A restarted rehearsal that gets the same value
                continues its own time.
        """
        if not 0 < speed < float("inf"):
            raise ValueError("the speed of a clock must be a finite number above 0")
        self.speed = speed
        self._clock = clock or SystemClock()
        self._start_wall, self._start_monotonic = self._clock.now(), self._clock.monotonic()
        if since is not None:
            self._start_wall = since + (self._start_wall - since) * speed

    def now(self) -> float:
        if self.speed == 1.0:
            return self._clock.now()  # follows adjustments of the reference clock
        return self._start_wall + (self._clock.monotonic() - self._start_monotonic) * self.speed

    def monotonic(self) -> float:
        return self._clock.monotonic()


def seconds_until(clock: Clock, moment: float) -> float:
    """Real seconds to wait until `clock` shows `moment` (unix seconds); negative when it is in the past."""
    speed = clock.speed if isinstance(clock, ScaledClock) else 1.0
    return (moment - clock.now()) / speed


class TimeBudget:
    """A time limit that starts at construction. `seconds` None: no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left, None without a limit. Raises TimeoutError when no time is left."""
        if self._end is None:
            return None
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining


def to_iso(seconds: float) -> str:
    """Format unix seconds as `2019-10-17T09:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str) -> float:
    """Parse an ISO 8601 time into unix seconds; a time without an offset is UTC.

    Raises:
        ValueError: `text` is not an ISO 8601 time.
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
