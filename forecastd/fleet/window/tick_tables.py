"""The tables of a fleet's SQLite file, and the statements on them.

Invariant: a row is trusted only after its own checksum is verified, and any read may find the file partly damaged. So
whole tables are read without a WHERE where possible (SQLite then needs only leaf pages), and a salvage searches
behind every unreadable place, not only the first.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from forecastd.fleet.window.tick_codec import (
    MAX_PARTS,
    SavedTick,
    decode_tick,
    make_server_id,
    row_key,
    tick_crc,
    tick_start,
)

log = logging.getLogger(__name__)

ServerKey = tuple[str, str]  # name and profile
TickRow = tuple[int, int, bytes, int]  # key, layout, data, checksum

APPLICATION_ID = 0x66_64_66_31  # "fdf1", SQLite's application id
SCHEMA = """
CREATE TABLE IF NOT EXISTS tick (
  id INTEGER PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS layout (code INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS server (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, day INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS server_again (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, day INTEGER NOT NULL);
"""
SERVER_TABLES = ("server", "server_again")  # stored twice, because a lost name would lose all ticks of its server
SELECT_TICKS = "SELECT id, layout, data, crc FROM tick"
DAY_SECONDS = 86_400
MAX_TRIMMED_ROWS = 64  # per call
SHRINK_PAGES = 4096  # free pages above which the file is shrunk, by an eighth of that at a time
MAX_PROBES = 20_000  # reads behind unreadable places


@dataclass(frozen=True)
class TickLayout:
    """What the ticks with one layout code contain."""

    step: int
    metrics: tuple[str, ...]

    @property
    def text(self) -> str:
        """The representation in the file."""
        return f"1|{self.step}|{','.join(self.metrics)}"

    @property
    def code(self) -> int:
        """The code, derived from the text, so that the table of layouts can be verified."""
        return zlib.crc32(self.text.encode())


def read_servers(db: sqlite3.Connection) -> dict[int, ServerKey]:
    """The servers by id, each from whichever of the two tables has it undamaged."""
    servers: dict[int, ServerKey] = {}
    for table in SERVER_TABLES:
        try:
            for server_id, name, profile in db.execute(f"SELECT id, name, profile FROM {table}"):  # noqa: S608
                if make_server_id(name, profile) == server_id:
                    servers[server_id] = (name, profile)
        except sqlite3.DatabaseError as error:
            log.debug("reading table %s stopped: %s", table, error)
    return servers


def record_servers(db: sqlite3.Connection, servers: Iterable[tuple[int, ServerKey]], day: int) -> None:
    """Record that servers were present on `day` (days since 1970)."""
    records = [(server_id, *server, day) for server_id, server in servers]
    for table in SERVER_TABLES:
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", records)  # noqa: S608


def delete_servers(db: sqlite3.Connection, before: int) -> None:
    """Delete the servers that were last present before a day."""
    for table in SERVER_TABLES:
        db.execute(f"DELETE FROM {table} WHERE day < ?", (before,))  # noqa: S608


def read_layouts(db: sqlite3.Connection) -> dict[int, TickLayout]:
    """The layouts by code."""
    result: dict[int, TickLayout] = {}
    try:
        for code, text in db.execute("SELECT code, text FROM layout"):
            parts = text.split("|", 2)
            if zlib.crc32(text.encode()) == code and len(parts) == 3 and parts[1].isdigit():
                result[code] = TickLayout(int(parts[1]), tuple(parts[2].split(",")))
    except sqlite3.DatabaseError as error:
        log.debug("reading the layouts stopped: %s", error)
    return result


def record_layout(db: sqlite3.Connection, layout: TickLayout) -> None:
    """Record a layout that ticks are written in."""
    db.execute("INSERT OR REPLACE INTO layout VALUES (?, ?)", (layout.code, layout.text))


class TickReader:
    """Reads the ticks of a file once: decodes them, and counts the damaged ones."""

    def __init__(self, db: sqlite3.Connection, own_layout: TickLayout) -> None:
        """`own_layout`: the layout of this program; it is known even if the file has lost it, and defines the
        columns."""
        self._layouts = {**read_layouts(db), own_layout.code: own_layout}
        self._metrics = own_layout.metrics
        self.longest_step = max(layout.step for layout in self._layouts.values())
        self.damaged = 0
        self.newest: int | None = None

    def decode(self, row: int, code: int, data: object, crc: object) -> SavedTick | None:
        """The tick in a row, with the columns of this program; None if it is damaged."""
        layout = self._layouts.get(code)
        tick = None if layout is None else decode_tick(row, code, data, crc, len(layout.metrics))
        if tick is None or layout is None:
            self.damaged += 1
            return None
        self.newest = tick.start if self.newest is None else max(self.newest, tick.start)
        if layout.metrics == self._metrics:
            return tick
        values = np.full((len(tick.server_ids), len(self._metrics)), np.nan, np.float32)
        for column, name in enumerate(self._metrics):
            if name in layout.metrics:
                values[:, column] = tick.values[:, layout.metrics.index(name)]
        return replace(tick, values=values)


def next_row(db: sqlite3.Connection, start: int) -> int:
    """The key of the next part of the tick that begins at `start`."""
    last_row = db.execute(
        "SELECT max(id) FROM tick WHERE id >= ? AND id < ?", (row_key(start), row_key(start + 1))
    ).fetchone()[0]
    return row_key(start) if last_row is None else min(last_row + 1, row_key(start, MAX_PARTS - 1))


def trim(db: sqlite3.Connection, before: float, max_bytes: float) -> int:
    """Delete the oldest ticks: those that began before `before`, and those beyond `max_bytes`; returns the number of
    rows.

    It deletes few at a time, so that no call takes long.
    """
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    excess = (pages - free) * size - max_bytes
    oldest_rows = []
    for row, length in db.execute(f"SELECT id, length(data) FROM tick ORDER BY id LIMIT {MAX_TRIMMED_ROWS}"):  # noqa: S608
        if tick_start(row) >= before and excess <= 0:
            break
        oldest_rows.append((row,))
        excess -= length
    db.executemany("DELETE FROM tick WHERE id = ?", oldest_rows)
    if db.execute("PRAGMA freelist_count").fetchone()[0] > SHRINK_PAGES:
        db.execute(f"PRAGMA incremental_vacuum({SHRINK_PAGES // 8})").fetchall()
    return len(oldest_rows)


def row_range(db: sqlite3.Connection) -> tuple[int | None, int | None]:
    """The oldest and the newest row."""
    # Two queries: SQLite has a fast path to one end of a table, but not to both at once.
    oldest = db.execute("SELECT min(id) FROM tick").fetchone()[0]
    return oldest, db.execute("SELECT max(id) FROM tick").fetchone()[0]


def count_rows(db: sqlite3.Connection) -> int:
    """The number of rows of ticks. SQLite reads all of them."""
    return int(db.execute("SELECT count(*) FROM tick").fetchone()[0])


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the file that are in use."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def salvage(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    """Copy everything undamaged into a new file; returns the number of rows of ticks."""
    for layout_record in read_layouts(old).values():
        record_layout(new, layout_record)
    saved_rows = newest = 0
    for row, layout, data, crc in _readable_rows(old):
        if isinstance(data, bytes) and tick_crc(row, layout, data) == crc:
            saved_rows += new.execute(
                "INSERT OR IGNORE INTO tick VALUES (?, ?, ?, ?)", (row, layout, data, crc)
            ).rowcount
            newest = max(newest, tick_start(row))
    record_servers(new, read_servers(old).items(), newest // DAY_SECONDS)
    return saved_rows


def _readable_rows(db: sqlite3.Connection) -> Iterator[TickRow]:
    """Every readable row: from the front, from the back, and between two unreadable places."""
    last_rows: list[int | None] = []
    for order in ("ASC", "DESC"):
        last = None
        try:
            for row in db.execute(f"{SELECT_TICKS} ORDER BY id {order}"):
                last = row[0]
                yield row
            if order == "ASC":
                return
        except sqlite3.DatabaseError as error:
            log.debug("reading ticks %s stopped: %s", order, error)
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                return
        last_rows.append(last)
    low, high = last_rows
    spans = [(0 if low is None else low + 1, row_key(2**33) if high is None else high - 1)]
    for _ in range(MAX_PROBES):
        if not spans:
            return
        first, last = spans.pop()
        try:
            yield from db.execute(f"{SELECT_TICKS} WHERE id BETWEEN ? AND ? ORDER BY id", (first, last))
        except sqlite3.DatabaseError:
            if last - first > MAX_PARTS:  # a range below one second has nothing more to read
                middle = (first + last) // 2
                spans += [(middle + 1, last), (first, middle)]
