"""The fleet's window on disk: one small append a tick, nothing rewritten, so that a restart is warm at once.

The one thing to know before changing it: it is a cache that may be lost, never a store that may lie, and nothing that goes
wrong with the file keeps the fleet from being served. A tick is one row: the servers that reported, as one blob under a
checksum; rows that come late are one more part of their tick. `kill -9` loses the tick in flight; a power cut may lose the
last `SYNC_SECONDS` as well, for what is committed is forced onto the disk that often.

One process writes (see `hold`), any number read meanwhile. What cannot be written for now (a full disk) waits in memory,
within bounds, and is written when there is room again.
"""

from __future__ import annotations

import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np

from forecastd.clock import to_iso
from forecastd.fleet.contract import METRIC_NAMES, STATUSES
from forecastd.fleet.history.chunks import HistoryChunk, merge_parts
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.window.tick_codec import SavedTick, encode_tick, make_server_id, row_key, tick_crc, tick_start
from forecastd.fleet.window.tick_tables import (
    APPLICATION_ID,
    DAY_SECONDS,
    SCHEMA,
    SELECT_TICKS,
    ServerKey,
    TickLayout,
    TickReader,
    count_rows,
    delete_servers,
    next_row,
    read_servers,
    record_layout,
    record_servers,
    row_range,
    salvage,
    trim,
    used_bytes,
)
from forecastd.fleet.window.window import FleetWindow
from forecastd.market.window_file import FileUnavailableError, WindowFile

__all__ = ["HistoryChunk", "LoadReport", "StoreState", "TickStore"]

log = logging.getLogger(__name__)

BUSY_TIMEOUT_SECONDS = 1.0  # a ticker must not stand still for long
STALE_SECONDS = 1800.0  # a window older than this is told of
SYNC_SECONDS = 60.0
MAX_PENDING_BATCHES = 720  # batches of rows that wait in memory for room on the disk
PENDING_PER_WRITE = 16  # of those, written after one tick
CHUNK_TICKS = 64  # ticks of the history that are read at once
MAX_STEP_SECONDS = 3600  # seconds; how long before a time the tick may have begun that it is in
_STATUS_CODES = {name: code for code, name in enumerate(STATUSES)}
MAX_SKIPPED_TICKS = 10_000  # ticks in a row that may be unreadable before a history ends


@dataclass(frozen=True)
class LoadReport:
    """What came back from disk."""

    ticks: int
    rows: int
    servers: int
    damaged_ticks: int  # ticks that were not what was written, left out
    newest: float | None  # unix time of the newest saved tick, of use or not; None for an empty store
    age_seconds: float | None  # how old that is


@dataclass(frozen=True)
class StoreState:
    """What the file holds, and what keeps it from being written, for people."""

    ticks: int
    oldest: float | None
    newest: float | None
    megabytes: float
    last_error: str | None


