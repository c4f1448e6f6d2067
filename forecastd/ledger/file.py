"""The ledger's SQLite file: opening it durably, alone and whole, its layout, and SQLite's errors in our words.

A file that is damaged, or older than the last one this host wrote (a restored backup), is set aside under a new name, never
deleted, and begun again: the chain then tells what was submitted. What is younger than the file is known from the *witness*,
a small file beside it with the number of the last signature.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from forecastd.errors import NeedsHuman, RetryLater

log = logging.getLogger(__name__)

SCHEMA_VERSION = 2
EPOCH_COLUMNS = (
    "chain_id", "topic_id", "nonce", "wallet", "state", "sequence", "timeout_height", "attempts", "refused", "height",
    "reason", "value", "first_at", "settled_at",
)  # fmt: skip
_STATE_VALUES = "'signed', 'dead', 'included', 'admitted', 'passive', 'evicted', 'missed'"
_SCHEMA = (
    f"""CREATE TABLE epochs (
      chain_id TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, wallet TEXT NOT NULL,
      state TEXT NOT NULL CHECK (state IN ({_STATE_VALUES})), sequence INTEGER NOT NULL, timeout_height INTEGER NOT NULL,
      attempts INTEGER NOT NULL, refused INTEGER NOT NULL, height INTEGER, reason TEXT NOT NULL, value TEXT,
      first_at REAL NOT NULL, settled_at REAL, crc INTEGER NOT NULL,
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
    "CREATE TABLE signatures (made INTEGER NOT NULL) STRICT",
    "INSERT INTO signatures VALUES (0)",
)
_DAMAGE_CODES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


class _UnusableFile(Exception):
    """The file is no ledger that can be relied on; the message says why."""


def connect(path: Path, timeout_seconds: float) -> sqlite3.Connection:
    """The database as SQLite opens it; a transaction begins where the ledger begins it, threads take turns there."""
    return sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, check_same_thread=False)


ConnectFunction = Callable[[Path, float], sqlite3.Connection]


def open_database(path: Path, timeout_seconds: float, connect: ConnectFunction = connect) -> sqlite3.Connection:
    """The database, locked for this process, its layout in place. `connect`: for a disk that fails on purpose.

    Raises:
        RetryLater: another process holds it, or the disk failed.
        NeedsHuman: its place cannot be written, or it is of a newer version.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"Cannot make {path.parent}: {error.strerror}. Set STATE_DIR to a writable place."
        raise NeedsHuman(reason) from error
    try:
        return _open(path, timeout_seconds, connect)
    except _UnusableFile as error:
        damaged_path = _set_aside(path)
        log.warning(
            "The ledger %s is unusable (%s). Set aside as %s; the chain is asked instead.",
            path,
            error,
            damaged_path.name,
        )
        return _open(path, timeout_seconds, connect)


def _open(path: Path, timeout_seconds: float, connect: ConnectFunction) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        db = connect(path, timeout_seconds)
        _lock_and_create(db, path)
        _verify(db, path)
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE_CODES:
            raise _UnusableFile(str(error)) from error
        raise translate_error(error, path) from error
    except (NeedsHuman, _UnusableFile):
        if db is not None:
            db.close()
        raise
    return db


def _lock_and_create(db: sqlite3.Connection, path: Path) -> None:
    """Take the file for this process, for as long as it lives, and lay it out when it is new."""
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=EXTRA")
    db.execute("PRAGMA cache_size=-512")  # kB: a process that runs for a year must not come to hold the whole file
    db.execute("BEGIN EXCLUSIVE")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise NeedsHuman(
            f"The ledger {path} was written by a newer forecastd (version {version}, this one knows {SCHEMA_VERSION}). "
            "Install the newer forecastd again; do not delete the ledger."
        )
    if version < SCHEMA_VERSION:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise _UnusableFile("its layout is not a ledger's")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("COMMIT")
    path.chmod(0o600)


def _verify(db: sqlite3.Connection, path: Path) -> None:
    """Every page, every row and every signed byte is what was written, and nothing newer was written elsewhere."""
    for problem in find_problems(db):
        raise _UnusableFile(problem)
    signature_count, high_water_mark = (
        int(db.execute("SELECT made FROM signatures").fetchone()[0]),
        _read_high_water_mark(path),
    )
    if signature_count < high_water_mark:
        raise _UnusableFile(
            f"it knows {signature_count} signatures, and {high_water_mark} were made: an older file was put in its place"
        )


def find_problems(db: sqlite3.Connection) -> Iterator[str]:
    """What is wrong with the file, in words: SQLite's own check, each row's checksum, each transaction's hash."""
    verdict = str(db.execute("PRAGMA integrity_check").fetchone()[0])
    if verdict != "ok":
        yield f"SQLite's integrity check says: {verdict}"
    for *values, crc in db.execute(f"SELECT {', '.join(EPOCH_COLUMNS)}, crc FROM epochs"):  # noqa: S608
        if crc != row_checksum(values):
            yield f"the row of topic {values[1]} nonce {values[2]} is not what was written"
    for tx_hash, tx_bytes in db.execute("SELECT tx_hash, tx_bytes FROM attempts"):
        if hashlib.sha256(tx_bytes).hexdigest().upper() != tx_hash:
            yield f"the bytes of transaction {tx_hash} are not what was signed"


def row_checksum(values: list[object] | tuple[object, ...]) -> int:
    """CRC-32 over an epoch's columns in the order of `EPOCH_COLUMNS`."""
    return zlib.crc32(repr(tuple(values)).encode())


def _high_water_path(path: Path) -> Path:
    return path.with_name(path.name + ".witness")


def _read_high_water_mark(path: Path) -> int:
    try:
        return int(_high_water_path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def write_high_water_mark(path: Path, signature_count: int) -> None:
    """Note beside the ledger how many signatures it knows. Failing costs only the notice of a restored backup."""
    temporary = path.with_name(path.name + ".witness.new")
    try:
        temporary.write_text(str(signature_count), encoding="ascii")
        temporary.replace(_high_water_path(path))
    except OSError as error:
        log.warning("Cannot write %s: %s", _high_water_path(path), error.strerror)


def _set_aside(path: Path) -> Path:
    """Rename the file (and SQLite's journal with it); the witness goes too, for it belongs to the old one."""
    number = 1
    while path.with_name(f"{path.name}.damaged-{number}").exists():
        number += 1
    damaged_path = path.with_name(f"{path.name}.damaged-{number}")
    for suffix in ("-journal", "-wal", "-shm", ".witness"):
        companion = path.with_name(path.name + suffix)
        if companion.exists():
            companion.replace(damaged_path.with_name(damaged_path.name + suffix))
    return path.replace(damaged_path)


def translate_error(error: sqlite3.Error, path: Path) -> NeedsHuman | RetryLater:
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
        f"The ledger {path} cannot be used ({error}). Start forecastd again: a damaged ledger is set aside then."
    )
