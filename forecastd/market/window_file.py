"""The SQLite file under a rolling window: opening it, its layout, and what is done when it is damaged, full, busy or gone.

The one thing to know before changing it: such a file is a cache that may be lost, never a store that may lie. A file that
SQLite cannot read is set aside under a new name and begun again with what its owner can still read of it. Everything else
that goes wrong ends in `FileUnavailableError`, and the owner goes on without the file.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")
SalvageFunction = Callable[[sqlite3.Connection, sqlite3.Connection], int]

BUSY_SECONDS = 5.0  # how long another process may hold the file before this one goes on without it
MAX_DAMAGED_FILES = 5  # damaged files kept for a person to look at


class FileUnavailableError(Exception):
    """The file cannot be used now; the message is what SQLite or the system says of it."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.damaged = is_damage(error)


class _ForeignFileError(sqlite3.DatabaseError):
    """The file is a database, and no rolling window of this version."""


class WindowFile:
    """One SQLite file in WAL mode with `synchronous=NORMAL`, for several threads and processes at once.

    `synchronous=NORMAL` in WAL mode: a process that is killed loses the transaction in flight; a power cut may lose those
    since the last checkpoint as well (SQLite makes one every 1,000 pages, an owner may make one sooner), and never damages
    the file.

    Args:
        path: the file, made when absent unless `read_only`.
        kind: SQLite's application id: what the file is and the version of its layout.
        layout: the statements that make its tables.
        salvage: copies what can be read of a damaged file (first argument) into a new one, in a transaction of the new
            one, and gives the number of rows.
        lost: what becomes of the rest; ends the sentence that tells the damage.
        busy: seconds that another process may hold the file.
        aside: damaged files that are kept.
        read_only: look only; nothing is made, mended or set aside.
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
        self.connection_count = (
            0  # counts up with every connection: what was remembered of the file's content ends there
        )
        self.db: sqlite3.Connection | None = None
        self._application_id, self._schema, self._salvage, self._loss_message = (
            application_id,
            schema,
            salvage,
            loss_message,
        )
        self._busy_seconds, self._max_damaged_files = busy_seconds, max_damaged_files
        self._lock = threading.RLock()
        self._inode = 0

    def close(self) -> None:
        """Let go of the file. It is opened again when it is needed again."""
        with self._lock:
            self._disconnect()

    def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`work` as one transaction; once more on a new file, where this one turns out to be damaged.

        Raises:
            FileUnavailableError: the file does not allow it now.
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
        """Whether the file was deleted or replaced: SQLite would go on writing into what nobody can open again."""
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
            db.text_factory = lambda raw: raw.decode(errors="replace")  # a flipped bit is found by the checksum
            if not self.read_only and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before there is a table
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
        """Rename the file and SQLite's files beside it, and save into a new one what can still be read."""
        inode = self._inode if self.db is not None else None
        self._disconnect()
        if not self.path.exists() or inode not in {None, self.path.stat().st_ino}:
            return  # another process has set it aside already
        candidates = [
            self.path.with_name(f"{self.path.name}.damaged-{n}") for n in range(1, self._max_damaged_files + 1)
        ]
        damaged_path = next((candidate for candidate in candidates if not candidate.exists()), candidates[-1])
        for suffix in ("-wal", "-shm", ""):
            file = self.path.with_name(self.path.name + suffix)
            if file.exists():
                file.replace(damaged_path.with_name(damaged_path.name + suffix))
        row_count = self._salvage_rows(damaged_path)
        log.warning(
            "The rolling window %s is damaged (%s). It was set aside as %s and begun again with %d rows saved; %s.",
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
    """Whether the file itself is at fault and will stay so."""
    if isinstance(error, _ForeignFileError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    # ERROR: the statements here are fixed, so one that does not fit means that the file's layout is not this one.
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
