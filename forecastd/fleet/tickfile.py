"""The tables of a fleet's SQLite file, and the statements on them.

The one thing to know before changing it: a row is believed only after its own checksum, wherever it is read, and every look
at the file may find it damaged half way. So whole tables are read without a condition where they can be (SQLite then needs
only their leaves), and what is saved of a damaged file is looked for behind every unreadable place, not only the first.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from forecastd.fleet.tickblob import PARTS, key, layout_code, server_crc, start_of, tick_crc

log = logging.getLogger(__name__)

Server = tuple[str, str]  # name and profile
Row = tuple[int, int, bytes, int]  # key, layout, data, checksum

KIND = 0x66_64_66_31  # "fdf1", SQLite's application id
LAYOUT = """
CREATE TABLE IF NOT EXISTS tick (
  id INTEGER PRIMARY KEY, layout INTEGER NOT NULL, data BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS layout (code INTEGER PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS server (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS server_again (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL, profile TEXT NOT NULL, crc INTEGER NOT NULL);
"""
TABLES_OF_SERVERS = ("server", "server_again")  # twice, because a lost name would cost all ticks of its server
ALL = "SELECT id, layout, data, crc FROM tick"
TRIMMED = 64  # ticks that one call removes at most
SHRINK = 4096  # free pages from which on the file is made smaller, an eighth of that at a time
MOST_PROBES = 100_000  # looks behind unreadable places


@dataclass(frozen=True)
class Layout:
    """What the ticks with one layout number consist of."""

    step: int
    metrics: tuple[str, ...]


def known_servers(db: sqlite3.Connection) -> dict[int, Server]:
    """The servers by their numbers, from whichever of the two tables has each of them undamaged."""
    found: dict[int, Server] = {}
    for table in TABLES_OF_SERVERS:
        try:
            for number, name, profile, crc in db.execute(f"SELECT id, name, profile, crc FROM {table}"):  # noqa: S608
                if server_crc(number, name, profile) == crc:
                    found[number] = (name, profile)
        except sqlite3.DatabaseError as error:
            log.debug("reading %s stopped: %s", table, error)
    return found


def add_server(db: sqlite3.Connection, number: int, server: Server) -> None:
    """Keep a server under its number."""
    fact = (number, *server, server_crc(number, *server))
    for table in TABLES_OF_SERVERS:
        db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?)", fact)  # noqa: S608


def layouts(db: sqlite3.Connection) -> dict[int, Layout]:
    """The layouts by their numbers."""
    found = {}
    for code, text in db.execute("SELECT code, text FROM layout"):
        if layout_code(text) == code:
            _, step, metrics = text.split("|", 2)
            found[code] = Layout(int(step), tuple(metrics.split(",")))
    return found


def free_row(db: sqlite3.Connection, start: int) -> int:
    """The key of the next part of the tick that begins at `start`."""
    taken = db.execute("SELECT max(id) FROM tick WHERE id >= ? AND id < ?", (key(start), key(start + 1))).fetchone()[0]
    return key(start) if taken is None else min(taken + 1, key(start, PARTS - 1))


def trim(db: sqlite3.Connection, before: float, most_bytes: float) -> None:
    """Remove the oldest ticks: those that began before `before`, and those that are too much. A little at a time."""
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
    if free > SHRINK:
        db.execute(f"PRAGMA incremental_vacuum({SHRINK // 8})").fetchall()


def facts(db: sqlite3.Connection) -> tuple[int, int | None, int | None, int]:
    """How many rows there are, the oldest and the newest key, and the bytes in use."""
    count, oldest, newest = db.execute("SELECT count(*), min(id), max(id) FROM tick").fetchone()
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    return count, oldest, newest, (pages - free) * size


def salvage(old: sqlite3.Connection, db: sqlite3.Connection) -> int:
    """Copy everything undamaged into a new file; gives the number of ticks."""
    for number, server in known_servers(old).items():
        add_server(db, number, server)
    try:
        texts = [
            (code, text) for code, text in old.execute("SELECT code, text FROM layout") if layout_code(text) == code
        ]
    except sqlite3.DatabaseError:
        texts = []  # the program knows its own layout; ticks of another one are left out then
    db.executemany("INSERT OR IGNORE INTO layout VALUES (?, ?)", texts)
    saved = 0
    for row, layout, data, crc in _readable(old):
        if isinstance(data, bytes) and tick_crc(row, layout, data) == crc:
            saved += db.execute("INSERT OR IGNORE INTO tick VALUES (?, ?, ?, ?)", (row, layout, data, crc)).rowcount
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
