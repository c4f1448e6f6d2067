"""The rolling window: recent rows of many series on disk, so that a restart fetches only the missing rows.

Invariant: the window is a cache. It may be lost, but it must never return wrong data. Each row has a checksum over its
values, series, time and origin; a row that fails it counts as missing. A file that SQLite cannot read is renamed and
replaced. No fault of the file prevents the use of fetched candles.

A series is a key, a step and a list of named float columns, so the file can hold any metric on a time grid, not only
candles. A row is one time of one series: an append is one small insert, and damage costs only the rows that it hits.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from forecastd.clock import to_iso
from forecastd.errors import RetryLater
from forecastd.market.candles import (
    COLUMNS,
    MAX_STALE_STEPS,
    Candles,
    Provenance,
    find_implausible,
    merge,
    merge_provenance,
)
from forecastd.market.sources.base import Source
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.formatting import format_count
from forecastd.runtime.sqlite import BUSY_SECONDS, FileUnavailableError, SqliteCache

log = logging.getLogger(__name__)
T = TypeVar("T")
_SeriesRange = tuple[str, str, int, int, int]  # source, symbol, step, start, end

DEFAULT_MAX_ROWS = 20_000  # rows per series: more than two years of hourly candles, about 2 MB
MAX_REQUESTS = 8  # gaps that are fetched one by one; more gaps are fetched as one range
MIN_RETRY_SECONDS = 15.0  # see `_is_retry_due`
APPLICATION_ID = 0x66_64_77_31  # "fdw1", SQLite's application id: the kind of file and its schema version

SCHEMA = """
CREATE TABLE IF NOT EXISTS series (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, step INTEGER NOT NULL, columns TEXT NOT NULL,
  UNIQUE (key, step, columns));
CREATE TABLE IF NOT EXISTS origin (
  id INTEGER PRIMARY KEY, fetched_at REAL NOT NULL, sha256 TEXT NOT NULL, synthetic INTEGER NOT NULL,
  UNIQUE (fetched_at, sha256, synthetic));
