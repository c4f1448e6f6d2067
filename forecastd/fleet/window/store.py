"""The fleet's window on disk: one small append per tick, nothing is rewritten, so a restart has the window at once.

Invariant: the file is a cache. It may be lost, but it must never return wrong data, and no error of the file may stop
the fleet from serving. A tick is one row: the servers that reported, as one blob with a checksum; late rows are a
further part of their tick. `kill -9` loses the tick in progress; a power failure may also lose the last
`SYNC_SECONDS`, the interval at which committed data is forced to the disk.

One process writes (see `FileLock`), any number of others may read meanwhile. What cannot be written (a full disk) is
kept in memory, within bounds, and written later.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np

from forecastd.clock import to_iso
from forecastd.fleet.contract import METRIC_NAMES
from forecastd.fleet.history.chunks import HistoryChunk, merge_parts
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.window import tick_tables
from forecastd.fleet.window.tick_tables import (
    DAY_SECONDS,
    SELECT_TICKS,
    SavedTick,
    ServerKey,
    TickLayout,
    TickReader,
    row_key,
    tick_start,
)
from forecastd.fleet.window.window import FleetWindow
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.formatting import format_duration
from forecastd.runtime.sqlite import FileUnavailableError, SqliteCache

log = logging.getLogger(__name__)

FILE_NAME, LOCK_NAME = "window.sqlite", "serve.lock"  # in the state directory of a fleet; see `FileLock`
BUSY_TIMEOUT_SECONDS = 1.0  # the ticker must not be blocked for long
STALE_SECONDS = 1800.0  # an older window is logged
SYNC_SECONDS = 60.0
MAX_PENDING_BATCHES = 720  # batches of rows kept in memory while the disk is full
PENDING_PER_WRITE = 16  # of these, per tick
CHUNK_TICKS = 64  # ticks of the history per read
MAX_STEP_SECONDS = 3600  # the longest possible tick
MAX_SKIPPED_TICKS = 10_000  # unreadable ticks in a row after which a history ends


@dataclass(frozen=True)
class LoadReport:
    """The result of loading the window."""

    ticks: int = 0
    rows: int = 0
    servers: int = 0
    damaged_ticks: int = 0  # ticks with a wrong checksum, skipped
    newest: float | None = None  # unix time of the newest saved tick, even if too old; None for an empty store
    age_seconds: float | None = None  # age of the newest tick


@dataclass(frozen=True)
class StoreState:
    """What the file contains, and why it cannot be written."""

    ticks: int = 0
    oldest: float | None = None
    newest: float | None = None
    megabytes: float = 0.0
    last_error: str | None = None


class TickStore(Closeable):
    """The ticks of a fleet in one SQLite file: the newest `hours` of them and at most `megabytes`.

    No method raises for a damaged, full, busy, read-only or deleted file: an error is logged once, reported by
    `last_error` until it is over, and meanwhile the store acts as if it were empty.
    """

    def __init__(
        self,
        path: Path,
        metrics: tuple[str, ...] = METRIC_NAMES,
        *,
        step: int = 5,
        hours: float = 48.0,
        megabytes: float = 2048.0,
        read_only: bool = False,
    ) -> None:
        self.path, self.metrics, self.step = path, metrics, step
        self.hours, self.megabytes = hours, megabytes
        self.last_error: str | None = None  # why the file cannot be written; None while it can
        self.dropped_batches = 0  # batches that could not be written in time
        self._file = SqliteCache(
            path, application_id=tick_tables.APPLICATION_ID, schema=tick_tables.SCHEMA, salvage=tick_tables.salvage,
            loss_message="the rest is lost", busy_seconds=BUSY_TIMEOUT_SECONDS, read_only=read_only,
            max_damaged_files=1,  # a damaged file may be large, and its readable rows are in the new one
        )  # fmt: skip
        self._layout = TickLayout(step, metrics)
        self._pending: deque[FleetRows] = deque()
        self._lock = Lock()
        self._cache = _WriterCache(-1, None, {}, 0)
        self._synced_at = 0.0

    def close(self) -> None:
        """Close the file. Nothing is pending for it."""
        self._file.close()

    def append(self, rows: FleetRows, now: float) -> bool:
        """Save rows, such as those of `FleetWindow.unsaved`, as one part of each of their ticks; returns whether it
        succeeded.

        It is one transaction: a kill loses all of it or nothing. It also deletes ticks that are too old at `now`, or
        too many, a few at a time. Rows that cannot be written are kept for a later call.
        """
        with self._lock:
            if len(rows) and not self._try_write([rows], now):
                self._pending.append(rows)
                if len(self._pending) > MAX_PENDING_BATCHES:
                    self._pending.popleft()
                    self.dropped_batches += 1
                return False
            while self._pending:
                batch = list(islice(self._pending, PENDING_PER_WRITE))
                if not self._try_write(batch, now):
                    return False
                for _ in batch:
                    self._pending.popleft()
                if len(rows):
                    break  # the rest follows after the next ticks
            return True

    def _try_write(self, batch: list[FleetRows], now: float) -> bool:
        try:
            self._cache = self._file.run(lambda db: self._write_batch(db, batch, now))
        except FileUnavailableError as error:
            if self.last_error is None:
                log.warning("Cannot write the fleet window %s: %s. Rows are kept in memory.", self.path, error)
            self.last_error = str(error)
            return False
        if self.last_error is not None:
            message = "The fleet window %s is writable again; %d batches are pending, %d were dropped."
            log.info(message, self.path, len(self._pending), self.dropped_batches)
            self.last_error = None
        self._sync(now)
        return True

    def _sync(self, now: float) -> None:
        """Force committed data to the disk, once per `SYNC_SECONDS`."""
        if abs(now - self._synced_at) < SYNC_SECONDS:
            return
        self._synced_at = now
        try:
            self._file.run(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        except FileUnavailableError as error:  # nothing is lost yet; the next write logs a lasting error
            log.debug("Cannot sync the fleet window %s: %s", self.path, error)

    def _write_batch(self, db: sqlite3.Connection, batch: list[FleetRows], now: float) -> _WriterCache:
        """Insert a batch; returns the writer's cache as it is after the commit."""
        cache, today = self._cache, int(now // DAY_SECONDS)
        if cache.opening != self._file.connection_count:
            cache = _WriterCache(self._file.connection_count, None, {}, tick_tables.count_rows(db))
            tick_tables.record_layout(db, self._layout)
        if cache.day != today:  # once a day every server is recorded again, and unused ones are deleted
            cache = replace(cache, day=today, servers={})
            tick_tables.delete_servers(db, today - int(self.hours // 24) - 2)
        count, servers = cache.count, cache.servers
        for rows in batch:
            keys = dict.fromkeys(zip(rows.servers, rows.profiles, strict=True))
            if new_ids := {key: tick_tables.make_server_id(*key) for key in keys if key not in servers}:
                tick_tables.record_servers(db, [(new_id, key) for key, new_id in new_ids.items()], today)
                servers = servers | new_ids
            for tick in _split_by_tick(rows, servers, self.step):
                tick_tables.write_tick(db, tick, self._layout.code)
                count += 1
        count -= tick_tables.trim(db, now - self.hours * 3600.0, self.megabytes * 1e6)
        return replace(cache, servers=servers, count=count)

    def load(self, window: FleetWindow, now: float) -> LoadReport:
        """Load the stored ticks of the window at `now`, whose tick becomes the open one."""
        window.advance(int(now // window.step) - 1)
        try:
            report = self._file.run(lambda db: self._load_into(db, window, now))
        except FileUnavailableError as error:
            log.warning("Cannot read the fleet window %s: %s. Starting with an empty window.", self.path, error)
            return LoadReport()
        if report.damaged_ticks:
            log.warning("Damaged ticks in %s: %d skipped.", self.path, report.damaged_ticks)
        if report.age_seconds is not None and report.age_seconds > STALE_SECONDS:
            span = window.retained_ticks * window.step
            usage = "too old to use" if report.age_seconds > span else f"only its last {format_duration(span)} are used"
            log.warning("The fleet window %s is %s old: %s.", self.path, format_duration(report.age_seconds), usage)
        return report

    def _load_into(self, db: sqlite3.Connection, window: FleetWindow, now: float) -> LoadReport:
        reader = TickReader(db, self._layout)
        first = (window.newest - window.retained_ticks + 1) * window.step
        restored_starts: list[int] = []

        def parts() -> Iterator[SavedTick]:
            # Without a WHERE: SQLite then reads only leaf pages, so a damaged inner page cannot hide a valid tick.
            for row in db.execute(f"{SELECT_TICKS} ORDER BY id DESC"):
                tick = reader.decode(*row)
                if tick is not None:
                    if tick.start + reader.longest_step <= first:
                        return
                    restored_starts.append(tick.start)
                    yield tick

        rows = window.restore(tick_tables.read_servers(db), parts())
        age = None if reader.newest is None else max(0.0, now - reader.newest)
        return LoadReport(len(set(restored_starts)), rows, len(window), reader.damaged, reader.newest, age)

    def history(
        self, start: float, end: float, servers: Sequence[str] | None = None, metrics: Sequence[str] | None = None
    ) -> Iterator[HistoryChunk]:
        """The stored rows with `start` <= time < `end`, in chunks of some ticks, sorted by tick; damaged ticks are
        skipped.

        Each chunk is a read of its own, so a slow reader blocks no other. None for `servers` or `metrics` selects all.

        Raises:
            ValueError: the store does not have one of the metrics.
        """
        if self._file.read_only and not self.path.exists():
            return
        chunk_ticks, start_time, skipped = CHUNK_TICKS, int(start) - MAX_STEP_SECONDS, 0
        while start_time < end and skipped < MAX_SKIPPED_TICKS:
            try:
                chunk, next_time = self._file.run(partial(self._read_chunk, start_time, end, chunk_ticks))
            except FileUnavailableError as error:
                if not error.damaged:
                    log.warning("Cannot read the fleet history %s from %s on: %s", self.path, to_iso(start_time), error)
                    return
                # This process may not repair the file: skip the damage tick by tick.
                if chunk_ticks == 1:
                    start_time, skipped = start_time + self.step, skipped + 1
                chunk_ticks = 1
                continue
            if chunk is not None and len(selected := chunk.select(start, end, servers, metrics)):
                yield selected
            if next_time is None:
                return
            start_time, skipped, chunk_ticks = next_time, 0, min(2 * chunk_ticks, CHUNK_TICKS)

    def _read_chunk(
        self, start_time: int, end: float, chunk_ticks: int, db: sqlite3.Connection
    ) -> tuple[HistoryChunk | None, int | None]:
        """The first `chunk_ticks` ticks from `start_time` on, and the start of the next; None and None at the end."""
        first_row = db.execute("SELECT min(id) FROM tick WHERE id >= ?", (row_key(start_time),)).fetchone()[0]
        if first_row is None or tick_start(first_row) >= end:
            return None, None
        start = tick_start(first_row)
        stop = start + chunk_ticks * self.step
        reader = TickReader(db, self._layout)
        rows = db.execute(f"{SELECT_TICKS} WHERE id >= ? AND id < ? ORDER BY id", (first_row, row_key(stop)))
        parts = [tick for row in rows if (tick := reader.decode(*row)) is not None]
        return merge_parts(parts, tick_tables.read_servers(db), self.metrics), stop

    def state(self) -> StoreState:
        """The current state of the file."""
        try:
            return self._file.run(self._read_state)
        except FileUnavailableError as error:
            return StoreState(last_error=self.last_error or str(error))

    def _read_state(self, db: sqlite3.Connection) -> StoreState:
        # Use the cached count if possible: SQLite would read every row.
        cache = self._cache
        count = cache.count if cache.opening == self._file.connection_count else tick_tables.count_rows(db)
        # Two queries: SQLite has a fast path to one end of a table, but not to both at once.
        rows = [db.execute(query).fetchone()[0] for query in ("SELECT min(id) FROM tick", "SELECT max(id) FROM tick")]
        oldest, newest = (None if row is None else float(tick_start(row)) for row in rows)
        return StoreState(count, oldest, newest, tick_tables.used_bytes(db) / 1e6, self.last_error)


@dataclass(frozen=True)
class _WriterCache:
    """What the writer knows about the file without reading it."""

    opening: int  # the opening of the file that this describes
    day: int | None  # when `servers` were recorded in the file
    servers: dict[ServerKey, int]  # with their ids
    count: int  # rows of ticks


def _split_by_tick(rows: FleetRows, id_by_server: dict[ServerKey, int], step: int) -> Iterator[SavedTick]:
    """The rows of each tick."""
    keys = zip(rows.servers, rows.profiles, strict=True)
    server_ids = np.array([id_by_server[key] for key in keys], dtype=np.int64)
    offsets, status_codes = rows.offsets(step), rows.status_codes
    order = np.argsort(rows.ticks, kind="stable")
    for indices in np.split(order, np.flatnonzero(np.diff(rows.ticks[order])) + 1):
        start = int(rows.ticks[indices[0]]) * step
        yield SavedTick(start, server_ids[indices], offsets[indices], status_codes[indices], rows.values[indices])
