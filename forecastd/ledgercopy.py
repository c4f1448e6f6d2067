"""A copy of the ledger, for reading it while a worker holds the ledger itself.

The worker's lock shuts every other SQLite out, so the bytes are read without one: the database, its rollback journal, and
both again in the opposite order. When nothing changed meanwhile, the copy is a state that SQLite can open, and a commit
that was cut off is rolled back in the copy as it would be in the original. Never call this in the process that owns the
ledger: closing a descriptor of the file there would drop its lock. In any other process it touches no lock at all.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event, RLock

from forecastd.clock import Deadline
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger import Entry, Key, Ledger
from forecastd.ledgerfile import VERSION, problems, told

_PAUSE = 0.05  # seconds between two attempts; a commit takes a few milliseconds


class NoLedger(NeedsHuman):
    """There is no ledger."""


class LedgerCopy(Ledger):
    """The ledger as it was a moment ago. Only for reading: what is written into it is lost with it."""

    def __init__(self, path: Path, copy: Path) -> None:
        """Open `copy`; `path` is what messages call it.

        Raises:
            NoLedger: the file has been made and nothing was put into it yet.
            NeedsHuman: it is not a ledger, damaged beyond reading, or of a newer version.
        """
        self.path = path
        self.failed = False
        self._lock = RLock()
        self._db = sqlite3.connect(copy, isolation_level=None)
        try:
            version = int(self._run("PRAGMA user_version", ())[0][0])
            begun = self._run("SELECT count(*) FROM sqlite_master", ())[0][0]
        except NeedsHuman:
            self.close()
            raise
        if version == VERSION:
            return
        self.close()
        if version > VERSION:
            raise NeedsHuman(
                f"The ledger {path} was written by a newer forecastd (version {version}, this one knows {VERSION}). "
                "Install the newer forecastd again; do not delete the ledger."
            )
        if begun:
            raise NeedsHuman(f"{path} is not a ledger of forecastd. Check STATE_DIR.")
        raise _none(path)

    def accounts(self) -> list[tuple[str, str]]:
        """Every (chain id, wallet) that it knows anything of."""
        return [
            (str(chain_id), str(wallet))
            for chain_id, wallet in self._run(
                "SELECT chain_id, wallet FROM epochs UNION SELECT chain_id, wallet FROM accounts ORDER BY 1, 2", ()
            )
        ]

    def newest(self) -> list[Entry]:
        """All entries of all wallets and chains, the newest first. Raises NeedsHuman when a row makes no sense."""
        try:
            found = [entry for chain_id, wallet in self.accounts() for entry in self.entries(chain_id, wallet)]
        except ValueError:
            raise NeedsHuman(
                f"The ledger {self.path} is damaged: a row has a state that there is none of. Start forecastd again: it is "
                "set aside then, and the chain is asked."
            ) from None
        return sorted(found, key=lambda entry: (entry.first_at, entry.nonce), reverse=True)

    def signed_at(self, key: Key) -> list[float]:
        """When each signature of an epoch was made, oldest first, in unix seconds."""
        sql = "SELECT signed_at FROM attempts WHERE chain_id = ? AND topic_id = ? AND nonce = ? AND wallet = ?"
        return [float(values[0]) for values in self._run(f"{sql} ORDER BY attempt", key)]

    def problems(self) -> list[str]:
        """What is wrong with the file, in words."""
        return list(problems(self._db))


@contextmanager
def read_ledger(path: Path, *, wait: float = 5.0) -> Iterator[LedgerCopy]:
    """The ledger at `path` as it is now, whoever holds it.

    Raises:
        NoLedger: there is none.
        RetryLater: it changed without a pause for `wait` seconds.
        NeedsHuman: it cannot be read, or is not a ledger of this version.
    """
    database, journal = _stable(path, wait)
    with ExitStack() as stack:
        try:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="forecastd-"))
            copy = Path(directory) / path.name
            copy.write_bytes(database)
            copy.with_name(f"{copy.name}-journal").write_bytes(journal)
        except OSError as error:
            reason = f"Cannot copy the ledger for reading: {error.strerror}. Set TMPDIR to a place with space."
            raise NeedsHuman(reason) from error
        yield stack.enter_context(closing(_opened(path, copy)))


def _opened(path: Path, copy: Path) -> LedgerCopy:
    try:
        return LedgerCopy(path, copy)
    except sqlite3.Error as error:
        raise told(error, path) from error


def _stable(path: Path, wait: float) -> tuple[bytes, bytes]:
    """The bytes of the database and of its journal, at one moment between two writes."""
    deadline, never = Deadline(wait), Event()
    while True:
        before = _bytes(path, needed=True), _journal(path)
        journal, database = _journal(path), _bytes(path, needed=True)
        if before == (database, journal):
            return database, journal
        try:
            deadline.left()
        except TimeoutError:
            raise RetryLater(f"The ledger {path} is being written all the time. Try again.") from None
        never.wait(_PAUSE)


def _journal(path: Path) -> bytes:
    return _bytes(path.with_name(f"{path.name}-journal"), needed=False)


def _bytes(path: Path, *, needed: bool) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if needed:
            raise _none(path) from None
        return b""
    except OSError as error:
        raise NeedsHuman(f"Cannot read {path}: {error.strerror}. Run this as the worker's user.") from error


def _none(path: Path) -> NoLedger:
    return NoLedger(f"There is no ledger at {path} yet: nothing was signed with this STATE_DIR.")