CREATE TABLE IF NOT EXISTS tick (
  series INTEGER NOT NULL, time INTEGER NOT NULL, origin INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL,
  PRIMARY KEY (series, time)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS absent (
  series INTEGER NOT NULL, time INTEGER NOT NULL, asked_at REAL NOT NULL, PRIMARY KEY (series, time)) WITHOUT ROWID;
"""
LOSS_MESSAGE = "missing rows will be fetched again"


class RollingWindow(Closeable):
    """Series on disk, each bounded, shared by several threads and processes at once.

    No method raises for a damaged, full, locked, read-only or deleted file: it logs a warning and behaves as if the
    window were empty.
    """

    def __init__(self, path: Path, max_rows: int = DEFAULT_MAX_ROWS) -> None:
        self.path = path
        self.max_rows = max_rows
        self._file = SqliteCache(
            path,
            application_id=APPLICATION_ID,
            schema=SCHEMA,
            salvage=_copy_readable_rows,
            loss_message=LOSS_MESSAGE,
            busy_seconds=BUSY_SECONDS,
        )

    @classmethod
    def open(cls, path: Path, max_rows: int = DEFAULT_MAX_ROWS) -> RollingWindow:
        """Open the window at `path`, and create it when missing. Each series keeps its newest `max_rows` rows."""
        window = cls(path, max_rows)
        window._run_or_default("opened", lambda _: None, None)
        return window

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        self._file.close()

    def append(self, candles: Candles) -> None:
        """Store `candles` under their source, symbol and step; existing rows of the same time are replaced.

        The append is one transaction: a killed process loses all of it or nothing.
        """
        if len(candles):
            self._run_or_default("written", lambda db: self._write(db, candles), None)

    def load(self, source_name: str, symbol: str, step: int, start: int, end: int) -> Candles | None:
        """The stored, undamaged candles with `start` <= time < `end`, sorted; None when there are none."""
        return self._run_or_default("read", lambda db: self._read(db, (source_name, symbol, step, start, end)), None)

    def record_absent(self, source_name: str, symbol: str, step: int, times: Iterable[int], now: float) -> None:
        """Record that the source, queried at `now`, had no candles for these times."""

        def record(db: sqlite3.Connection) -> None:
            series_id = _series_id(db, _series_key(source_name, symbol), step, create=True)
            db.executemany("INSERT OR REPLACE INTO absent VALUES (?, ?, ?)", [(series_id, time, now) for time in times])
            _trim_series(db, "absent", series_id, self.max_rows)

        self._run_or_default("written", record, None)

    def absent_times(self, source_name: str, symbol: str, step: int) -> dict[int, float]:
        """Times for which the source had no candles, each with the time of the last query (unix seconds)."""

        def read(db: sqlite3.Connection) -> dict[int, float]:
            series_id = _series_id(db, _series_key(source_name, symbol), step, create=False)
            return dict(db.execute("SELECT time, asked_at FROM absent WHERE series = ?", (series_id,)).fetchall())

        return self._run_or_default("read", read, {})

    def _write(self, db: sqlite3.Connection, candles: Candles) -> None:
        origin = candles.provenance
        key = _series_key(origin.source, candles.symbol)
        series_id = _series_id(db, key, candles.step, create=True)
        origin_row = (float(origin.fetched_at), origin.sha256, int(origin.synthetic))
        db.execute("INSERT OR IGNORE INTO origin (fetched_at, sha256, synthetic) VALUES (?, ?, ?)", origin_row)
        origin_query = "SELECT id FROM origin WHERE fetched_at = ? AND sha256 = ? AND synthetic = ?"
        origin_id = db.execute(origin_query, origin_row).fetchone()[0]
        table = np.column_stack(candles.columns).astype("<f8")
        rows = []
        for time, values in zip(candles.time.tolist(), table, strict=True):
            data = values.tobytes()
            rows.append((series_id, time, origin_id, data, _row_checksum(key, origin_row, time, data)))
        db.executemany("INSERT OR REPLACE INTO tick VALUES (?, ?, ?, ?, ?)", rows)
        db.executemany("DELETE FROM absent WHERE series = ? AND time = ?", [row[:2] for row in rows])
        if _trim_series(db, "tick", series_id, self.max_rows):
            db.execute("DELETE FROM origin WHERE id NOT IN (SELECT origin FROM tick)")

    def _read(self, db: sqlite3.Connection, series_range: _SeriesRange) -> Candles | None:
        source_name, symbol, step, start, end = series_range
        key = _series_key(source_name, symbol)
        series_id = _series_id(db, key, step, create=False)
        query = (
            "SELECT time, data, crc, origin, fetched_at, sha256, synthetic FROM tick JOIN origin ON origin.id = origin "
            "WHERE series = ? AND time >= ? AND time < ? ORDER BY time"
        )
        rows = db.execute(query, (series_id, start, end)).fetchall()
        valid_rows = [
            row
            for row in rows
            if _has_valid_types(row[0], row[1]) and row[2] == _row_checksum(key, row[4:], row[0], row[1])
        ]
        if len(valid_rows) < len(rows):
            count = len(rows) - len(valid_rows)
            log.warning("Ignored %s in %s", format_count(count, "damaged row"), self.path)
        if not valid_rows:
            return None
        values = np.frombuffer(b"".join(row[1] for row in valid_rows), dtype="<f8").reshape(-1, len(COLUMNS))
        origins = {row[3]: Provenance(source_name, row[4], row[5], bool(row[6])) for row in valid_rows}
        if len({origin.synthetic for origin in origins.values()}) > 1:
            log.warning("Ignored the candles of %s in %s: they mix synthetic and real data", source_name, self.path)
            return None
        time = np.array([row[0] for row in valid_rows], dtype=np.int64)
        return Candles.from_table(symbol, step, time, values, merge_provenance(list(origins.values())))

    def _run_or_default(self, action: str, work: Callable[[sqlite3.Connection], T], default: T) -> T:
        """Run `work` in one transaction; return `default` when the file cannot be used."""
        try:
            return self._file.run(work)
        except FileUnavailableError as error:
            log.warning("The rolling window %s cannot be %s: %s. Continuing without it.", self.path, action, error)
            return default


def refresh(window: RollingWindow, source: Source, *, now: float, length: int) -> Candles:
    """The last `length` complete candles at `now`: cached ones, and only the missing ones from the source.

    When the newest candles are missing (late at the source, or the source is down) and the last available one is at
    most `MAX_STALE_STEPS` old, the result is the `length` candles up to that one. If the source is down, the log and
    `repairs` say so.

    If nothing is missing, the source is not queried. A gap in the source's own data is requested again at growing
    intervals. A request for newer candles includes the newest cached one, because sources correct their last candle. If
    cached candles look implausible, the whole range is fetched again once: the source may have corrected it.

    Raises:
        RetryLater, NeedsHuman, SkipEpoch: from the source, when it does not return the newest candles and the cached
            ones are too old or too few.
    """
    step = source.step
    end = int(now // step) * step
    start = end - length * step
    fetch_start = start - MAX_STALE_STEPS * step
    if source.local:
        candles = _select_newest(source.fetch(fetch_start, end, now), start, end)
        # No candles are recent enough: return the last ones that exist, so that the check can report their age.
        return candles if len(candles) else source.fetch(0, end, now).take(slice(-length, None))
    window.max_rows = max(window.max_rows, length)
    cached_candles = window.load(source.name, source.symbol, step, fetch_start, end)
    cached_times = set() if cached_candles is None else set(cached_candles.time.tolist())
    absent_times = window.absent_times(source.name, source.symbol, step)
    missing_times = [
        time
        for time in range(start, end, step)
        if time not in cached_times and _is_retry_due(time + step, absent_times.get(time), now)
    ]
    available = cached_candles
    for first, last in _group_ranges(missing_times, step):
        span = (first - step if first - step in cached_times else first, last)
        try:
            available = _fetch_range(window, source, span, now, available)
        except RetryLater as error:
            if end - step in cached_times:
                log.warning("Cannot fill an older gap in the candles: %s", error)
                break
            if (
                available is None
                or len(_select_newest(available, start, end)) < length
                or now - available.end > MAX_STALE_STEPS * step
            ):
                raise
            message = f"used cached candles up to {to_iso(available.end)}, because the source returned no newer ones"
            log.warning("Cannot fetch newer candles; using cached ones up to %s: %s", to_iso(available.end), error)
            available = replace(available, repairs=(*available.repairs, message))
            break
    if available is None:
        return _fetch_range(window, source, (start, end), now, None)
    available = _select_newest(available, start, end)
    reason = find_implausible(available) if cached_candles is not None else None
    if reason is None:
        return available
    log.warning("Cached candles look wrong; fetching them again: %s", reason)
    return _fetch_range(window, source, (start, end), now, None)


def _select_newest(candles: Candles, start: int, end: int) -> Candles:
    """The candles from `start` to `end`; when the last candle is late, a span of the same length that ends with it."""
    delay = end - candles.end if len(candles) else 0
    return candles.between(start - delay, end)


def _fetch_range(
    window: RollingWindow, source: Source, span: tuple[int, int], now: float, available: Candles | None
) -> Candles:
    """Fetch a range, store it, and merge it into `available`. Fetched candles replace older ones of the same time."""
    start, end = span
    fetched = source.fetch(start, end, now)
    window.append(fetched)
    times = set(fetched.time.tolist())
    missing = [time for time in range(start, end, source.step) if time not in times]
    if missing:
        window.record_absent(source.name, source.symbol, source.step, missing, now)
    if available is None:
        return fetched
    older = available.take(~np.isin(available.time, fetched.time))
    return replace(merge([older, fetched]), repairs=(*available.repairs, *fetched.repairs))


def _is_retry_due(close_time: int, asked_at: float | None, now: float) -> bool:
    """Whether to request a candle that closed at `close_time`: again when its age has doubled since the last query."""
    return asked_at is None or now - close_time >= 2 * max(asked_at - close_time, MIN_RETRY_SECONDS)


def _group_ranges(times: list[int], step: int) -> list[tuple[int, int]]:
    """Group sorted times into contiguous ranges (first, end); more than `MAX_REQUESTS` ranges become a single one."""
    ranges: list[tuple[int, int]] = []
    for time in times:
        if ranges and ranges[-1][1] == time:
            ranges[-1] = (ranges[-1][0], time + step)
        else:
            ranges.append((time, time + step))
    return ranges if len(ranges) <= MAX_REQUESTS else [(ranges[0][0], ranges[-1][1])]


def _series_id(db: sqlite3.Connection, key: str, step: int, *, create: bool) -> int | None:
    identity = (key, step, json.dumps(COLUMNS))
    if create:
        db.execute("INSERT OR IGNORE INTO series (key, step, columns) VALUES (?, ?, ?)", identity)
    row = db.execute("SELECT id FROM series WHERE key = ? AND step = ? AND columns = ?", identity).fetchone()
    return None if row is None else int(row[0])


def _trim_series(db: sqlite3.Connection, table: str, series_id: int | None, max_rows: int) -> bool:
    """Delete all but the newest `max_rows` rows of a series. Return whether rows were deleted."""
    newest = f"SELECT time FROM {table} WHERE series = ? ORDER BY time DESC LIMIT 1 OFFSET ?"  # noqa: S608
    row = db.execute(newest, (series_id, max_rows)).fetchone()
    if row is None:
        return False
    db.execute(f"DELETE FROM {table} WHERE series = ? AND time <= ?", (series_id, row[0]))  # noqa: S608
    return True


def _series_key(source_name: str, symbol: str) -> str:
    return f"{source_name}|{symbol}"


def _row_checksum(key: str, origin: tuple[object, ...], time: int, data: bytes) -> int:
    """CRC-32 over the row and its key, origin and time, so that a row stored under another series or time fails too."""
    return zlib.crc32(data, zlib.crc32(f"{key}|{origin}|{time}".encode()))


def _has_valid_types(time: object, data: object) -> bool:
    return isinstance(time, int) and isinstance(data, bytes) and len(data) == 8 * len(COLUMNS)


def _copy_readable_rows(damaged_db: sqlite3.Connection, db: sqlite3.Connection) -> int:
    """Copy rows from both ends up to the first unreadable page. Reads still verify their checksums."""
    tables = {name: _read_readable_rows(damaged_db, name) for name in ("series", "origin", "tick")}
    for name, rows in tables.items():
        if rows:
            placeholders = ", ".join("?" * len(rows[0]))
            db.executemany(f"INSERT OR IGNORE INTO {name} VALUES ({placeholders})", rows)  # noqa: S608
    return len(tables["tick"])


def _read_readable_rows(db: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    order = "series, time" if table == "tick" else "id"
    backward = ", ".join(f"{column} DESC" for column in order.split(", "))
    rows: dict[tuple[object, ...], None] = {}
    for direction in (order, backward):
        try:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {direction}"):  # noqa: S608
                rows[row] = None
        except sqlite3.Error as error:
            log.debug("Salvage of table %s stopped: %s", table, error)
    return list(rows)
