"""What the fleet remembers: the rolling window in memory, and its copy on disk.

Rows go into memory when they come, and onto the disk when their tick is closed: one small append, of what is new since the
last one, late rows among it. Whatever goes wrong with the disk is told and costs what would be there after a restart.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from forecastd.clock import Clock, iso
from forecastd.fleet.contract import FeedAnswer
from forecastd.fleet.grid import Block, FleetWindow, PutReport, ticks_ahead
from forecastd.fleet.intake import Rows, parse_feed
from forecastd.fleet.store import LoadReport, TickStore
from forecastd.settings import Settings

log = logging.getLogger(__name__)

NAMED = 5  # servers that leave, in one line of the log


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
    """One fleet's window and its store. Any thread, but ticks are closed by one."""

    def __init__(self, settings: Settings, clock: Clock, store: TickStore, keep: int) -> None:
        """`keep`: how many ticks of each server are in memory. Nothing is loaded yet."""
        self.tally, self.store = Tally(), store
        self.loaded: LoadReport | None = None
        self._settings, self._clock, self._keep, self._step = settings, clock, keep, settings.fleet_step
        self._lock = threading.Lock()  # of the tally
        self.window = self._new_window()

    def _new_window(self) -> FleetWindow:
        ahead = ticks_ahead(self._settings.fleet_max_skew, self._step)
        return FleetWindow(self._step, self._keep, self._settings.fleet_max_servers, ahead=ahead)

    def load(self) -> None:
        """Bring the window back from disk. Rows that have come already would be lost: call it before any can."""
        began, window, now = self._clock.monotonic(), self._new_window(), self._clock.now()
        self.loaded = report = self.store.load(window, now)
        self.window = window
        age = "" if report.age_seconds is None else f", the newest {report.age_seconds:.0f} s old"
        log.info(
            "the window: %d rows of %d servers in %d ticks%s, loaded in %.2f s", report.rows, report.servers, report.ticks,
            age, self._clock.monotonic() - began, extra={"action": "window"},
        )  # fmt: skip

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

    def advance(self, tick: int) -> None:
        """The ticks up to this one are over."""
        gone = self.window.advance(tick)
        if gone:
            more = f" and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
            log.info(
                "nothing has come for the whole window from %s%s: gone", ", ".join(gone[:NAMED]), more,
                extra={"action": "server"},
            )  # fmt: skip

    def save(self) -> None:
        """Write down what is new since the last call."""
        self.store.append(self.window.unsaved(), self._clock.now())

    def set_back(self) -> None:
        """The clock was set back: what is in the future now is forgotten, the rest is loaded again."""
        self.save()
        self.load()

    def block(self, length: int) -> Block:
        """The newest `length` closed ticks of all servers."""
        window = self.window
        return window.block(window.newest, length)

    def as_json(self, now: float) -> dict[str, Any]:
        """As `GET /status` gives it."""
        state, loaded = self.store.state(), self.loaded
        return {
            "ticks": state.ticks,
            "age_seconds": None if state.newest is None else round(now - state.newest, 3),
            "oldest": None if state.oldest is None else iso(state.oldest),
            "loaded_age_seconds": None
            if loaded is None or loaded.age_seconds is None
            else round(loaded.age_seconds, 3),
            "damaged": 0 if loaded is None else loaded.damaged,
            "disk_bytes": round(state.megabytes * 1e6),
            "last_error": state.problem,
        }
