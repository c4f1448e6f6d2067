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

from forecastd.clock import Clock, to_iso
from forecastd.fleet.contract import FeedResponse
from forecastd.fleet.ingest.feed import FleetRows, parse_feed
from forecastd.fleet.window.store import LoadReport, TickStore
from forecastd.fleet.window.window import FleetWindow, PutReport, WindowBlock, max_ticks_ahead
from forecastd.settings import Settings

log = logging.getLogger(__name__)

MAX_LOGGED_SERVERS = 5  # servers that leave, in one line of the log


@dataclass
class IngestCounters:
    """What came in since the start."""

    accepted: int = 0
    refused: int = 0
    duplicates: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)

    def as_json(self) -> dict[str, object]:
        """As `GET /status` gives it."""
        return {**vars(self), "by_reason": dict(self.by_reason)}


class PersistentWindow:
    """One fleet's window and its store. Any thread, but ticks are closed by one."""

    def __init__(self, settings: Settings, clock: Clock, store: TickStore, retained_ticks: int) -> None:
        """`keep`: how many ticks of each server are in memory. Nothing is loaded yet."""
        self.counters, self.store = IngestCounters(), store
        self.load_report: LoadReport | None = None
        self._settings, self._clock, self._retained_ticks, self._step = (
            settings,
            clock,
            retained_ticks,
            settings.fleet_step,
        )
        self._lock = threading.Lock()  # of the tally
        self.memory = self._empty_window()

    def _empty_window(self) -> FleetWindow:
        ahead = max_ticks_ahead(self._settings.fleet_max_clock_skew, self._step)
        return FleetWindow(self._step, self._retained_ticks, self._settings.fleet_max_servers, ticks_ahead=ahead)

    def load(self) -> None:
        """Bring the window back from disk. Rows that have come already would be lost: call it before any can."""
        started, window, now = self._clock.monotonic(), self._empty_window(), self._clock.now()
        self.load_report = report = self.store.load(window, now)
        self.memory = window
        age = "" if report.age_seconds is None else f", the newest {report.age_seconds:.0f} s old"
        log.info(
            "the window: %d rows of %d servers in %d ticks%s, loaded in %.2f s", report.rows, report.servers, report.ticks,
            age, self._clock.monotonic() - started, extra={"action": "window"},
        )  # fmt: skip

    def ingest(self, body: bytes, content_type: str | None) -> FeedResponse:
        """Judge a feed and put its rows in. Raises FeedError when it is none."""
        parsed = parse_feed(body, content_type, step=self._step)
        response = self.memory.ingest(parsed, now=self._clock.now(), max_skew=self._settings.fleet_max_clock_skew)
        with self._lock:
            self.counters.accepted += response.accepted
            self.counters.refused += response.refused
            self.counters.duplicates += response.duplicates
            self.counters.by_reason.update(response.counts)
        return response

    def put(self, rows: FleetRows) -> PutReport:
        """Put rows in that came another way and are known to be good."""
        report = self.memory.put(rows)
        with self._lock:
            self.counters.accepted += report.accepted
            self.counters.refused += report.refusals.total
            self.counters.duplicates += report.duplicates
            self.counters.by_reason.update(report.refusals.counts)
        return report

    def advance(self, tick: int) -> None:
        """The ticks up to this one are over."""
        removed = self.memory.advance(tick)
        if removed:
            suffix = f" and {len(removed) - MAX_LOGGED_SERVERS} more" if len(removed) > MAX_LOGGED_SERVERS else ""
            log.info(
                "nothing has come for the whole window from %s%s: gone", ", ".join(removed[:MAX_LOGGED_SERVERS]), suffix,
                extra={"action": "server"},
            )  # fmt: skip

    def save(self) -> None:
        """Write down what is new since the last call."""
        self.store.append(self.memory.unsaved(), self._clock.now())

    def rewind(self) -> None:
        """The clock was set back: what is in the future now is forgotten, the rest is loaded again."""
        self.save()
        self.load()

    def block(self, length: int) -> WindowBlock:
        """The newest `length` closed ticks of all servers."""
        window = self.memory
        return window.block(window.newest, length)

    def as_json(self, now: float) -> dict[str, Any]:
        """As `GET /status` gives it."""
        state, loaded = self.store.state(), self.load_report
        return {
            "ticks": state.ticks,
            "age_seconds": None if state.newest is None else round(now - state.newest, 3),
            "oldest": None if state.oldest is None else to_iso(state.oldest),
            "loaded_age_seconds": None
            if loaded is None or loaded.age_seconds is None
            else round(loaded.age_seconds, 3),
            "damaged": 0 if loaded is None else loaded.damaged_ticks,
            "disk_bytes": round(state.megabytes * 1e6),
            "last_error": state.last_error,
        }
