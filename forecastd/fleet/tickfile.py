"""The tables of a fleet's SQLite file, and the statements on them.

The one thing to know before changing it: a row is believed only after its own checksum, wherever it is read, and every look
at the file may find it damaged half way. So whole tables are read without a condition where they can be (SQLite then needs
only their leaves), and what is saved of a damaged file is looked for behind every unreadable place, not only the first.
"""

from __future__ import annotations

import logging
import sqlite3
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from forecastd.fleet.tickblob import PARTS, SavedTick, decode, key, server_number, start_of, tick_crc

log = logging.getLogger(__name__)

Server = tuple[str, str]  # name and profile
Row = tuple[int, int, bytes, int]  # key, layout, data, checksum

KIND = 0x66_64_66_31  # "fdf1", SQLite's application id
LAYOUT = """
CREATE TABLE IF NOT EXISTS tick (
  id INTEGER PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS layout (code INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS server (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, day INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS server_again (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, day INTEGER NOT NULL);
"""
TABLES_OF_SERVERS = ("server", "server_again")  # twice, because a lost name would cost all ticks of its server
ALL = "SELECT id, layout, data, crc FROM tick"
DAY = 86_400
TRIMMED = 64  # ticks that one call removes at most
SHRINK = 4096  # free pages from which on the file is made smaller, an eighth of that at a time
MOST_PROBES = 20_000  # looks behind unreadable places


@dataclass(frozen=True)
class Layout:
    """What the ticks with one layout number consist of."""

    step: int
    metrics: tuple[str, ...]

    @property
    def text(self) -> str:
        """How it stands in the file."""
        return f"1|{self.step}|{','.join(self.metrics)}"

    @property
    def code(self) -> int:
        """Its number, made from what it says: the table of layouts cannot say anything else under it."""
        return zlib.crc32(self.text.encode())


def known_servers(db: sqlite3.Connection) -> dict[int, Server]:
    """The servers by their numbers, from whichever of the two tables has each of them undamaged."""
    found: dict[int, Server] = {}
    for table in TABLES_OF_SERVERS:
        try:
            for number, name, profile in db.execute(f"SELECT id, name, profile FROM {table}"):  # noqa: S608
                if server_number(name, profile) == number:
                    found[number] = (name, profile)
        except sqlite3.DatabaseError as error:
            log.debug("reading %s stopped: %s", table, error)
    return found


def keep_servers(db: sqlite3.Connection, servers: Iterable[tuple[int, Server]], day: int) -> None:
    """Note that servers were there on `day` (days since 1970)."""
    facts = [(number, *server, day) for number, server in servers]
    for table in TABLES_OF_SERVERS:
        db.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", facts)  # noqa: S608


def forget_servers(db: sqlite3.Connection, before: int) -> None:
    """Remove the servers that were last there before a day."""
    for table in TABLES_OF_SERVERS:
        db.execute(f"DELETE FROM {table} WHERE day < ?", (before,))  # noqa: S608


def layouts(db: sqlite3.Connection) -> dict[int, Layout]:
    """The layouts by their numbers."""
    found: dict[int, Layout] = {}
    try:
        for code, text in db.execute("SELECT code, text FROM layout"):
            parts = text.split("|", 2)
            if zlib.crc32(text.encode()) == code and len(parts) == 3 and parts[1].isdigit():
                found[code] = Layout(int(parts[1]), tuple(parts[2].split(",")))
    except sqlite3.DatabaseError as error:
        log.debug("reading the layouts stopped: %s", error)
    return found


def keep_layout(db: sqlite3.Connection, layout: Layout) -> None:
    """Note a layout that ticks are written in."""
    db.execute("INSERT OR REPLACE INTO layout VALUES (?, ?)", (layout.code, layout.text))


