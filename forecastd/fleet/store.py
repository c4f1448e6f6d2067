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

from forecastd.clock import iso
from forecastd.fleet.contract import NAMES, STATUSES
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.history import HistoryChunk, joined
from forecastd.fleet.intake import Rows
from forecastd.fleet.tickblob import SavedTick, encode, key, server_number, start_of, tick_crc
from forecastd.fleet.tickfile import (
    ALL,
    DAY,
    KIND,
    LAYOUT,
    Layout,
    Reading,
    Server,
    count_rows,
    ends,
    forget_servers,
    free_row,
    keep_layout,
    keep_servers,
    known_servers,
    salvage,
    trim,
    used_bytes,
)
from forecastd.windowfile import FileUnavailableError, WindowFile

__all__ = ["HistoryChunk", "LoadReport", "StoreState", "TickStore"]

log = logging.getLogger(__name__)

BUSY_SECONDS = 1.0  # a ticker must not stand still for long
STALE_SECONDS = 1800.0  # a window older than this is told of
SYNC_SECONDS = 60.0
MOST_WAITING = 720  # batches of rows that wait in memory for room on the disk
CAUGHT_UP = 16  # of those, written after one tick
CHUNK = 64  # ticks of the history that are read at once
LONGEST_STEP = 3600  # seconds; how long before a time the tick may have begun that it is in
_STATE = {name: code for code, name in enumerate(STATUSES)}
MOST_SKIPPED = 10_000  # ticks in a row that may be unreadable before a history ends


@dataclass(frozen=True)
class LoadReport:
    """What came back from disk."""

    ticks: int
    rows: int
    servers: int
    damaged: int  # ticks that were not what was written, left out
    newest: float | None  # unix time of the newest saved tick, of use or not; None for an empty store
    age_seconds: float | None  # how old that is


@dataclass(frozen=True)
class StoreState:
    """What the file holds, and what keeps it from being written, for people."""

    ticks: int
    oldest: float | None
    newest: float | None
    megabytes: float
    problem: str | None


