"""Signs of progress: each loop of the daemon gives one at least every so often, or the watchdog is not fed any more.

A loop that waits gives a sign before and after, so a bound covers one wait or one step of work, not a whole cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event, Lock

from forecastd.clock import Clock


@dataclass(frozen=True)
class StalledLoop:
    """A loop without a sign of progress for `age` seconds, when `bound` were allowed."""

    name: str
    age: float
    max_silence: float


class LivenessMonitor:
    """When each loop gave its last sign, and how long it may go without. Any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._last_beats: dict[str, tuple[float, float]] = {}

    def beat(self, name: str, max_silence: float) -> None:
        """`name` makes progress; its next sign comes within `bound` seconds."""
        with self._lock:
            self._last_beats[name] = (self._clock.monotonic(), max_silence)

    def remove(self, name: str) -> None:
        """`name` has ended and gives no more signs."""
        with self._lock:
            self._last_beats.pop(name, None)

    def stalled_loops(self) -> list[StalledLoop]:
        """The loops that should have given a sign by now."""
        now = self._clock.monotonic()
        with self._lock:
            loops = [
                StalledLoop(name, now - beat_time, max_silence)
                for name, (beat_time, max_silence) in self._last_beats.items()
            ]
        return [loop for loop in loops if loop.age > loop.max_silence]


class HeartbeatEvent(Event):
    """An event whose waits are signs of progress: a wait of a known length comes to its end."""

    def __init__(self, liveness: LivenessMonitor, name: str, max_silence: float) -> None:
        super().__init__()
        self.name = name
        self._liveness, self._max_silence = liveness, max_silence

    def beat(self) -> None:
        """A sign of progress without a wait."""
        self._liveness.beat(self.name, self._max_silence)

    def wait(self, timeout: float | None = None) -> bool:
        self._liveness.beat(self.name, self._max_silence + (timeout or 0.0))
        try:
            return super().wait(timeout)
        finally:
            self.beat()
