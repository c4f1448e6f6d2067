"""The ledger's SQLite file: open it durably and for one process only, create or migrate its schema, translate SQLite errors.

A file that is damaged, or older than the last one this host wrote (a restored backup), is renamed, never deleted, and a new
ledger is created; the chain then supplies what was submitted. The *high-water mark*, a small file next to the ledger with the
number of signatures made so far, shows that a ledger is older than it should be.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.runtime.files import STATE_DIR_FIX, write_atomic
from forecastd.runtime.sqlite import classify_error, set_aside

log = logging.getLogger(__name__)

SCHEMA_VERSION = 3
EPOCH_COLUMNS = (
    "chain_id", "topic_id", "nonce", "wallet", "state", "sequence", "timeout_height", "attempts", "refused", "height",
    "reason", "value", "first_at", "settled_at",
)  # fmt: skip
_STATE_VALUES = "'signed', 'abandoned', 'included', 'admitted', 'passive', 'evicted', 'missed'"
_EPOCHS_TABLE = f"""CREATE TABLE epochs (
      chain_id TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, wallet TEXT NOT NULL,
      state TEXT NOT NULL CHECK (state IN ({_STATE_VALUES})), sequence INTEGER NOT NULL, timeout_height INTEGER NOT NULL,
      attempts INTEGER NOT NULL, refused INTEGER NOT NULL, height INTEGER, reason TEXT NOT NULL, value TEXT,
      first_at REAL NOT NULL, settled_at REAL, crc INTEGER NOT NULL,
      PRIMARY KEY (chain_id, topic_id, nonce, wallet)) STRICT, WITHOUT ROWID"""
_SCHEMA = (
    _EPOCHS_TABLE,
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
_HIGH_WATER_SUFFIX = ".high-water"
_OLD_HIGH_WATER_SUFFIX = ".witness"  # of schema version 2


class _UnusableFile(Exception):
    """The file is not a ledger that can be relied on; the message says why."""


def connect(path: Path, timeout_seconds: float) -> sqlite3.Connection:
    """Open the database. The ledger begins transactions itself and serializes its threads with a lock."""
    return sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, check_same_thread=False)


ConnectFunction = Callable[[Path, float], sqlite3.Connection]


def open_database(path: Path, timeout_seconds: float, connect: ConnectFunction = connect) -> sqlite3.Connection:
    """Open the database, locked for this process and with the current schema. Tests pass a `connect` whose disk fails.

    Raises:
        RetryLater: another process holds it, or the disk failed.
        NeedsHuman: the path cannot be written, or a newer version wrote the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"Cannot create {path.parent}: {error.strerror}. Set STATE_DIR to a writable path."
        raise NeedsHuman(reason) from error
    try:
        return _open(path, timeout_seconds, connect)
    except _UnusableFile as error:
        damaged_path = set_aside(path, (_HIGH_WATER_SUFFIX, _OLD_HIGH_WATER_SUFFIX))
        log.warning(
            "Cannot use the ledger %s: %s. It was renamed to %s; a new ledger is created and filled from the chain.",
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
        if classify_error(error) == "damaged":
            raise _UnusableFile(str(error)) from error
        raise translate_error(error, path) from error
    except (NeedsHuman, _UnusableFile):
        if db is not None:
            db.close()
        raise
    return db


def _lock_and_create(db: sqlite3.Connection, path: Path) -> None:
    """Lock the file for the lifetime of this process; create the schema in a new file, migrate an older one."""
    db.execute("PRAGMA locking_mode=EXCLUSIVE")
    db.execute("PRAGMA journal_mode=DELETE")
    db.execute("PRAGMA synchronous=EXTRA")
    db.execute("PRAGMA cache_size=-512")  # kB: a process that runs for a year must not hold the whole file in memory
    db.execute("BEGIN EXCLUSIVE")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version > SCHEMA_VERSION:
        raise newer_version_error(path, version)
    if version == 2:
        migrate_from_version_2(db)
    elif version < SCHEMA_VERSION:
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            raise _UnusableFile("its tables are not those of a ledger")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("COMMIT")
    path.chmod(0o600)


def newer_version_error(path: Path, version: int) -> NeedsHuman:
    """The error for a ledger that a newer forecastd wrote."""
    return NeedsHuman(
        f"The ledger {path} was written by a newer forecastd (version {version}; this one supports {SCHEMA_VERSION}). "
        "Install the newer forecastd again; do not delete the ledger."
    )


def migrate_from_version_2(db: sqlite3.Connection) -> None:
    """Bring version 2 to version 3: the state `dead` is called `abandoned`. The caller begins and commits the transaction.

    Each row gets a new checksum, but a row whose checksum was wrong keeps the wrong one, so that `find_problems` reports it.
    """
    columns, marks = ", ".join(EPOCH_COLUMNS), ",".join("?" * (len(EPOCH_COLUMNS) + 1))
    state = EPOCH_COLUMNS.index("state")
    db.execute("ALTER TABLE epochs RENAME TO epochs_2")
    db.execute(_EPOCHS_TABLE)
    for *values, crc in db.execute(f"SELECT {columns}, crc FROM epochs_2"):  # noqa: S608
        is_intact = crc == row_checksum(values)
        if values[state] == "dead":
            values[state] = "abandoned"
        new_crc = row_checksum(values) if is_intact else crc
        db.execute(f"INSERT INTO epochs ({columns}, crc) VALUES ({marks})", (*values, new_crc))  # noqa: S608
    db.execute("DROP TABLE epochs_2")
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")


def _verify(db: sqlite3.Connection, path: Path) -> None:
    """Check that every page, row and signed byte is what was written, and that the file is not older than the last one.

    Raises:
        _UnusableFile: it is not so.
    """
    for problem in find_problems(db):
        raise _UnusableFile(problem)
    signature_count = int(db.execute("SELECT made FROM signatures").fetchone()[0])
    high_water_mark = _read_high_water_mark(path)
    if signature_count < high_water_mark:
        raise _UnusableFile(
            f"it contains {signature_count} signatures, but {high_water_mark} were made: an older file replaced it"
        )


def find_problems(db: sqlite3.Connection) -> Iterator[str]:
    """Describe each problem of the file: SQLite's own check, each row's checksum, each transaction's hash."""
    result = str(db.execute("PRAGMA integrity_check").fetchone()[0])
    if result != "ok":
        yield f"SQLite's integrity check reports: {result}"
    for *values, crc in db.execute(f"SELECT {', '.join(EPOCH_COLUMNS)}, crc FROM epochs"):  # noqa: S608
        if crc != row_checksum(values):
            yield f"the row of topic {values[1]} nonce {values[2]} is not what was written"
    for tx_hash, tx_bytes in db.execute("SELECT tx_hash, tx_bytes FROM attempts"):
        if hashlib.sha256(tx_bytes).hexdigest().upper() != tx_hash:
            yield f"the bytes of transaction {tx_hash} are not what was signed"


def row_checksum(values: list[object] | tuple[object, ...]) -> int:
    """CRC-32 of an epoch's columns in the order of `EPOCH_COLUMNS`."""
    return zlib.crc32(repr(tuple(values)).encode())


def _read_high_water_mark(path: Path) -> int:
    return max(
        _read_number(path.with_name(path.name + suffix)) for suffix in (_HIGH_WATER_SUFFIX, _OLD_HIGH_WATER_SUFFIX)
    )


def _read_number(path: Path) -> int:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return 0


def write_high_water_mark(path: Path, signature_count: int) -> None:
    """Write the number of signatures next to the ledger. Without it a restored backup is not detected."""
    try:
        write_atomic(path.with_name(path.name + _HIGH_WATER_SUFFIX), str(signature_count).encode(), fix=STATE_DIR_FIX)
        path.with_name(path.name + _OLD_HIGH_WATER_SUFFIX).unlink(missing_ok=True)
    except (NeedsHuman, OSError) as error:
        log.warning("%s", error)


def translate_error(error: sqlite3.Error, path: Path) -> NeedsHuman | RetryLater:
    """An error of SQLite as the error class that says what the caller does next."""
    match classify_error(error):
        case "busy":
            return RetryLater(
                f"Another forecastd process uses the ledger {path}. Stop it first: only one process may use a wallet."
            )
        case "full":
            return RetryLater(f"The disk of {path} is full; nothing was sent. Free some space; the epoch is retried.")
        case "disk":
            return RetryLater(f"The disk of {path} failed ({error}); nothing was sent.")
        case "unwritable":
            return NeedsHuman(f"Cannot write the ledger {path} ({error}). Set STATE_DIR to a path this user can write.")
    return NeedsHuman(
        f"Cannot use the ledger {path} ({error}). Start forecastd again: it renames a damaged ledger and creates a new one."
    )
