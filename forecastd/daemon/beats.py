"""Signs of progress: each loop of the daemon gives one at least every so often, or the watchdog is not fed any more.

A loop that waits gives a sign before and after, so a bound covers one wait or one step of work, not a whole cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event, Lock

from forecastd.clock import Clock


@dataclass(frozen=True)
class Late:
    """A loop without a sign of progress for `age` seconds, when `bound` were allowed."""

    name: str
    age: float
    bound: float


class Beats:
    """When each loop gave its last sign, and how long it may go without. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._last: dict[str, tuple[float, float]] = {}

    def beat(self, name: str, bound: float) -> None:
        """`name` makes progress; its next sign comes within `bound` seconds."""
        with self._lock:
            self._last[name] = (self._clock.monotonic(), bound)

    def end(self, name: str) -> None:
        """`name` has ended and gives no more signs."""
        with self._lock:
            self._last.pop(name, None)

    def late(self) -> list[Late]:
        """The loops that should have given a sign by now."""
        now = self._clock.monotonic()
        with self._lock:
            found = [Late(name, now - at, bound) for name, (at, bound) in self._last.items()]
        return [one for one in found if one.age > one.bound]


class BeatingEvent(Event):
    """An event whose waits are signs of progress: a wait of a known length comes to its end."""

    def __init__(self, beats: Beats, name: str, bound: float) -> None:
        super().__init__()
        self.name = name
        self._beats, self._bound = beats, bound

    def beat(self) -> None:
        """A sign of progress without a wait."""
        self._beats.beat(self.name, self._bound)

    def wait(self, timeout: float | None = None) -> bool:
        self._beats.beat(self.name, self._bound + (timeout or 0.0))
        try:
            return super().wait(timeout)
        finally:
            self.beat()