class Reading:
    """One look at the ticks of a file: what they consist of, and what was seen on the way."""

    def __init__(self, db: sqlite3.Connection, own: Layout) -> None:
        """`own`: how the program writes ticks; it is known even where the file has lost it, and gives the columns."""
        self._layouts = {**layouts(db), own.code: own}
        self._metrics = own.metrics
        self.longest_step = max(layout.step for layout in self._layouts.values())
        self.damaged = 0
        self.newest: int | None = None

    def decode(self, row: int, code: int, data: object, crc: object) -> SavedTick | None:
        """The tick in a row, with the program's own columns; None where it is damaged."""
        layout = self._layouts.get(code)
        saved = None if layout is None else decode(row, code, data, crc, len(layout.metrics))
        if saved is None or layout is None:
            self.damaged += 1
            return None
        self.newest = saved.start if self.newest is None else max(self.newest, saved.start)
        if layout.metrics == self._metrics:
            return saved
        values = np.full((len(saved.which), len(self._metrics)), np.nan, np.float32)
        for column, name in enumerate(self._metrics):
            if name in layout.metrics:
                values[:, column] = saved.values[:, layout.metrics.index(name)]
        return replace(saved, values=values)


def free_row(db: sqlite3.Connection, start: int) -> int:
    """The key of the next part of the tick that begins at `start`."""
    taken = db.execute("SELECT max(id) FROM tick WHERE id >= ? AND id < ?", (key(start), key(start + 1))).fetchone()[0]
    return key(start) if taken is None else min(taken + 1, key(start, PARTS - 1))


def trim(db: sqlite3.Connection, before: float, most_bytes: float) -> int:
    """Remove the oldest ticks: those that began before `before`, and those that are too much; gives how many rows.

    A little at a time, so that no call takes long.
    """
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    excess = (pages - free) * size - most_bytes
    going = []
    for row, length in db.execute(f"SELECT id, length(data) FROM tick ORDER BY id LIMIT {TRIMMED}"):  # noqa: S608
        if start_of(row) >= before and excess <= 0:
            break
        going.append((row,))
        excess -= length
    db.executemany("DELETE FROM tick WHERE id = ?", going)
    if db.execute("PRAGMA freelist_count").fetchone()[0] > SHRINK:
        db.execute(f"PRAGMA incremental_vacuum({SHRINK // 8})").fetchall()
    return len(going)


def ends(db: sqlite3.Connection) -> tuple[int | None, int | None]:
    """The oldest and the newest row."""
    # Two questions: SQLite has a short way to one end of a table, not to both at once.
    oldest = db.execute("SELECT min(id) FROM tick").fetchone()[0]
    return oldest, db.execute("SELECT max(id) FROM tick").fetchone()[0]


def count_rows(db: sqlite3.Connection) -> int:
    """How many rows of ticks there are. SQLite looks at all of them."""
    return int(db.execute("SELECT count(*) FROM tick").fetchone()[0])


def used_bytes(db: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)


def salvage(old: sqlite3.Connection, db: sqlite3.Connection) -> int:
    """Copy everything undamaged into a new file; gives the number of rows of ticks."""
    for known in layouts(old).values():
        keep_layout(db, known)
    saved = newest = 0
    for row, layout, data, crc in _readable(old):
        if isinstance(data, bytes) and tick_crc(row, layout, data) == crc:
            saved += db.execute("INSERT OR IGNORE INTO tick VALUES (?, ?, ?, ?)", (row, layout, data, crc)).rowcount
            newest = max(newest, start_of(row))
    keep_servers(db, known_servers(old).items(), newest // DAY)
    return saved


def _readable(db: sqlite3.Connection) -> Iterator[Row]:
    """Every row that can be read: from the front, from the back, and what is between two unreadable places."""
    ends: list[int | None] = []
    for order in ("ASC", "DESC"):
        last = None
        try:
            for row in db.execute(f"{ALL} ORDER BY id {order}"):
                last = row[0]
                yield row
            if order == "ASC":
                return
        except sqlite3.DatabaseError as error:
            log.debug("reading ticks %s stopped: %s", order, error)
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                return
        ends.append(last)
    low, high = ends
    spans = [(0 if low is None else low + 1, key(2**33) if high is None else high - 1)]
    for _ in range(MOST_PROBES):
        if not spans:
            return
        first, last = spans.pop()
        try:
            yield from db.execute(f"{ALL} WHERE id BETWEEN ? AND ? ORDER BY id", (first, last))
        except sqlite3.DatabaseError:
            if last - first > PARTS:  # narrower than a second there is nothing more to be found
                middle = (first + last) // 2
                spans += [(middle + 1, last), (first, middle)]
