"""The one place that reads a clock.

Wall time is for people and for the age of data; monotonic time decides how long something took or may take. Code below
the command line is handed a `Clock`, so a test can run a year in a second.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Wall time in seconds since 1970-01-01T00:00:00Z."""

    def monotonic(self) -> float:
        """Seconds that never go back, from an arbitrary start."""


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


class ReplayClock:
    """Wall time stands still at a reference time; monotonic time is the machine's own. For `--as-of`."""

    def __init__(self, now: float) -> None:
        self._now = now

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return time.monotonic()


class ScaledClock:
    """Wall time that runs `speed` times as fast as it does; monotonic time is the machine's own. For rehearsals.

    Limits on how long something may take are monotonic, so a rehearsal at speed 10 leaves a model as much time as ever.
    """

    def __init__(self, speed: float = 1.0, clock: Clock | None = None, *, since: float | None = None) -> None:
        """`speed` above 0. `clock`: what it runs beside, the machine's own clocks when not given.

        `since`: the unix time at which both showed the same, now when not given. A rehearsal that is stopped and started
        again goes on with its own time when both starts are given the same one.
        """
        if not 0 < speed < float("inf"):
            raise ValueError("the speed of a clock must be a number above 0")
        self.speed = speed
        self._clock = clock or SystemClock()
        self._start_wall, self._start_monotonic = self._clock.now(), self._clock.monotonic()
        if since is not None:
            self._start_wall = since + (self._start_wall - since) * speed

    def now(self) -> float:
        if self.speed == 1.0:
            return self._clock.now()  # which may be set right meanwhile, unlike one that is made up
        return self._start_wall + (self._clock.monotonic() - self._start_monotonic) * self.speed

    def monotonic(self) -> float:
        return self._clock.monotonic()


def seconds_until(clock: Clock, moment: float) -> float:
    """Seconds to wait, as this machine's own time goes, until `clock` shows `moment`; negative when that is over."""
    speed = clock.speed if isinstance(clock, ScaledClock) else 1.0
    return (moment - clock.now()) / speed


class TimeBudget:
    """A span of time that began when this was made. `seconds` None: without end."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def remaining(self) -> float | None:
        """Seconds left, None without end. Raises TimeoutError when it is over."""
        if self._end is None:
            return None
        remaining = self._end - time.monotonic()
        if remaining <= 0:
            raise TimeoutError
        return remaining


def to_iso(seconds: float) -> str:
    """Unix seconds as `2019-10-17T09:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def from_iso(text: str) -> float:
    """Unix seconds of an ISO 8601 time; one without an offset is taken as UTC.

    Raises:
        ValueError: `text` is not an ISO 8601 time.
    """
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
