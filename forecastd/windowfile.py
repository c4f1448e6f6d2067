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
Salvage = Callable[[sqlite3.Connection, sqlite3.Connection], int]

BUSY_SECONDS = 5.0  # how long another process may hold the file before this one goes on without it
MOST_ASIDE = 5  # damaged files kept for a person to look at


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
        kind: int,
        layout: str,
        salvage: Salvage,
        lost: str,
        busy: float = BUSY_SECONDS,
        aside: int = MOST_ASIDE,
        read_only: bool = False,
    ) -> None:
        self.path = path
        self.read_only = read_only
        self.openings = 0  # counts up with every connection: what was remembered of the file's content ends there
        self.db: sqlite3.Connection | None = None
        self._kind, self._layout, self._salvage, self._lost = kind, layout, salvage, lost
        self._busy, self._most_aside = busy, aside
        self._lock = threading.RLock()
        self._inode = 0

    def close(self) -> None:
        """Let go of the file. It is opened again when it is needed again."""
        with self._lock:
            self._drop()

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
                    self._drop()
                    raise FileUnavailableError(error) from error
                damage = error
            try:
                self._set_aside(damage)
                return self._transact(work)
            except (sqlite3.Error, OSError) as error:
                self._drop()
                raise FileUnavailableError(error) from error

    def _transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self.db is not None and self._is_gone():
            self._drop()
        db = self.db or self._connect()
        with db:
            return work(db)

    def _is_gone(self) -> bool:
        """Whether the file was deleted or replaced: SQLite would go on writing into what nobody can open again."""
        try:
            return self.path.stat().st_ino != self._inode
        except FileNotFoundError:
            return True

    def _connect(self) -> sqlite3.Connection:
        if self.read_only:
            where = f"{self.path.absolute().as_uri()}?mode=ro"
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            where = self.path.absolute().as_uri()
        db = sqlite3.connect(where, self._busy, isolation_level="IMMEDIATE", check_same_thread=False, uri=True)
        try:
            db.text_factory = lambda raw: raw.decode(errors="replace")  # a flipped bit is found by the checksum
            if not self.read_only and db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # counts only before there is a table
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(f"BEGIN IMMEDIATE; PRAGMA application_id = {self._kind}; {self._layout} COMMIT;")
            self._require_kind(db)
            db.execute("PRAGMA synchronous = NORMAL")
            self._inode = self.path.stat().st_ino
        except BaseException:
            db.close()
            raise
        self.openings += 1
        self.db = db
        return db

    def _require_kind(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA application_id").fetchone()[0] != self._kind:
            raise _ForeignFileError((_ForeignFileError.__doc__ or "").rstrip("."))

    def _drop(self) -> None:
        if self.db is not None:
            self.db.close()
            self.db = None

    def _set_aside(self, error: Exception) -> None:
        """Rename the file and SQLite's files beside it, and save into a new one what can still be read."""
        known = self._inode if self.db is not None else None
        self._drop()
        if not self.path.exists() or known not in {None, self.path.stat().st_ino}:
            return  # another process has set it aside already
        names = [self.path.with_name(f"{self.path.name}.damaged-{n}") for n in range(1, self._most_aside + 1)]
        aside = next((name for name in names if not name.exists()), names[-1])
        for suffix in ("-wal", "-shm", ""):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.replace(aside.with_name(aside.name + suffix))
        saved = self._save(aside)
        log.warning(
            "The rolling window %s is damaged (%s). It was set aside as %s and begun again with %d rows saved; %s.",
            self.path, error, aside.name, saved, self._lost,
        )  # fmt: skip

    def _save(self, aside: Path) -> int:
        old = sqlite3.connect(aside, timeout=self._busy)
        try:
            old.text_factory = lambda raw: raw.decode(errors="replace")
            db = self._connect()
            with db:
                return self._salvage(old, db)
        finally:
            old.close()


def is_damage(error: Exception) -> bool:
    """Whether the file itself is at fault and will stay so."""
    if isinstance(error, _ForeignFileError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    # ERROR: the statements here are fixed, so one that does not fit means that the file's layout is not this one.
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