class TickStore:
    """The ticks of a fleet in one SQLite file, the newest `hours` of them and at most `megabytes`.

    No method raises for a damaged, full, busy, read-only or vanished file: what goes wrong is logged once, told by `problem`
    until it is over, and the store does as if it held nothing.
    """

    def __init__(
        self,
        path: Path,
        metrics: tuple[str, ...] = NAMES,
        *,
        step: int = 5,
        hours: float = 48.0,
        megabytes: float = 2048.0,
        read_only: bool = False,
    ) -> None:
        self.path, self.metrics, self.step = path, metrics, step
        self.hours, self.megabytes = hours, megabytes
        self.problem: str | None = None  # why it cannot be written now; None while it can
        self.given_up = 0  # batches of rows that could not be written and waited too long
        self._file = WindowFile(
            path,
            kind=KIND,
            layout=LAYOUT,
            salvage=salvage,
            lost="the rest is lost",
            busy=BUSY_SECONDS,
            aside=1,  # such a file may be large, and what could be read of it is in the new one
            read_only=read_only,
        )
        self._layout = Layout(step, metrics)
        self._waiting: deque[Rows] = deque()
        self._lock = Lock()
        self._known = _Known(-1, None, {}, 0)
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

    def append(self, rows: Rows, now: float) -> bool:
        """Keep rows, such as `FleetWindow.unsaved` gives them, as one part of each of their ticks; whether it was done.

        One transaction: a kill loses it whole or not at all. It also removes what is too old at `now`, or too much, a little
        at a time. Rows that cannot be written now wait for a later call.
        """
        with self._lock:
            if len(rows) and not self._written([rows], now):
                self._waiting.append(rows)
                if len(self._waiting) > MOST_WAITING:
                    self._waiting.popleft()
                    self.given_up += 1
                return False
            while self._waiting:
                batch = [self._waiting[at] for at in range(min(CAUGHT_UP, len(self._waiting)))]
                if not self._written(batch, now):
                    return False
                for _ in batch:
                    self._waiting.popleft()
                if len(rows):
                    break  # the rest with the next ticks
            return True

    def _written(self, batch: list[Rows], now: float) -> bool:
        try:
            self._known = self._file.run(lambda db: self._write(db, batch, now))
        except FileUnavailableError as error:
            if self.problem is None:
                log.warning("The fleet's window %s cannot be written now: %s. Going on in memory.", self.path, error)
            self.problem = str(error)
            return False
        if self.problem is not None:
            told = "The fleet's window %s is written again; %d batches of rows wait for it, %d were given up."
            log.info(told, self.path, len(self._waiting), self.given_up)
            self.problem = None
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

    def _write(self, db: sqlite3.Connection, batch: list[Rows], now: float) -> _Known:
        """Insert a batch; gives what is known of the file when it is committed."""
        known, today = self._known, int(now // DAY)
        if known.opening != self._file.openings:
            known = _Known(self._file.openings, None, {}, count_rows(db))
            keep_layout(db, self._layout)
        if known.day != today:  # once a day every server is noted again, and those are forgotten that no tick speaks of
            known = replace(known, day=today, servers={})
            forget_servers(db, today - int(self.hours // 24) - 2)
        count, servers = known.count, known.servers
        for rows in batch:
            new = [one for one in dict.fromkeys(zip(rows.servers, rows.profiles, strict=True)) if one not in servers]
            if new:
                numbers = {server: server_number(*server) for server in new}
                keep_servers(db, [(number, server) for server, number in numbers.items()], today)
                servers = servers | numbers
            for tick in _ticks_of(rows, servers, self.step):
                row, data = free_row(db, tick.start), encode(tick)
                saved = (row, self._layout.code, data, tick_crc(row, self._layout.code, data))
                db.execute("INSERT OR REPLACE INTO tick VALUES (?, ?, ?, ?)", saved)
                count += 1
        count -= trim(db, now - self.hours * 3600.0, self.megabytes * 1e6)
        return replace(known, servers=servers, count=count)

    def load(self, window: FleetWindow, now: float) -> LoadReport:
        """Bring back what is kept of the window's ticks at `now`, whose tick becomes the open one."""
        window.advance(int(now // window.step) - 1)
        try:
            report = self._file.run(lambda db: self._load(db, window, now))
        except FileUnavailableError as error:
            log.warning("The fleet's window %s cannot be read now: %s. Beginning without it.", self.path, error)
            return LoadReport(0, 0, 0, 0, None, None)
        if report.damaged:
            log.warning("%d damaged ticks in %s are left out", report.damaged, self.path)
        if report.age_seconds is not None and report.age_seconds > STALE_SECONDS:
            span = window.keep * window.step
            use = (
                "too old to be used"
                if report.age_seconds > span
                else f"used as far as it is in the last {span / 60:.0f} min"
            )
            log.warning("The fleet's window %s is %.0f min old; it is %s.", self.path, report.age_seconds / 60, use)
        return report

    def _load(self, db: sqlite3.Connection, window: FleetWindow, now: float) -> LoadReport:
        reading = Reading(db, self._layout)
        first = (window.newest - window.keep + 1) * window.step
        used: list[int] = []

        def parts() -> Iterator[SavedTick]:
            # Without a condition: SQLite then needs only the leaves, so a damaged inner page hides no good tick unnoticed.
            for row in db.execute(f"{ALL} ORDER BY id DESC"):
                saved = reading.decode(*row)
                if saved is not None:
                    if saved.start + reading.longest_step <= first:
                        return
                    used.append(saved.start)
                    yield saved

        rows = window.restore(known_servers(db), parts())
        age = None if reading.newest is None else max(0.0, now - reading.newest)
        return LoadReport(len(set(used)), rows, len(window), reading.damaged, reading.newest, age)

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
        span, at, skipped = CHUNK, int(start) - LONGEST_STEP, 0
        while at < end and skipped < MOST_SKIPPED:
            try:
                found, following = self._file.run(lambda db, at=at, span=span: self._chunk(db, at, end, span))  # type: ignore[misc]
            except FileUnavailableError as error:
                if not error.damaged:
                    log.warning("The fleet's history %s cannot be read from %s on: %s", self.path, iso(at), error)
                    return
                # A file that this process may not mend: around the damage tick by tick.
                at, skipped, span = (at + self.step, skipped + 1, 1) if span == 1 else (at, skipped, 1)
                continue
            if found is not None:
                chosen = found.choose(start, end, servers, metrics)
                if len(chosen):
                    yield chosen
            if following is None:
                return
            at, skipped, span = following, 0, min(2 * span, CHUNK)

    def _chunk(self, db: sqlite3.Connection, at: int, end: float, span: int) -> tuple[HistoryChunk | None, int | None]:
        """The first `span` ticks there are from `at` on, and where the next begin; None and None for no more."""
        first = db.execute("SELECT min(id) FROM tick WHERE id >= ?", (key(at),)).fetchone()[0]
        if first is None or start_of(first) >= end:
            return None, None
        begin = start_of(first)
        stop = begin + span * self.step
        reading = Reading(db, self._layout)
        rows = db.execute(f"{ALL} WHERE id >= ? AND id < ? ORDER BY id", (first, key(stop)))
        parts = [saved for row in rows if (saved := reading.decode(*row)) is not None]
        return joined(parts, known_servers(db), self.metrics), stop

    def state(self) -> StoreState:
        """What the file holds now."""
        try:
            return self._file.run(self._state)
        except FileUnavailableError as error:
            return StoreState(0, None, None, 0.0, self.problem or str(error))

    def _state(self, db: sqlite3.Connection) -> StoreState:
        # The count is taken from memory where it can be: SQLite would look at every row.
        known = self._known
        count = known.count if known.opening == self._file.openings else count_rows(db)
        oldest, newest = (None if row is None else float(start_of(row)) for row in ends(db))
        return StoreState(count, oldest, newest, used_bytes(db) / 1e6, self.problem)


@dataclass(frozen=True)
class _Known:
    """What the writer knows of the file without asking it."""

    opening: int  # the opening of the file that it is true of
    day: int | None  # when `servers` were noted in the file
    servers: dict[Server, int]  # with their numbers
    count: int  # rows of ticks


def _ticks_of(rows: Rows, numbers: dict[Server, int], step: int) -> Iterator[SavedTick]:
    """The rows, tick by tick."""
    which = np.array([numbers[server] for server in zip(rows.servers, rows.profiles, strict=True)], dtype=np.int64)
    offsets = (rows.times - rows.ticks * step).astype(np.float32)
    states = np.array([_STATE[status] for status in rows.statuses], dtype=np.uint8)
    order = np.argsort(rows.ticks, kind="stable")
    for at in np.split(order, np.flatnonzero(np.diff(rows.ticks[order])) + 1):
        yield SavedTick(int(rows.ticks[at[0]]) * step, which[at], offsets[at], states[at], rows.values[at])
