"""A read-only snapshot of the ledger, for reading it while a worker holds the ledger itself.

The worker's lock keeps every other SQLite connection out, so the bytes are read without a lock: the database, its rollback
journal, and both again in the opposite order. If nothing changed in between, the copy is a state that SQLite can open, and
an interrupted commit is rolled back in the copy as it would be in the original.

Invariant: never open a snapshot in the process that owns the ledger, for closing a descriptor of the file there would drop
its lock. In any other process this touches no lock.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, RLock

from forecastd.clock import TimeBudget
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger.file import (
    SCHEMA_VERSION,
    migrate_from_version_2,
    newer_version_error,
    translate_error,
)
from forecastd.ledger.ledger import EpochKey, Ledger, LedgerEntry

_RETRY_SECONDS = 0.05  # between two attempts; a commit takes a few milliseconds


class LedgerNotFound(NeedsHuman):
    """There is no ledger."""


class LedgerSnapshot(Ledger):
    """The ledger as it was a moment ago, for reading only: what is written to it is discarded with it."""

    def __init__(self, path: Path, copy: Path) -> None:
        """Open `copy`; messages name `path`. A copy of an older version is migrated in place.

        Raises:
            LedgerNotFound: the file exists, but nothing was written to it yet.
            NeedsHuman: it is not a ledger, damaged beyond reading, or of a newer version.
        """
        self.path = path
        self.disk_failed = False
        self._lock = RLock()
        self._db = sqlite3.connect(copy, isolation_level=None)
        try:
            version = int(self._query("PRAGMA user_version", ())[0][0])
            table_count = self._query("SELECT count(*) FROM sqlite_master", ())[0][0]
            if version == 2:
                with self._transaction():
                    migrate_from_version_2(self._db)
                return
        except NeedsHuman:
            self.close()
            raise
        if version == SCHEMA_VERSION:
            return
        self.close()
        if version > SCHEMA_VERSION:
            raise newer_version_error(path, version)
        if table_count:
            raise NeedsHuman(f"{path} is not a ledger of forecastd. Check STATE_DIR.")
        raise _not_found(path)

    def accounts(self) -> list[tuple[str, str]]:
        """Every (chain id, wallet) that appears in the ledger."""
        return [
            (str(chain_id), str(wallet))
            for chain_id, wallet in self._query(
                "SELECT chain_id, wallet FROM epochs UNION SELECT chain_id, wallet FROM accounts ORDER BY 1, 2", ()
            )
        ]

    def newest_entries(self) -> list[LedgerEntry]:
        """All entries of all wallets and chains, newest first. Raises NeedsHuman when a row is invalid."""
        try:
            entries = [entry for chain_id, wallet in self.accounts() for entry in self.entries(chain_id, wallet)]
        except ValueError:
            raise NeedsHuman(
                f"The ledger {self.path} is damaged: a row has an unknown state. Start forecastd again: it renames the "
                "ledger and creates a new one from the chain."
            ) from None
        return sorted(entries, key=lambda entry: (entry.first_at, entry.nonce), reverse=True)

    def attempt_times(self, key: EpochKey) -> list[float]:
        """When each signature of an epoch was made, oldest first, in unix seconds."""
        sql = "SELECT signed_at FROM attempts WHERE chain_id = ? AND topic_id = ? AND nonce = ? AND wallet = ?"
        return [float(values[0]) for values in self._query(f"{sql} ORDER BY attempt", key)]


@contextmanager
def open_snapshot(path: Path, *, timeout_seconds: float = 5.0) -> Iterator[LedgerSnapshot]:
    """The ledger at `path` as it is now, whichever process holds it.

    Raises:
        LedgerNotFound: there is no ledger.
        RetryLater: it changed without a pause for `timeout_seconds`.
        NeedsHuman: it cannot be read, or is not a ledger of this version.
    """
    database, journal = _read_consistent(path, timeout_seconds)
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="forecastd-"))
            copy = Path(directory) / path.name
            copy.write_bytes(database)
            copy.with_name(f"{copy.name}-journal").write_bytes(journal)
        except OSError as error:
            reason = f"Cannot copy the ledger for reading: {error.strerror}. Set TMPDIR to a directory with free space."
            raise NeedsHuman(reason) from error
        yield stack.enter_context(_open_copy(path, copy))


def _open_copy(path: Path, copy: Path) -> LedgerSnapshot:
    try:
        return LedgerSnapshot(path, copy)
    except sqlite3.Error as error:
        raise translate_error(error, path) from error


def _read_consistent(path: Path, timeout_seconds: float) -> tuple[bytes, bytes]:
    """The bytes of the database and of its journal, at one moment between two writes."""
    budget, pause_event = TimeBudget(timeout_seconds), Event()
    while True:
        first_read = _read_bytes(path, required=True), _read_journal(path)
        journal, database = _read_journal(path), _read_bytes(path, required=True)
        if first_read == (database, journal):
            return database, journal
        try:
            budget.remaining()
        except TimeoutError:
            raise RetryLater(
                f"Cannot read the ledger {path}: it changed during every attempt for {timeout_seconds:g} s. Try again."
            ) from None
        pause_event.wait(_RETRY_SECONDS)


def _read_journal(path: Path) -> bytes:
    return _read_bytes(path.with_name(f"{path.name}-journal"), required=False)


def _read_bytes(path: Path, *, required: bool) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if required:
            raise _not_found(path) from None
        return b""
    except OSError as error:
        raise NeedsHuman(f"Cannot read {path}: {error.strerror}. Run this command as the worker's user.") from error


def _not_found(path: Path) -> LedgerNotFound:
    return LedgerNotFound(f"There is no ledger at {path} yet: nothing was signed with this STATE_DIR.")
