"""Liveness of a process's loops: each one sends a heartbeat within its own limit, or the watchdog gets no more pings.

A loop sends a heartbeat before and after each wait, so the limit covers one wait or one step of work, not a whole
cycle.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Event, Lock

from forecastd.clock import Clock


@dataclass(frozen=True)
class StalledLoop:
    """A loop whose last heartbeat is `age` seconds old, although at most `max_silence` seconds are allowed."""

    name: str
    age: float
    max_silence: float


class LivenessMonitor:
    """The time of each loop's last heartbeat, and the limit until the next. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._last_beats: dict[str, tuple[float, float]] = {}

    def beat(self, name: str, max_silence: float) -> None:
        """Record a heartbeat of the loop `name`; the next one is due within `max_silence` seconds."""
        with self._lock:
            self._last_beats[name] = (self._clock.monotonic(), max_silence)

    def remove(self, name: str) -> None:
        """Forget the loop `name`, which has ended."""
        with self._lock:
            self._last_beats.pop(name, None)

    def stalled_loops(self) -> list[StalledLoop]:
        """The loops whose heartbeat is overdue."""
        now = self._clock.monotonic()
        with self._lock:
            loops = [
                StalledLoop(name, now - beat_time, max_silence)
                for name, (beat_time, max_silence) in self._last_beats.items()
            ]
        return [loop for loop in loops if loop.age > loop.max_silence]


class HeartbeatEvent(Event):
    """An event whose waits count as progress: before a bounded wait, the limit is extended by its length."""

    def __init__(self, liveness: LivenessMonitor, name: str, max_silence: float) -> None:
        super().__init__()
        self.name = name
        self._liveness, self._max_silence = liveness, max_silence

    def beat(self) -> None:
        """Record a heartbeat without waiting."""
        self._liveness.beat(self.name, self._max_silence)

    def wait(self, timeout: float | None = None) -> bool:
        self._liveness.beat(self.name, self._max_silence + (timeout or 0.0))
        try:
            return super().wait(timeout)
        finally:
            self.beat()