class TickStore:
    """The ticks of a fleet in one SQLite file, the newest `hours` of them and at most `megabytes`.

    No method raises for a damaged, full, busy, read-only or vanished file: what goes wrong is logged once, told by `problem`
    until it is over, and the store does as if it held nothing.
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
        self.last_error: str | None = None  # why it cannot be written now; None while it can
        self.dropped_batches = 0  # batches of rows that could not be written and waited too long
        self._file = WindowFile(
            path,
            application_id=APPLICATION_ID,
            schema=SCHEMA,
            salvage=salvage,
            loss_message="the rest is lost",
            busy_seconds=BUSY_TIMEOUT_SECONDS,
            max_damaged_files=1,  # such a file may be large, and what could be read of it is in the new one
            read_only=read_only,
        )
        self._layout = TickLayout(step, metrics)
        self._pending: deque[FleetRows] = deque()
        self._lock = Lock()
        self._cache = _WriterCache(-1, None, {}, 0)
        self._synced_at = 0.0

    def close(self) -> None:
        """Let go of the file. There is nothing to be saved."""
        self._file.close()

    def __enter__(self) -> TickStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, rows: FleetRows, now: float) -> bool:
        """Keep rows, such as `FleetWindow.unsaved` gives them, as one part of each of their ticks; whether it was done.

        One transaction: a kill loses it whole or not at all. It also removes what is too old at `now`, or too much, a little
        at a time. Rows that cannot be written now wait for a later call.
        """
        with self._lock:
            if len(rows) and not self._try_write([rows], now):
                self._pending.append(rows)
                if len(self._pending) > MAX_PENDING_BATCHES:
                    self._pending.popleft()
                    self.dropped_batches += 1
                return False
            while self._pending:
                batch = [self._pending[index] for index in range(min(PENDING_PER_WRITE, len(self._pending)))]
                if not self._try_write(batch, now):
                    return False
                for _ in batch:
                    self._pending.popleft()
                if len(rows):
                    break  # the rest with the next ticks
            return True

    def _try_write(self, batch: list[FleetRows], now: float) -> bool:
        try:
            self._cache = self._file.run(lambda db: self._write_batch(db, batch, now))
        except FileUnavailableError as error:
            if self.last_error is None:
                log.warning("The fleet's window %s cannot be written now: %s. Going on in memory.", self.path, error)
            self.last_error = str(error)
            return False
        if self.last_error is not None:
            message = "The fleet's window %s is written again; %d batches of rows wait for it, %d were given up."
            log.info(message, self.path, len(self._pending), self.dropped_batches)
            self.last_error = None
        self._sync(now)
        return True

    def _sync(self, now: float) -> None:
        """Now and then, force what is committed onto the disk."""
        if abs(now - self._synced_at) < SYNC_SECONDS:
            return
        self._synced_at = now
        try:
            self._file.run(lambda db: db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        except FileUnavailableError as error:  # nothing is lost yet; the next write tells it if it lasts
            log.debug("The fleet's window %s was not forced onto the disk: %s", self.path, error)

    def _write_batch(self, db: sqlite3.Connection, batch: list[FleetRows], now: float) -> _WriterCache:
        """Insert a batch; gives what is known of the file when it is committed."""
        cache, today = self._cache, int(now // DAY_SECONDS)
        if cache.opening != self._file.connection_count:
            cache = _WriterCache(self._file.connection_count, None, {}, count_rows(db))
            record_layout(db, self._layout)
        if cache.day != today:  # once a day every server is noted again, and those are forgotten that no tick speaks of
            cache = replace(cache, day=today, servers={})
            delete_servers(db, today - int(self.hours // 24) - 2)
        count, servers = cache.count, cache.servers
        for rows in batch:
            new_servers = [
                server_key
                for server_key in dict.fromkeys(zip(rows.servers, rows.profiles, strict=True))
                if server_key not in servers
            ]
            if new_servers:
                new_ids = {server: make_server_id(*server) for server in new_servers}
                record_servers(db, [(new_id, server) for server, new_id in new_ids.items()], today)
                servers = servers | new_ids
            for tick in _split_by_tick(rows, servers, self.step):
                row, data = next_row(db, tick.start), encode_tick(tick)
                record = (row, self._layout.code, data, tick_crc(row, self._layout.code, data))
                db.execute("INSERT OR REPLACE INTO tick VALUES (?, ?, ?, ?)", record)
                count += 1
        count -= trim(db, now - self.hours * 3600.0, self.megabytes * 1e6)
        return replace(cache, servers=servers, count=count)

    def load(self, window: FleetWindow, now: float) -> LoadReport:
        """Bring back what is kept of the window's ticks at `now`, whose tick becomes the open one."""
        window.advance(int(now // window.step) - 1)
        try:
            report = self._file.run(lambda db: self._load_into(db, window, now))
        except FileUnavailableError as error:
            log.warning("The fleet's window %s cannot be read now: %s. Beginning without it.", self.path, error)
            return LoadReport(0, 0, 0, 0, None, None)
        if report.damaged_ticks:
            log.warning("%d damaged ticks in %s are left out", report.damaged_ticks, self.path)
        if report.age_seconds is not None and report.age_seconds > STALE_SECONDS:
            span = window.retained_ticks * window.step
            usage = (
                "too old to be used"
                if report.age_seconds > span
                else f"used as far as it is in the last {span / 60:.0f} min"
            )
            log.warning("The fleet's window %s is %.0f min old; it is %s.", self.path, report.age_seconds / 60, usage)
        return report

    def _load_into(self, db: sqlite3.Connection, window: FleetWindow, now: float) -> LoadReport:
        reader = TickReader(db, self._layout)
        first = (window.newest - window.retained_ticks + 1) * window.step
        restored_starts: list[int] = []

        def parts() -> Iterator[SavedTick]:
            # Without a condition: SQLite then needs only the leaves, so a damaged inner page hides no good tick unnoticed.
            for row in db.execute(f"{SELECT_TICKS} ORDER BY id DESC"):
                tick = reader.decode(*row)
                if tick is not None:
                    if tick.start + reader.longest_step <= first:
                        return
                    restored_starts.append(tick.start)
                    yield tick

        rows = window.restore(read_servers(db), parts())
        age = None if reader.newest is None else max(0.0, now - reader.newest)
        return LoadReport(len(set(restored_starts)), rows, len(window), reader.damaged, reader.newest, age)

    def history(
        self, start: float, end: float, servers: Sequence[str] | None = None, metrics: Sequence[str] | None = None
    ) -> Iterator[HistoryChunk]:
        """What is kept of `start` <= time < `end`, in chunks of some ticks, sorted by tick; damaged ticks are left out.

        Each chunk is a look of its own at the file, so a slow reader holds nobody up. None for `servers` or `metrics`: all.

        Raises:
            ValueError: a metric that the store does not keep.
        """
        if self._file.read_only and not self.path.exists():
            return
        chunk_ticks, start_time, skipped = CHUNK_TICKS, int(start) - MAX_STEP_SECONDS, 0
        while start_time < end and skipped < MAX_SKIPPED_TICKS:
            try:
                chunk, next_time = self._file.run(
                    lambda db, start_time=start_time, chunk_ticks=chunk_ticks: self._read_chunk(  # type: ignore[misc]
                        db, start_time, end, chunk_ticks
                    )
                )
            except FileUnavailableError as error:
                if not error.damaged:
                    log.warning(
                        "The fleet's history %s cannot be read from %s on: %s", self.path, to_iso(start_time), error
                    )
                    return
                # A file that this process may not mend: around the damage tick by tick.
                start_time, skipped, chunk_ticks = (
                    (start_time + self.step, skipped + 1, 1) if chunk_ticks == 1 else (start_time, skipped, 1)
                )
                continue
            if chunk is not None:
                selected = chunk.select(start, end, servers, metrics)
                if len(selected):
                    yield selected
            if next_time is None:
                return
            start_time, skipped, chunk_ticks = next_time, 0, min(2 * chunk_ticks, CHUNK_TICKS)

    def _read_chunk(
        self, db: sqlite3.Connection, start_time: int, end: float, chunk_ticks: int
    ) -> tuple[HistoryChunk | None, int | None]:
        """The first `span` ticks there are from `at` on, and where the next begin; None and None for no more."""
        first_row = db.execute("SELECT min(id) FROM tick WHERE id >= ?", (row_key(start_time),)).fetchone()[0]
        if first_row is None or tick_start(first_row) >= end:
            return None, None
        start = tick_start(first_row)
        stop = start + chunk_ticks * self.step
        reader = TickReader(db, self._layout)
        rows = db.execute(f"{SELECT_TICKS} WHERE id >= ? AND id < ? ORDER BY id", (first_row, row_key(stop)))
        parts = [tick for row in rows if (tick := reader.decode(*row)) is not None]
        return merge_parts(parts, read_servers(db), self.metrics), stop

    def state(self) -> StoreState:
        """What the file holds now."""
        try:
            return self._file.run(self._read_state)
        except FileUnavailableError as error:
            return StoreState(0, None, None, 0.0, self.last_error or str(error))

    def _read_state(self, db: sqlite3.Connection) -> StoreState:
        # The count is taken from memory where it can be: SQLite would look at every row.
        cache = self._cache
        count = cache.count if cache.opening == self._file.connection_count else count_rows(db)
        oldest, newest = (None if row is None else float(tick_start(row)) for row in row_range(db))
        return StoreState(count, oldest, newest, used_bytes(db) / 1e6, self.last_error)


@dataclass(frozen=True)
class _WriterCache:
    """What the writer knows of the file without asking it."""

    opening: int  # the opening of the file that it is true of
    day: int | None  # when `servers` were noted in the file
    servers: dict[ServerKey, int]  # with their numbers
    count: int  # rows of ticks


def _split_by_tick(rows: FleetRows, id_by_server: dict[ServerKey, int], step: int) -> Iterator[SavedTick]:
    """The rows, tick by tick."""
    server_ids = np.array(
        [id_by_server[server] for server in zip(rows.servers, rows.profiles, strict=True)], dtype=np.int64
    )
    offsets = (rows.times - rows.ticks * step).astype(np.float32)
    status_codes = np.array([_STATUS_CODES[status] for status in rows.statuses], dtype=np.uint8)
    order = np.argsort(rows.ticks, kind="stable")
    for indices in np.split(order, np.flatnonzero(np.diff(rows.ticks[order])) + 1):
        yield SavedTick(
            int(rows.ticks[indices[0]]) * step,
            server_ids[indices],
            offsets[indices],
            status_codes[indices],
            rows.values[indices],
        )
