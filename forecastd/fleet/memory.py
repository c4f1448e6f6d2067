"""What the fleet remembers: the rolling window in memory, and its copy on disk.

Rows go into memory when they come, and onto the disk when their tick is closed: one small append, of what is new since the
last one, late rows among it. Whatever goes wrong with the disk is told and costs what would be there after a restart.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field

from forecastd.clock import Clock
from forecastd.fleet.contract import FeedAnswer
from forecastd.fleet.grid import Block, FleetWindow, PutReport, ticks_ahead
from forecastd.fleet.intake import Rows, parse_feed
from forecastd.fleet.ticker import closed_tick
from forecastd.settings import Settings


@dataclass
class Tally:
    """What came in since the start."""

    accepted: int = 0
    refused: int = 0
    duplicates: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        """As `GET /status` gives it."""
        return {**vars(self), "by_reason": dict(self.by_reason)}


class FleetMemory:
    """One fleet's window. Any thread."""

    def __init__(self, settings: Settings, clock: Clock, keep: int) -> None:
        """`keep`: how many ticks of each server."""
        self.tally = Tally()
        self._settings, self._clock, self._step = settings, clock, settings.fleet_step
        self._lock = threading.Lock()  # of the tally
        ahead = ticks_ahead(settings.fleet_max_skew, self._step)
        self.window = FleetWindow(self._step, keep, settings.fleet_max_servers, ahead=ahead)
        self.window.advance(closed_tick(clock.now(), self._step))

    def take(self, body: bytes, content_type: str | None) -> FeedAnswer:
        """Judge a feed and put its rows in. Raises FeedError when it is none."""
        parsed = parse_feed(body, content_type, step=self._step)
        answer = self.window.take(parsed, now=self._clock.now(), max_skew=self._settings.fleet_max_skew)
        with self._lock:
            self.tally.accepted += answer.accepted
            self.tally.refused += answer.refused
            self.tally.duplicates += answer.duplicates
            self.tally.by_reason.update(answer.counts)
        return answer

    def put(self, rows: Rows) -> PutReport:
        """Put rows in that came another way and are known to be good."""
        report = self.window.put(rows)
        with self._lock:
            self.tally.accepted += report.accepted
            self.tally.refused += report.refusals.total
            self.tally.duplicates += report.duplicates
            self.tally.by_reason.update(report.refusals.counts)
        return report

    def close_tick(self, tick: int) -> None:
        """The ticks up to this one are over."""
        self.window.advance(tick)

    def block(self, length: int) -> Block:
        """The newest `length` closed ticks of all servers."""
        return self.window.block(self.window.newest, length)
