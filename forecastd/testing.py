"""Fakes for tests of code that uses forecastd."""

from __future__ import annotations


class ManualClock:
    """A `Clock` that stands still until it is set or advanced.

    `wall`: unix seconds. `elapsed`: monotonic seconds. Both may be assigned, to let the wall clock jump alone.
    """

    def __init__(self, wall: float = 1_600_000_000.0, elapsed: float = 1_000.0) -> None:
        self.wall, self.elapsed = wall, elapsed

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.wall += seconds
        self.elapsed += seconds
