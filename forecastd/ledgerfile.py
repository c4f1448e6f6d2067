"""The ledger's SQLite file: opening it durably and alone, its layout, and SQLite's errors in our words."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from forecastd.errors import NeedsHuman, RetryLater

VERSION = 2
_STATES = "'signed', 'dead', 'included', 'admitted', 'passive', 'evicted', 'missed'"
_LAYOUT = (
    f"""CREATE TABLE epochs (
      chain_id TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, wallet TEXT NOT NULL,
      state TEXT NOT NULL CHECK (state IN ({_STATES})), sequence INTEGER NOT NULL, timeout_height INTEGER NOT NULL,
      attempts INTEGER NOT NULL, refused INTEGER NOT NULL, height INTEGER, reason TEXT NOT NULL, value TEXT,
      first_at REAL NOT NULL, settled_at REAL,
      PRIMARY KEY (chain_id, topic_id, nonce, wallet)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE attempts (
      chain_id TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, wallet TEXT NOT NULL,
      attempt INTEGER NOT NULL, value TEXT NOT NULL, sequence INTEGER NOT NULL, tx_bytes BLOB NOT NULL,
      tx_hash TEXT NOT NULL, timeout_height INTEGER NOT NULL, gas INTEGER NOT NULL, fee_uallo TEXT NOT NULL,
      signed_at REAL NOT NULL, PRIMARY KEY (chain_id, topic_id, nonce, wallet, attempt)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE uses (
      chain_id TEXT NOT NULL, wallet TEXT NOT NULL, sequence INTEGER NOT NULL, tx_hash TEXT NOT NULL,
      purpose TEXT NOT NULL, PRIMARY KEY (chain_id, wallet, sequence)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE accounts (
      chain_id TEXT NOT NULL, wallet TEXT NOT NULL, known_from INTEGER NOT NULL,
      PRIMARY KEY (chain_id, wallet)) STRICT, WITHOUT ROWID""",
)


def open_database(path: Path, wait: float) -> sqlite3.Connection:
    """The database, locked for this process, its layout in place.

    Raises:
        RetryLater: another process holds it, or the disk failed.
        NeedsHuman: its place cannot be written, it is not a ledger, or of a newer version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"Cannot make {path.parent}: {error.strerror}. Set STATE_DIR to a writable place."
        raise NeedsHuman(reason) from error
    try:
        db = sqlite3.connect(path, timeout=wait, isolation_level=None)
    except sqlite3.Error as error:
        raise told(error, path) from error
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise told(error, path) from error
    except NeedsHuman:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=EXTRA")
    db.execute("BEGIN EXCLUSIVE")  # takes the lock now, for as long as the process lives
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > VERSION:
        raise NeedsHuman(
            f"The ledger {path} was written by a newer forecastd (version {version}, this one knows {VERSION}). "
            "Install the newer forecastd again; do not delete the ledger."
        )
    if version < VERSION:
        for statement in _LAYOUT:
            db.execute(statement)
        db.execute(f"PRAGMA user_version={VERSION}")
    db.execute("COMMIT")
    path.chmod(0o600)


def told(error: sqlite3.Error, path: Path) -> NeedsHuman | RetryLater:
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
