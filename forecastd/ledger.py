"""The submission ledger: what is signed is committed here before its first byte leaves.

One row per (chain id, topic, nonce, wallet). The database is opened for one process at a time, and a commit is on the
platter when it returns: `synchronous=EXTRA` with a rollback journal. Never `open()` the file beside SQLite: closing any
descriptor of it would drop the lock. A failed fsync is not tried again; the error ends the cycle with the row unsent.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forecastd.errors import NeedsHuman, RetryLater

SCHEMA_VERSION = 1
State = Literal["signed", "confirmed", "rejected", "expired"]

_SCHEMA = """
CREATE TABLE submissions (
  chain_id TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, wallet TEXT NOT NULL,
  value TEXT NOT NULL, sequence INTEGER NOT NULL, tx_bytes BLOB NOT NULL, tx_hash TEXT NOT NULL,
  timeout_height INTEGER NOT NULL, gas INTEGER NOT NULL, fee_uallo TEXT NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('signed', 'confirmed', 'rejected', 'expired')),
  height INTEGER, reason TEXT NOT NULL DEFAULT '', signed_at REAL NOT NULL, settled_at REAL,
  PRIMARY KEY (chain_id, topic_id, nonce, wallet)
) STRICT, WITHOUT ROWID
"""
_KEY = "chain_id = ? AND topic_id = ? AND nonce = ? AND wallet = ?"
_COLUMNS = "chain_id, topic_id, nonce, wallet, value, sequence, tx_bytes, tx_hash, timeout_height, gas, fee_uallo"


@dataclass(frozen=True)
class Submission:
    """One signed transaction that carries one forecast.

    `value` is the decimal exactly as signed, `tx_bytes` the exact bytes to send, `tx_hash` their upper-case hex sha256,
    `sequence` the account's sequence they use up, and `timeout_height` the last block that may include them: the last
    of the submission window. Gas in units, the fee in uallo.
    """

    chain_id: str
    topic_id: int
    nonce: int
    wallet: str
    value: str
    sequence: int
    tx_bytes: bytes
    tx_hash: str
    timeout_height: int
    gas: int
    fee_uallo: int

    @property
    def key(self) -> tuple[str, int, int, str]:
        return self.chain_id, self.topic_id, self.nonce, self.wallet


@dataclass(frozen=True)
class Row:
    """A submission and what became of it.

    signed: committed, perhaps sent, not settled. confirmed: included with code 0 at `height`. rejected: refused by the
    node or included with another code. expired: not included and past its timeout height. `reason` says why in words.
    """

    submission: Submission
    state: State
    height: int | None
    reason: str
    signed_at: float
    settled_at: float | None


class Ledger:
    """The ledger's file. One process at a time; every write is one durable transaction."""

    def __init__(self, path: Path, *, wait: float = 5.0) -> None:
        """Open or create the ledger, waiting up to `wait` seconds for another process to let go of it.

        Raises:
            RetryLater: another process holds it, or the disk failed.
            NeedsHuman: its place cannot be written, it is not a ledger, or of a newer version.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            told = f"Cannot make {path.parent}: {error.strerror}. Set STATE_DIR to a writable place."
            raise NeedsHuman(told) from error
        try:
            self._db = sqlite3.connect(path, timeout=wait, isolation_level=None)
        except sqlite3.Error as error:
            raise _told(error, path) from error
        try:
            self._prepare()
        except sqlite3.Error as error:
            self.close()
            raise _told(error, path) from error
        except NeedsHuman:
            self.close()
            raise

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=DELETE")
        db.execute("PRAGMA synchronous=EXTRA")
        db.execute("BEGIN EXCLUSIVE")  # takes the lock now, for as long as the process lives
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > SCHEMA_VERSION:
            raise NeedsHuman(
                f"The ledger {self.path} was written by a newer forecastd (version {version}, this one knows "
                f"{SCHEMA_VERSION}). Install the newer forecastd again; do not delete the ledger."
            )
        if version == 0:
            db.execute(_SCHEMA)
            db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
        self.path.chmod(0o600)

    def find(self, chain_id: str, topic_id: int, nonce: int, wallet: str) -> Row | None:
        """The row of that epoch, if there is one."""
        rows = self._run(f"SELECT * FROM submissions WHERE {_KEY}", (chain_id, topic_id, nonce, wallet))  # noqa: S608
        return _row(rows[0]) if rows else None

    def open_rows(self, chain_id: str, wallet: str) -> list[Row]:
        """Rows that are signed and not settled, oldest nonce first."""
        sql = "SELECT * FROM submissions WHERE chain_id = ? AND wallet = ? AND state = 'signed' ORDER BY nonce"
        return [_row(row) for row in self._run(sql, (chain_id, wallet))]

    def commit(self, submission: Submission, now: float) -> None:
        """Put a signed submission on disk. Only after this returned may its bytes be sent.

        Raises:
            RetryLater: the disk is full or failed; nothing may be sent.
            NeedsHuman: there is a row for this epoch already (two workers, or a fault in this one).
        """
        sent = submission
        values = (*sent.key, sent.value, sent.sequence, sent.tx_bytes, sent.tx_hash, sent.timeout_height, sent.gas)
        try:
            self._db.execute(
                f"INSERT INTO submissions ({_COLUMNS}, state, signed_at) VALUES (?,?,?,?,?,?,?,?,?,?,?,'signed',?)",  # noqa: S608
                (*values, str(sent.fee_uallo), now),
            )
        except sqlite3.IntegrityError as error:
            raise NeedsHuman(
                f"The ledger already has a submission for topic {sent.topic_id} nonce {sent.nonce}; "
                "a second is never signed."
            ) from error
        except sqlite3.Error as error:
            raise _told(error, self.path) from error

    def settle(self, submission: Submission, state: State, now: float, *, height: int | None, reason: str) -> None:
        """Record what became of a signed submission.

        Raises:
            RetryLater: the disk is full or failed; the row stays as it was and is looked at again next time.
        """
        sql = f"UPDATE submissions SET state = ?, height = ?, reason = ?, settled_at = ? WHERE {_KEY}"  # noqa: S608
        self._run(sql, (state, height, reason, now, *submission.key))

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    def _run(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _told(error, self.path) from error


def _row(values: tuple[Any, ...]) -> Row:
    *sent, fee, state, height, reason, signed_at, settled_at = values
    return Row(Submission(*(*sent, int(fee))), state, height, reason, signed_at, settled_at)


def _told(error: sqlite3.Error, path: Path) -> NeedsHuman | RetryLater:
    """SQLite's errors by what the caller does next."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return RetryLater(f"Another forecastd holds the ledger {path}. One process a wallet; stop the other first.")
    if code == sqlite3.SQLITE_FULL:
        return RetryLater(f"The disk of {path} is full; nothing was sent. Free some space, the epoch is tried again.")
    if code == sqlite3.SQLITE_IOERR:
        return RetryLater(f"The disk of {path} failed ({error}); nothing was sent.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return NeedsHuman(f"Cannot write the ledger {path} ({error}). Set STATE_DIR to a place this user can write.")
    return NeedsHuman(
        f"The ledger {path} is damaged ({error}). Move it aside and look at the chain before the next submission."
    )
