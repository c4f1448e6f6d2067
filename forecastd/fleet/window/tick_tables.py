"""The tables of a fleet's SQLite file, the statements on them, and a saved tick as bytes with a checksum.

Invariant: a read returns exactly what was written, or nothing. A row is trusted only after its own checksum is
verified, which covers the bytes and their position (tick, part, layout), and any read may find the file partly
damaged. So whole tables are read without a WHERE where possible (SQLite then needs only leaf pages), and a salvage
searches behind every unreadable place, not only the first. The id of a server is derived from its name, so no flipped
bit can assign values to another server.

The bytes of a tick are little-endian arrays one after the other: server ids int64 `[N]`, seconds into the tick float32
`[N]`, indices into STATUSES uint8 `[N]`, values float32 `[N, metrics]`.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import STATUSES

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
FIXED_BYTES_PER_SERVER = 13  # of a tick, in addition to the values
MAX_PARTS = 1 << 16  # per tick: one when it closes, and one for each batch of late rows
DAY_SECONDS = 86_400
MAX_TRIMMED_ROWS = 64  # per call
SHRINK_PAGES = 4096  # free pages above which the file is shrunk, by an eighth of that at a time
MAX_PROBES = 20_000  # reads behind unreadable places


@dataclass(frozen=True)
class SavedTick:
    """Rows of one tick as they are stored."""

    start: int  # unix seconds
    server_ids: NDArray[np.int64]  # [N], ids of servers
    offsets: NDArray[np.float32]  # [N], seconds after `start`
    status_codes: NDArray[np.uint8]  # [N], indices into STATUSES
    values: NDArray[np.float32]  # [N, metrics]


def row_key(start: int, part: int = 0) -> int:
    """The key of part `part` of the tick that begins at `start`; keys sort by time, then part."""
    return start * MAX_PARTS + part


def tick_start(row: int) -> int:
    """The start of the tick of a row, unix seconds."""
    return row // MAX_PARTS


def tick_crc(row: int, layout: int, data: bytes) -> int:
    """The checksum of a tick and its position."""
    return zlib.crc32(data, zlib.crc32(f"{row}|{layout}".encode()))


def make_server_id(name: str, profile: str) -> int:
    """The id of a server with this profile, derived from both, so that the table of servers can be verified."""
    digest = hashlib.blake2b(f"{name}|{profile}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


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


def write_tick(db: sqlite3.Connection, tick: SavedTick, layout: int) -> None:
    """Insert a tick as the next part of those that begin at its start. `layout`: the code of its layout."""
    first, beyond = row_key(tick.start), row_key(tick.start + 1)
    last = db.execute("SELECT max(id) FROM tick WHERE id >= ? AND id < ?", (first, beyond)).fetchone()[0]
    row = first if last is None else min(last + 1, beyond - 1)
    arrays = (tick.server_ids.astype("<i8"), tick.offsets.astype("<f4"), tick.status_codes, tick.values.astype("<f4"))
    data = b"".join(array.tobytes() for array in arrays)
    db.execute("INSERT OR REPLACE INTO tick VALUES (?, ?, ?, ?)", (row, layout, data, tick_crc(row, layout, data)))


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
        """The tick in a row, with the columns of this program; None if it is not what was written."""
        layout = self._layouts.get(code)
        tick = None
        if layout is not None and isinstance(data, bytes) and tick_crc(row, code, data) == crc:
            tick = self._decode_data(tick_start(row), layout.metrics, data)
        if tick is None:
            self.damaged += 1
        else:
            self.newest = max(tick.start, self.newest or 0)
        return tick

    def _decode_data(self, start: int, metrics: tuple[str, ...], data: bytes) -> SavedTick | None:
        count, rest = divmod(len(data), FIXED_BYTES_PER_SERVER + 4 * len(metrics))
        if rest:
            return None
        ids, offsets = np.frombuffer(data, "<i8", count), np.frombuffer(data, "<f4", count, 8 * count)
        status_codes = np.frombuffer(data, "u1", count, 12 * count)
        values = np.frombuffer(data[FIXED_BYTES_PER_SERVER * count :], "<f4").reshape(count, len(metrics))
        if status_codes.max(initial=0) >= len(STATUSES):
            return None
        if metrics != self._metrics:
            columns = [metrics.index(name) if name in metrics else len(metrics) for name in self._metrics]
            values = np.column_stack([values, np.full(count, np.nan, np.float32)])[:, columns]
        return SavedTick(start, ids, offsets, status_codes, values)


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the file that are in use."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def trim(db: sqlite3.Connection, before: float, max_bytes: float) -> int:
    """Delete the oldest ticks: those that began before `before`, and those beyond `max_bytes`; returns the number of
    rows.

    It deletes few at a time, so that no call takes long.
    """
    excess = used_bytes(db) - max_bytes
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


def count_rows(db: sqlite3.Connection) -> int:
    """The number of rows of ticks. SQLite reads all of them."""
    return int(db.execute("SELECT count(*) FROM tick").fetchone()[0])


def salvage(old: sqlite3.Connection, new: sqlite3.Connection) -> int:
    """Copy everything undamaged into a new file; returns the number of rows of ticks."""
    for layout_record in read_layouts(old).values():
        record_layout(new, layout_record)
    saved_rows = newest = 0
    for row, layout, data, crc in _readable_rows(old):
        if isinstance(data, bytes) and tick_crc(row, layout, data) == crc:
            statement = "INSERT OR IGNORE INTO tick VALUES (?, ?, ?, ?)"
            saved_rows += new.execute(statement, (row, layout, data, crc)).rowcount
            newest = max(newest, tick_start(row))
    record_servers(new, read_servers(old).items(), newest // DAY_SECONDS)
    return saved_rows


def _readable_rows(db: sqlite3.Connection) -> Iterator[TickRow]:
    """Every readable row: from the front, from the back, and between two unreadable places."""
    low, high = 0, row_key(2**33)  # where rows are still to be read
    for order in ("ASC", "DESC"):
        try:
            for row in db.execute(f"{SELECT_TICKS} ORDER BY id {order}"):
                if order == "ASC":
                    low = row[0] + 1
                else:
                    high = row[0] - 1
                yield row
            if order == "ASC":
                return
        except sqlite3.DatabaseError as error:
            log.debug("reading ticks %s stopped: %s", order, error)
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                return
    spans = [(low, high)]
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
