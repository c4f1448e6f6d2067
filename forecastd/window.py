"""The rolling window: recent rows of many series on disk, so that a restart asks a source only for what is missing.

The one thing to know before changing it: it is a cache that may be lost, never a store that may lie. Each row carries a
checksum over itself and its place; a row that fails it is as good as absent. A file SQLite cannot read is set aside
under a new name and begun again. Nothing that goes wrong with the file keeps fetched candles from being used.

A series is a key, a step and a list of named float columns, so the file holds any metric on a time grid, not only
candles. A row is one time of one series: an append costs one small insert, damage costs the rows it hits.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np

from forecastd.candles import COLUMNS, STALE_STEPS, Candles, Provenance, join, join_provenance, suspect
from forecastd.clock import iso
from forecastd.errors import RetryLater
from forecastd.sources.base import Source
from forecastd.windowfile import BUSY_SECONDS, FileUnavailableError, WindowFile

log = logging.getLogger(__name__)
T = TypeVar("T")
_Wanted = tuple[str, str, int, int, int]  # source, symbol, step, start, end

KEEP = 20_000  # rows of a series: more than two years of hours, about 2 MB
MOST_REQUESTS = 8  # holes that are asked for one by one; when there are more, as one range
PATIENCE = 15.0  # seconds; see `_due`
KIND = 0x66_64_77_31  # "fdw1", SQLite's application id: what the file is and the version of its layout

LAYOUT = """
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
LOST = "what is missing will be fetched again"


