"""SQLite files: what their errors mean, and how a damaged file is set aside.

`SqliteCache` is a file that may be lost, but must never return wrong data. A file that SQLite cannot read is renamed and
replaced by a new one with the rows that its owner can still read. Every other fault raises `FileUnavailableError`, and
the owner continues without the file.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeVar

from forecastd.runtime.closeable import Closeable

log = logging.getLogger(__name__)
T = TypeVar("T")
SalvageFunction = Callable[[sqlite3.Connection, sqlite3.Connection], int]

BUSY_SECONDS = 5.0  # how long to wait for another process's lock before continuing without the file
MAX_DAMAGED_FILES = 5  # damaged files that are kept for inspection

Fault = Literal["busy", "full", "disk", "unwritable", "damaged", "other"]
_FAULTS: dict[int, Fault] = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "disk",
    sqlite3.SQLITE_READONLY: "unwritable",
    sqlite3.SQLITE_CANTOPEN: "unwritable",
    sqlite3.SQLITE_PERM: "unwritable",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}


def classify_error(error: Exception) -> Fault:
    """What an error of SQLite means: another process has the lock, the disk is full or failed, the file cannot be written
    or is damaged.
    """
    code = getattr(error, "sqlite_errorcode", None)
    return "other" if code is None else _FAULTS.get(code & 0xFF, "other")


def set_aside(path: Path, companions: Iterable[str] = (), *, max_files: int | None = None) -> Path:
    """Rename a damaged file, and what belongs to it, to `NAME.damaged-N`; returns the new path.

    `companions`: suffixes of other files that belong to it, except those of SQLite. With `max_files`, the last of so many
    damaged files is replaced.
    """
    number = 1
    while number != max_files and path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    damaged_path = path.with_name(f"{path.name}.damaged-{number}")
    for suffix in (
        "-journal",
        "-wal",
        "-shm",
        *companions,
        "",
    ):  # the file itself last: its journal must never stay alone
        file = path.with_name(path.name + suffix)
        if file.exists():
            file.replace(damaged_path.with_name(damaged_path.name + suffix))
    return damaged_path


class FileUnavailableError(Exception):
    """The file cannot be used now; the message is that of SQLite or the operating system."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.damaged = is_damage(error)


class _ForeignFileError(sqlite3.DatabaseError):
    """The file is a database but not a file of this kind and version."""


class SqliteCache(Closeable):
    """One SQLite file in WAL mode with `synchronous=NORMAL`, safe for several threads and processes at once.

    Durability in this mode: a killed process loses only the transaction in flight. A power cut may also lose the
    transactions since the last checkpoint (SQLite makes one every 1,000 pages; an owner may make one sooner), but never
    damages the file.

    Args:
        path: the file; created when missing, unless `read_only`.
        application_id: SQLite's application id; identifies the kind of file and the version of its schema.
        schema: the statements that create the tables.
        salvage: copies the readable rows of a damaged file (first argument) into a new one (second argument), inside a
            transaction of the new one, and returns the number of rows.
        loss_message: what happens to the lost rows; the end of the warning about damage.
        busy_seconds: how long to wait for another process's lock.
        max_damaged_files: how many damaged files are kept.
        read_only: read only; never create, repair or rename a file.
    """

    def __init__(
        self,
        path: Path,
        *,
        application_id: int,
        schema: str,
        salvage: SalvageFunction,
        loss_message: str,
        busy_seconds: float = BUSY_SECONDS,
        max_damaged_files: int = MAX_DAMAGED_FILES,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.connection_count = 0  # a new connection makes what its owner remembers of the content invalid
        self.db: sqlite3.Connection | None = None
        self._application_id = application_id
        self._schema = schema
        self._salvage = salvage
        self._loss_message = loss_message
        self._busy_seconds = busy_seconds
        self._max_damaged_files = max_damaged_files
        self._lock = threading.RLock()
        self._inode = 0

    def close(self) -> None:
        """Close the file. The next use opens it again."""
        with self._lock:
            self._disconnect()

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction. If the file turns out to be damaged, replace it and run `work` once more.

        Raises:
            FileUnavailableError: the file cannot be used now.
        """
        with self._lock:
            try:
                return self._transact(work)
            except sqlite3.ProgrammingError:
                raise
            except (sqlite3.Error, OSError) as error:
                if self.read_only or not is_damage(error):
                    self._disconnect()
                    raise FileUnavailableError(error) from error
                damage = error
            try:
                self._replace_damaged(damage)
                return self._transact(work)
            except (sqlite3.Error, OSError) as error:
                self._disconnect()
                raise FileUnavailableError(error) from error

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.db is not None and self._is_replaced():
            self._disconnect()
        db = self.db or self._connect()
        with db:
            return work(db)

    def _is_replaced(self) -> bool:
        """Whether the file was deleted or replaced. SQLite would continue to write to the unlinked file."""
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            uri = self.path.absolute().as_uri()
        db = sqlite3.connect(uri, self._busy_seconds, isolation_level="IMMEDIATE", check_same_thread=False, uri=True)
        try:
            db.text_factory = lambda raw: raw.decode(errors="replace")  # the row checksum detects flipped bits
            if not self.read_only and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # has no effect once a table exists
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(
                    f"BEGIN IMMEDIATE; PRAGMA application_id = {self._application_id}; {self._schema} COMMIT;"
                )
            self._require_application_id(db)
            db.execute("PRAGMA synchronous = NORMAL")
            self._inode = self.path.stat().st_ino
        except BaseException:
            db.close()
            raise
        self.connection_count += 1
        self.db = db
        return db

    def _require_application_id(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA application_id").fetchone()[0] != self._application_id:
            raise _ForeignFileError((_ForeignFileError.__doc__ or "").rstrip("."))

    def _disconnect(self) -> None:
        if self.db is not None:
            self.db.close()
            self.db = None

    def _replace_damaged(self, error: Exception) -> None:
        """Rename the damaged file with its -wal and -shm files, and copy the readable rows into a new file."""
        inode = self._inode if self.db is not None else None
        self._disconnect()
        if not self.path.exists() or inode not in {None, self.path.stat().st_ino}:
            return  # another process has already replaced it
        damaged_path = set_aside(self.path, max_files=self._max_damaged_files)
        row_count = self._salvage_rows(damaged_path)
        log.warning(
            "The rolling window %s is damaged (%s). It was renamed to %s and replaced with %d salvaged rows; %s.",
            self.path, error, damaged_path.name, row_count, self._loss_message,
        )  # fmt: skip

    def _salvage_rows(self, damaged_path: Path) -> int:
        damaged_db = sqlite3.connect(damaged_path, timeout=self._busy_seconds)
        try:
            damaged_db.text_factory = lambda raw: raw.decode(errors="replace")
            db = self._connect()
            with db:
                return self._salvage(damaged_db, db)
        finally:
            damaged_db.close()


def is_damage(error: Exception) -> bool:
    """Whether the error is a permanent fault of the file itself."""
    # SQLITE_ERROR: the statements are fixed, so a statement that fails means a different schema.
    is_other_schema = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR
    return isinstance(error, _ForeignFileError) or is_other_schema or classify_error(error) == "damaged"
