"""The rolling window in memory together with its copy on disk.

Rows go into memory when they arrive. When their tick closes, everything new since the last save is appended to the
file, late rows included. Disk errors are logged and only affect what a restart finds.
"""

from __future__ import annotations

import logging
import threading

from forecastd.clock import Clock, to_iso
from forecastd.fleet.contract import FeedResponse
from forecastd.fleet.documents import IngestCounters, StoredWindow
from forecastd.fleet.ingest.feed import FleetRows, parse_feed
from forecastd.fleet.window.store import LoadReport, TickStore
from forecastd.fleet.window.window import FleetWindow, WindowBlock, max_ticks_ahead
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.settings import Settings

log = logging.getLogger(__name__)

MAX_LOGGED_SERVERS = 5  # removed servers named in one log line


class PersistentWindow:
    """The window of one fleet and its store. Any thread may call it, but only one closes ticks."""

    def __init__(self, settings: Settings, clock: Clock, store: TickStore, retained_ticks: int) -> None:
        """`retained_ticks`: ticks of each server in memory. Does not load anything."""
        self.counters, self.store = IngestCounters(), store
        self.load_report: LoadReport | None = None
        self._settings, self._clock, self._retained_ticks = settings.fleet, clock, retained_ticks
        self._lock = threading.Lock()  # guards the counters
        self.memory = self._empty_window()

    def _empty_window(self) -> FleetWindow:
        settings = self._settings
        ahead = max_ticks_ahead(settings.max_clock_skew, settings.step)
        return FleetWindow(settings.step, self._retained_ticks, settings.max_servers, ticks_ahead=ahead)

    def load(self) -> None:
        """Load the window from disk. Rows that are in memory already are lost: call it before any can arrive."""
        started, window, now = self._clock.monotonic(), self._empty_window(), self._clock.now()
        self.load_report = report = self.store.load(window, now)
        self.memory = window
        age = "" if report.age_seconds is None else f", newest {format_duration(report.age_seconds)} old,"
        log.info(
            "loaded the window: %s of %s in %s%s in %.2f s", format_count(report.rows, "row"),
            format_count(report.servers, "server"), format_count(report.ticks, "tick"), age,
            self._clock.monotonic() - started, extra={"action": "window"},
        )  # fmt: skip

    def ingest(self, body: bytes, content_type: str | None) -> FeedResponse:
        """Parse a feed and put its rows in. Raises FeedError if the body is not one."""
        parsed = parse_feed(body, content_type, step=self._settings.step)
        return self._count(self.memory.ingest(parsed, now=self._clock.now(), max_skew=self._settings.max_clock_skew))

    def put(self, rows: FleetRows) -> FeedResponse:
        """Put in rows that are known to be valid."""
        return self._count(self.memory.put(rows))

    def _count(self, response: FeedResponse) -> FeedResponse:
        with self._lock:
            self.counters = self.counters.add(response)
        return response

    def advance(self, tick: int) -> None:
        """Close the ticks up to this one."""
        removed = self.memory.advance(tick)
        if removed:
            suffix = f" and {len(removed) - MAX_LOGGED_SERVERS} more" if len(removed) > MAX_LOGGED_SERVERS else ""
            log.info(
                "removed servers without a row in the whole window: %s%s", ", ".join(removed[:MAX_LOGGED_SERVERS]), suffix,
                extra={"action": "server"},
            )  # fmt: skip

    def save(self) -> None:
        """Save everything that is new since the last call."""
        self.store.append(self.memory.unsaved(), self._clock.now())

    def rewind(self) -> None:
        """After the clock was set back: drop what is now in the future, and load the rest again."""
        self.save()
        self.load()

    def block(self, length: int) -> WindowBlock:
        """The newest `length` closed ticks of all servers."""
        window = self.memory
        return window.block(window.newest, length)

    def document(self, now: float) -> StoredWindow:
        """The `window` part of `GET /status`."""
        state, loaded = self.store.state(), self.load_report
        loaded_age = None if loaded is None else loaded.age_seconds
        return StoredWindow(
            ticks=state.ticks,
            age_seconds=None if state.newest is None else round(now - state.newest, 3),
            oldest=None if state.oldest is None else to_iso(state.oldest),
            loaded_age_seconds=None if loaded_age is None else round(loaded_age, 3),
            damaged=0 if loaded is None else loaded.damaged_ticks,
            disk_bytes=round(state.megabytes * 1e6),
            last_error=state.last_error,
        )