class RollingWindow:
    """Series on disk, bounded each, open to several threads and processes at once.

    No method raises for a damaged, full, busy, read-only or vanished file: it logs a warning and does as if the window
    held nothing.
    """

    def __init__(self, path: Path, keep: int = KEEP) -> None:
        self.path = path
        self.keep = keep
        self._file = WindowFile(path, kind=KIND, layout=LAYOUT, salvage=_salvage, lost=LOST, busy=BUSY_SECONDS)

    @classmethod
    def open(cls, path: Path, keep: int = KEEP) -> RollingWindow:
        """The window in the file at `path`, made when absent; of each series the newest `keep` rows stay."""
        window = cls(path, keep)
        window._attempt("opened", lambda _: None, None)
        return window

    def close(self) -> None:
        """Let go of the file. It is opened again when it is needed again."""
        self._file.close()

    def __enter__(self) -> RollingWindow:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def append(self, candles: Candles) -> None:
        """Keep `candles` under their source, symbol and step; a time that is kept already is replaced.

        It is one transaction: a kill loses this append or nothing.
        """
        if len(candles):
            self._attempt("written", lambda db: self._write(db, candles), None)

    def load(self, source_name: str, symbol: str, step: int, start: int, end: int) -> Candles | None:
        """What is kept of `start` <= time < `end` and undamaged, sorted, with its provenance; None for nothing."""
        return self._attempt("read", lambda db: self._read(db, (source_name, symbol, step, start, end)), None)

    def note_absent(self, source_name: str, symbol: str, step: int, times: Iterable[int], now: float) -> None:
        """Remember that the source, asked at `now`, had no candles of these times."""

        def note(db: sqlite3.Connection) -> None:
            series = _series(db, _key(source_name, symbol), step, make=True)
            db.executemany("INSERT OR REPLACE INTO absent VALUES (?, ?, ?)", [(series, time, now) for time in times])
            _trim(db, "absent", series, self.keep)

        self._attempt("written", note, None)

    def absent(self, source_name: str, symbol: str, step: int) -> dict[int, float]:
        """Times that the source had no candles of, with when it was last asked."""

        def read(db: sqlite3.Connection) -> dict[int, float]:
            series = _series(db, _key(source_name, symbol), step, make=False)
            return dict(db.execute("SELECT time, asked_at FROM absent WHERE series = ?", (series,)).fetchall())

        return self._attempt("read", read, {})

    def _write(self, db: sqlite3.Connection, candles: Candles) -> None:
        origin = candles.provenance
        key = _key(origin.source, candles.symbol)
        series = _series(db, key, candles.step, make=True)
        fact = (float(origin.fetched_at), origin.sha256, int(origin.synthetic))
        db.execute("INSERT OR IGNORE INTO origin (fetched_at, sha256, synthetic) VALUES (?, ?, ?)", fact)
        found = "SELECT id FROM origin WHERE fetched_at = ? AND sha256 = ? AND synthetic = ?"
        origin_id = db.execute(found, fact).fetchone()[0]
        table = np.column_stack(candles.columns).astype("<f8")
        rows = []
        for time, values in zip(candles.time.tolist(), table, strict=True):
            data = values.tobytes()
            rows.append((series, time, origin_id, data, _crc(key, fact, time, data)))
        db.executemany("INSERT OR REPLACE INTO tick VALUES (?, ?, ?, ?, ?)", rows)
        db.executemany("DELETE FROM absent WHERE series = ? AND time = ?", [row[:2] for row in rows])
        if _trim(db, "tick", series, self.keep):
            db.execute("DELETE FROM origin WHERE id NOT IN (SELECT origin FROM tick)")

    def _read(self, db: sqlite3.Connection, wanted: _Wanted) -> Candles | None:
        source_name, symbol, step, start, end = wanted
        key = _key(source_name, symbol)
        series = _series(db, key, step, make=False)
        query = (
            "SELECT time, data, crc, origin, fetched_at, sha256, synthetic FROM tick JOIN origin ON origin.id = origin "
            "WHERE series = ? AND time >= ? AND time < ? ORDER BY time"
        )
        kept = db.execute(query, (series, start, end)).fetchall()
        good = [row for row in kept if _is_whole(row[0], row[1]) and row[2] == _crc(key, row[4:], row[0], row[1])]
        if len(good) < len(kept):
            log.warning("%d damaged rows in %s are left out", len(kept) - len(good), self.path)
        if not good:
            return None
        values = np.frombuffer(b"".join(row[1] for row in good), dtype="<f8").reshape(-1, len(COLUMNS))
        origins = {row[3]: Provenance(source_name, row[4], row[5], bool(row[6])) for row in good}
        if len({origin.synthetic for origin in origins.values()}) > 1:
            log.warning("%s holds made-up and real candles under %s; none is used", self.path, source_name)
            return None
        time = np.array([row[0] for row in good], dtype=np.int64)
        return Candles.of(symbol, step, time, values, join_provenance(list(origins.values())))

    def _attempt(self, what: str, work: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """`work` as one transaction, or `otherwise` where the file does not allow it."""
        try:
            return self._file.run(work)
        except FileUnavailableError as error:
            log.warning("The rolling window %s cannot be %s now: %s. Going on without.", self.path, what, error)
            return otherwise


def refresh(window: RollingWindow, source: Source, *, now: float, length: int) -> Candles:
    """The last `length` complete candles at `now`: kept ones, and from the source only what is missing.

    Where the newest are missing (late at the source, or the source is down) and the last one there is not `STALE_STEPS` old,
    they are the `length` candles up to that one; when the source is down that is told in the log and in `repairs`.

    Nothing is asked when nothing is missing. A hole that the source itself has is asked for again at growing intervals.
    When a request is made for newer candles, the newest kept one is asked for again with it, because sources correct
    their last candle. Kept candles that look wrong are fetched again once, all of them: the source may have mended them.

    Raises:
        RetryLater, NeedsHuman, SkipEpoch: from the source, when the newest candles cannot be had and what is kept is too
            old or too short.
    """
    step = source.step
    end = int(now // step) * step
    start = end - length * step
    early = start - STALE_STEPS * step
    if source.local:
        candles = _newest(source.fetch(early, end, now), start, end)
        # Nothing that young: hand out the last there are, so that the check can say how old they are.
        return candles if len(candles) else source.fetch(0, end, now).take(slice(-length, None))
    window.keep = max(window.keep, length)
    kept = window.load(source.name, source.symbol, step, early, end)
    have = set() if kept is None else set(kept.time.tolist())
    asked = window.absent(source.name, source.symbol, step)
    wanted = [time for time in range(start, end, step) if time not in have and _due(time + step, asked.get(time), now)]
    known = kept
    for first, last in _ranges(wanted, step):
        span = (first - step if first - step in have else first, last)
        try:
            known = _fetch(window, source, span, now, known)
        except RetryLater as error:
            if end - step in have:
                log.warning("An older hole in the candles could not be filled: %s", error)
                break
            if known is None or len(_newest(known, start, end)) < length or now - known.end > STALE_STEPS * step:
                raise
            told = f"went on with kept candles up to {iso(known.end)}, because the source gave no newer ones"
            log.warning("Newer candles could not be fetched, kept ones are used up to %s: %s", iso(known.end), error)
            known = replace(known, repairs=(*known.repairs, told))
            break
    if known is None:
        return _fetch(window, source, (start, end), now, None)
    known = _newest(known, start, end)
    reason = suspect(known) if kept is not None else None
    if reason is None:
        return known
    log.warning("Kept candles look wrong and are fetched again: %s", reason)
    return _fetch(window, source, (start, end), now, None)


def _newest(candles: Candles, start: int, end: int) -> Candles:
    """Those of `start` to `end`, or of as long a time up to the last one where that one is late."""
    late = end - candles.end if len(candles) else 0
    return candles.between(start - late, end)


def _fetch(window: RollingWindow, source: Source, span: tuple[int, int], now: float, known: Candles | None) -> Candles:
    """Fetch a range, keep it, and lay it over what is known: the newer answer is the right one."""
    start, end = span
    fetched = source.fetch(start, end, now)
    window.append(fetched)
    times = set(fetched.time.tolist())
    missing = [time for time in range(start, end, source.step) if time not in times]
    if missing:
        window.note_absent(source.name, source.symbol, source.step, missing, now)
    if known is None:
        return fetched
    older = known.take(~np.isin(known.time, fetched.time))
    return replace(join([older, fetched]), repairs=(*known.repairs, *fetched.repairs))


def _due(closed: int, asked_at: float | None, now: float) -> bool:
    """Whether a candle that closed at `closed` is to be asked for: again when its age has doubled since the last time."""
    return asked_at is None or now - closed >= 2 * max(asked_at - closed, PATIENCE)


def _ranges(times: list[int], step: int) -> list[tuple[int, int]]:
    """Times, sorted, as (first, end) of unbroken ranges; as one range over all where they are too many."""
    ranges: list[tuple[int, int]] = []
    for time in times:
        if ranges and ranges[-1][1] == time:
            ranges[-1] = (ranges[-1][0], time + step)
        else:
            ranges.append((time, time + step))
    return ranges if len(ranges) <= MOST_REQUESTS else [(ranges[0][0], ranges[-1][1])]


def _series(db: sqlite3.Connection, key: str, step: int, *, make: bool) -> int | None:
    identity = (key, step, json.dumps(COLUMNS))
    if make:
        db.execute("INSERT OR IGNORE INTO series (key, step, columns) VALUES (?, ?, ?)", identity)
    row = db.execute("SELECT id FROM series WHERE key = ? AND step = ? AND columns = ?", identity).fetchone()
    return None if row is None else int(row[0])


def _trim(db: sqlite3.Connection, table: str, series: int | None, keep: int) -> bool:
    """Drop all but the newest `keep` rows of a series; whether there were more."""
    newest = f"SELECT time FROM {table} WHERE series = ? ORDER BY time DESC LIMIT 1 OFFSET ?"  # noqa: S608
    row = db.execute(newest, (series, keep)).fetchone()
    if row is None:
        return False
    db.execute(f"DELETE FROM {table} WHERE series = ? AND time <= ?", (series, row[0]))  # noqa: S608
    return True


def _key(source_name: str, symbol: str) -> str:
    return f"{source_name}|{symbol}"


def _crc(key: str, origin: tuple[object, ...], time: int, data: bytes) -> int:
    """Over the row and its place, so that a row found under another series, time or origin does not pass either."""
    return zlib.crc32(data, zlib.crc32(f"{key}|{origin}|{time}".encode()))


def _is_whole(time: object, data: object) -> bool:
    return isinstance(time, int) and isinstance(data, bytes) and len(data) == 8 * len(COLUMNS)


def _salvage(old: sqlite3.Connection, db: sqlite3.Connection) -> int:
    """Copy rows from the front and from the back up to the first unreadable page. Their checksums still decide."""
    tables = {name: _readable(old, name) for name in ("series", "origin", "tick")}
    for name, rows in tables.items():
        if rows:
            marks = ", ".join("?" * len(rows[0]))
            db.executemany(f"INSERT OR IGNORE INTO {name} VALUES ({marks})", rows)  # noqa: S608
    return len(tables["tick"])


def _readable(db: sqlite3.Connection, table: str) -> list[tuple[object, ...]]:
    order = "series, time" if table == "tick" else "id"
    backward = ", ".join(f"{column} DESC" for column in order.split(", "))
    rows: dict[tuple[object, ...], None] = {}
    for direction in (order, backward):
        try:
            for row in db.execute(f"SELECT * FROM {table} ORDER BY {direction}"):  # noqa: S608
                rows[row] = None
        except sqlite3.Error as error:
            log.debug("salvage of %s stopped: %s", table, error)
    return list(rows)
