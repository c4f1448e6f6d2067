"""The local chain on disk: one SQLite file per chain id, one transaction per block.

A kill loses at most the block in progress. A running node holds the file exclusively, so a second node on the same
state is refused.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, astuple
from pathlib import Path

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.state import ChainState, Effect, Fees, LocalAccount, StoredInference, TxRecord
from forecastd.localnet.topics import topics_from_json, topics_to_json
from forecastd.runtime.sqlite import classify_error

SCHEMA_VERSION = 2
_FEE_COLUMN = 8  # stored as text, but an integer in TxRecord
_SCHEMA_V1 = """
CREATE TABLE chain (id INTEGER PRIMARY KEY CHECK (id = 1), chain_id TEXT NOT NULL, version TEXT NOT NULL,
  height INTEGER NOT NULL, time REAL NOT NULL, gas_price TEXT NOT NULL, fees TEXT NOT NULL, topics TEXT NOT NULL,
  burnt TEXT NOT NULL, minted TEXT NOT NULL) STRICT;
CREATE TABLE accounts (address TEXT PRIMARY KEY, number INTEGER NOT NULL, sequence INTEGER NOT NULL,
  balance TEXT NOT NULL, public_key BLOB NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE workers (topic_id INTEGER, address TEXT, PRIMARY KEY (topic_id, address)) STRICT, WITHOUT ROWID;
CREATE TABLE inferences (topic_id INTEGER, nonce INTEGER, worker TEXT, value TEXT NOT NULL, height INTEGER NOT NULL,
  extra_data BLOB NOT NULL, proof TEXT NOT NULL, PRIMARY KEY (topic_id, nonce, worker)) STRICT, WITHOUT ROWID;
CREATE TABLE txs (tx_hash TEXT PRIMARY KEY, height INTEGER NOT NULL, time REAL NOT NULL, codespace TEXT NOT NULL,
  code INTEGER NOT NULL, log TEXT NOT NULL, gas_wanted INTEGER NOT NULL, gas_used INTEGER NOT NULL, fee TEXT NOT NULL,
  sender TEXT NOT NULL, kind TEXT NOT NULL, topic_id INTEGER NOT NULL, nonce INTEGER NOT NULL, raw BLOB NOT NULL)
  STRICT, WITHOUT ROWID;
"""


# The difference between schema versions 1 and 2. A new chain runs both scripts.
_SCHEMA_V2 = """
ALTER TABLE inferences ADD COLUMN evicted INTEGER NOT NULL DEFAULT 0;
CREATE TABLE scores (topic_id INTEGER, worker TEXT, score REAL NOT NULL, PRIMARY KEY (topic_id, worker))
  STRICT, WITHOUT ROWID;
"""


class ChainStore:
    """The file of a chain. Amounts are stored as text, because uallo exceed SQLite's integers."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0) -> None:
        """Open or create the file. Wait at most `timeout_seconds` for another node to release it.

        Raises:
            RetryLater: another node runs on it, or the disk failed.
            NeedsHuman: it cannot be written, or its version is not supported.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Opened in one thread and used in the node's thread, never in both at once.
            self._db = sqlite3.connect(path, timeout=timeout_seconds, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        except OSError as error:
            raise NeedsHuman(
                f"Cannot create {path.parent}: {error.strerror}. Set STATE_DIR to a writable directory."
            ) from error
        except sqlite3.Error as error:
            raise self._translate_error(error) from error

    def load(self) -> ChainState | None:
        """Load the chain, or None when it has no block yet."""
        try:
            rows = self._db.execute("SELECT * FROM chain").fetchall()
            if not rows:
                return None
            _, chain_id, version, height, time, price, fees, topics, burnt, minted = rows[0]
            state = ChainState(
                chain_id=chain_id, version=version, height=height, time=time, gas_price=int(price),
                fees=Fees(**json.loads(fees)), topics=topics_from_json(topics), burnt=int(burnt), minted=int(minted),
            )  # fmt: skip
            for address, number, sequence, balance, key in self._db.execute("SELECT * FROM accounts"):
                state.accounts[address] = LocalAccount(address, number, sequence, int(balance), key)
            state.workers.update(self._db.execute("SELECT topic_id, address FROM workers"))
            for row in self._db.execute("SELECT * FROM inferences ORDER BY nonce"):
                values = list(row)
                values[-1] = bool(values[-1])
                state.put_inference(StoredInference(*values))
            for topic_id, worker, score in self._db.execute("SELECT * FROM scores"):
                state.scores[topic_id, worker] = score
            for row in self._db.execute("SELECT * FROM txs ORDER BY height"):
                values = list(row)
                values[_FEE_COLUMN] = int(values[_FEE_COLUMN])
                state.add_transaction(TxRecord(*values))
        except sqlite3.Error as error:
            raise self._translate_error(error) from error
        return state

    def save(self, state: ChainState, effects: Iterable[Effect] = ()) -> None:
        """Commit a block atomically: the chain's head and all changes of its effects."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            for effect in effects:
                self._write(effect)
            db.execute(
                "INSERT OR REPLACE INTO chain VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    state.chain_id, state.version, state.height, state.time, str(state.gas_price),
                    json.dumps(asdict(state.fees)), topics_to_json(state.topics), str(state.burnt), str(state.minted),
                ),
            )  # fmt: skip
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise self._translate_error(error) from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _write(self, effect: Effect) -> None:
        db = self._db
        for account in effect.accounts:
            values = (account.address, account.number, account.sequence, str(account.balance), account.public_key)
            db.execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?, ?, ?)", values)
        if effect.worker is not None:
            db.execute("INSERT OR IGNORE INTO workers VALUES (?, ?)", effect.worker)
        if effect.evicted is not None:
            evicted = effect.evicted
            key = (evicted.topic_id, evicted.nonce, evicted.worker)
            db.execute("UPDATE inferences SET evicted = 1 WHERE topic_id = ? AND nonce = ? AND worker = ?", key)
        if effect.inference is not None:
            db.execute("INSERT INTO inferences VALUES (?, ?, ?, ?, ?, ?, ?, ?)", astuple(effect.inference))
        db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", effect.scores)
        if effect.record is not None:
            row = list(astuple(effect.record))
            row[_FEE_COLUMN] = str(row[_FEE_COLUMN])
            db.execute(f"INSERT INTO txs VALUES ({', '.join('?' * len(row))})", row)  # noqa: S608  # placeholders only

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        db.execute("BEGIN EXCLUSIVE")  # takes the exclusive lock and keeps it
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version not in range(SCHEMA_VERSION + 1):
            raise NeedsHuman(
                f"The local chain {self.path} has version {version}, but this forecastd supports "
                f"version {SCHEMA_VERSION}. "
                "Delete it (it is only a local chain) with `forecastd localnet --reset`."
            )
        for script in (_SCHEMA_V1, _SCHEMA_V2)[version:]:
            for statement in script.split(";")[:-1]:
                db.execute(statement)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")

    def _translate_error(self, error: sqlite3.Error) -> NeedsHuman | RetryLater:
        match classify_error(error):
            case "busy":
                return RetryLater(
                    f"Another local node runs on {self.path}. Stop it first, or choose another STATE_DIR."
                )
            case "full" | "disk":
                return RetryLater(f"The disk of the local chain {self.path} is full or failed ({error}).")
            case "unwritable":
                return NeedsHuman(
                    f"Cannot write the local chain {self.path} ({error}). Set STATE_DIR to a writable directory."
                )
        return NeedsHuman(
            f"The local chain {self.path} is damaged ({error}). Delete it with `forecastd localnet --reset`."
        )


def chain_path(state_dir: Path, chain_id: str) -> Path:
    """The path of a local chain's state.

    Raises ValueError when the id contains other characters than letters, digits, - and _.
    """
    if not chain_id or not all(character.isalnum() or character in "-_" for character in chain_id):
        raise ValueError(f"{chain_id!r} is not a chain id of letters, digits, - and _")
    return state_dir / "localnet" / f"{chain_id}.sqlite"


def delete_chain(state_dir: Path, chain_id: str) -> bool:
    """Delete a local chain's state. Returns False when there was none.

    Raises:
        RetryLater: a node runs on it.
    """
    path = chain_path(state_dir, chain_id)
    if not path.exists():
        return False
    with suppress(NeedsHuman):  # damaged or of another version: delete it anyway
        ChainStore(path, timeout_seconds=0.0).close()
    for name in (path, path.with_name(path.name + "-wal"), path.with_name(path.name + "-shm")):
        name.unlink(missing_ok=True)
    return True
