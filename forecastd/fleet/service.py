"""The running fleet: rows in, a forecast after each tick, and what everybody reads.

Three kinds of threads, none of which waits for another: requests put rows into memory and read what is published, the
ticker closes ticks, and one thread forecasts. What is published is one immutable value, replaced as a whole.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from forecastd import __version__
from forecastd.clock import Clock, ScaledClock, iso
from forecastd.fleet.contract import FeedAnswer
from forecastd.fleet.intake import Rows
from forecastd.fleet.memory import FleetMemory
from forecastd.fleet.ticker import Ticker
from forecastd.settings import Settings

log = logging.getLogger(__name__)

KEEP = 720  # ticks of each server in memory at least: an hour of 5 s
LATE_BEATS = 10.0  # seconds without a look at the clock after which the ticker is as good as dead


@dataclass(frozen=True)
class Health:
    """Whether the fleet does what it is for; `reasons` it does not, and `warnings` of what is wrong beside that."""

    ok: bool
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """As `GET /healthz` gives it."""
        return {"ok": self.ok, "reasons": list(self.reasons), "warnings": list(self.warnings)}


class Fleet:
    """One fleet. Use as a context manager: entering starts its threads, leaving ends them."""

    def __init__(self, settings: Settings, clock: Clock, *, synthetic: bool = False) -> None:
        self.settings, self.clock, self.synthetic = settings, clock, synthetic
        self.step = settings.fleet_step
        self.memory = FleetMemory(settings, clock, KEEP)
        self._started_at, self._started = clock.now(), clock.monotonic()
        self._ticker = Ticker(clock, self.step, self._close_tick, self._close_tick)

    def __enter__(self) -> Fleet:
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads. Nothing is left to be saved."""
        self._ticker.stop()

    def feed(self, body: bytes, content_type: str | None) -> FeedAnswer:
        """Take a feed in. Raises FeedError when the body is none."""
        return self.memory.take(body, content_type)

    def put(self, rows: Rows) -> None:
        """Take rows in that are known to be good, such as a simulator's."""
        self.memory.put(rows)

    def _close_tick(self, tick: int) -> None:
        self.memory.close_tick(tick)

    def health(self) -> Health:
        """Whether every thread does its work."""
        reasons = []
        if not self._ticker.alive or self.clock.monotonic() - self._ticker.beat > LATE_BEATS:
            reasons.append("no ticks are closed any more: the ticker stands still")
        return Health(not reasons, tuple(reasons))

    def status(self) -> dict[str, Any]:
        """As `GET /status` gives it."""
        now, window = self.clock.now(), self.memory.window
        newest = window.newest
        return {
            "version": __version__,
            "started_at": iso(self._started_at),
            "now": iso(now),
            "uptime_seconds": round(self.clock.monotonic() - self._started, 3),
            "step_seconds": self.step,
            "synthetic": self.synthetic,
            "speed": self.clock.speed if isinstance(self.clock, ScaledClock) else 1.0,
            "tick": {
                "newest": newest,
                "time": iso(newest * self.step),
                "age_seconds": round(now - (newest + 1) * self.step, 3),
            },
            "servers": {"total": len(window)},
            "ingest": self.memory.tally.as_json(),
        }
