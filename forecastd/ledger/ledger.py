"""The submission ledger: every signed transaction is committed here before its first byte is sent.

There is one row per (chain id, topic, nonce, wallet), missed epochs included, and one per signature made for it. One process
opens the database at a time, and a commit is durable when it returns: `synchronous=EXTRA` with a rollback journal. Several
threads may use one ledger: every method holds its lock, and none waits for anything but the disk.

Invariant: never `open()` the file while SQLite has it open, for closing any descriptor of it drops the lock. A failed fsync
is never retried.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from threading import RLock
from typing import Any

from forecastd.errors import NeedsHuman
from forecastd.ledger.file import (
    EPOCH_COLUMNS,
    ConnectFunction,
    connect,
    find_problems,
    open_database,
    row_checksum,
    translate_error,
    write_high_water_mark,
)
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.sqlite import classify_error

EpochKey = tuple[str, int, int, str]  # chain id, topic id, nonce, wallet
_KEY_FILTER = "chain_id = ? AND topic_id = ? AND nonce = ? AND wallet = ?"
_EPOCH_COLUMNS = ", ".join(EPOCH_COLUMNS[4:])
_ATTEMPT_COLUMNS = "value, sequence, tx_bytes, tx_hash, timeout_height, gas, fee_uallo"


class SubmissionState(StrEnum):
    """The state of an epoch's submission."""

    SIGNED = "signed"  # on disk, perhaps sent; not confirmed yet
    ABANDONED = "abandoned"  # can never take effect; new bytes may be signed while the window is open
    INCLUDED = "included"  # in a block with code 0; not known yet whether the chain counts it
    ADMITTED = "admitted"  # the chain counts it
    PASSIVE = "passive"  # accepted, but outside the active set
    EVICTED = "evicted"  # was in the active set and was pushed out
    MISSED = "missed"  # the window closed without a submission


SEQUENCE_USED_REASON = "another transaction of this account used its sequence"
SETTLED_STATES = frozenset(
    {SubmissionState.ADMITTED, SubmissionState.PASSIVE, SubmissionState.EVICTED, SubmissionState.MISSED}
)
FINISHED_STATES = SETTLED_STATES | {SubmissionState.INCLUDED}  # no work is left inside the window
OPEN_STATES = frozenset(SubmissionState) - SETTLED_STATES


@dataclass(frozen=True)
class Submission:
    """One signed transaction that carries one forecast.

    `value` is the decimal exactly as signed, `tx_bytes` the exact bytes to send, `tx_hash` their upper-case hex sha256,
    `sequence` the account's sequence that they use, and `timeout_height` the last block that may include them: the last of
    the submission window. Gas is in units, the fee in uallo.
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
    def key(self) -> EpochKey:
        return self.chain_id, self.topic_id, self.nonce, self.wallet


@dataclass(frozen=True)
class LedgerRow:
    """What the state machine knows of an epoch. `attempts` counts signatures; `sequence` is that of the last one."""

    state: SubmissionState
    sequence: int
    timeout_height: int
    attempts: int = 1
    fee_refused: bool = False  # a node refused the bytes for their gas or fee, and none accepted them since
    height: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class LedgerEntry:
    """An epoch of the ledger: its row, the value as signed (None without a signature), and its times in unix seconds."""

    key: EpochKey
    row: LedgerRow
    value: str | None
    first_at: float
    settled_at: float | None

    @property
    def nonce(self) -> int:
        return self.key[2]


class Ledger(Closeable):
    """The ledger's file. One process at a time; every write is one durable transaction."""

    def __init__(self, path: Path, *, timeout_seconds: float = 5.0, connect: ConnectFunction = connect) -> None:
        """Open or create the ledger, waiting up to `timeout_seconds` for another process to release it.

        Raises:
            RetryLater: another process holds it, or the disk failed.
            NeedsHuman: the path cannot be written, the file is not a ledger, or a newer version wrote it.
        """
        self.path = path
        self.disk_failed = False  # then nothing can be written; the next start reconciles with the chain
        self._lock = RLock()
        self._db = open_database(path, timeout_seconds, connect)

    def close(self) -> None:
        """Close the file and release its lock."""
        with self._lock:
            self._db.close()

    def find(self, key: EpochKey) -> LedgerEntry | None:
        """The epoch's entry, None when there is none."""
        rows = self._query(f"SELECT {_EPOCH_COLUMNS} FROM epochs WHERE {_KEY_FILTER}", key)  # noqa: S608
        return _entry_from_row(key, rows[0]) if rows else None

    def get(self, key: EpochKey) -> LedgerEntry:
        """The epoch's entry. Raises KeyError when there is none."""
        entry = self.find(key)
        if entry is None:
            raise KeyError(key)
        return entry

    def entries(
        self, chain_id: str, wallet: str, *, topic_id: int | None = None,
        states: Collection[SubmissionState] | None = None,
    ) -> list[LedgerEntry]:  # fmt: skip
        """A wallet's entries on a chain, oldest nonce first, optionally of one topic or in some states only."""
        sql = (
            f"SELECT chain_id, topic_id, nonce, wallet, {_EPOCH_COLUMNS} FROM epochs WHERE chain_id = ? AND wallet = ?"  # noqa: S608
        )
        values: list[object] = [chain_id, wallet]
        if states is not None:
            sql = f"{sql} AND state IN ({','.join('?' * len(states))})"
            values += [state.value for state in states]
        if topic_id is not None:
            sql, values = f"{sql} AND topic_id = ?", [*values, topic_id]
        return [_entry_from_row(row[:4], row[4:]) for row in self._query(f"{sql} ORDER BY nonce", tuple(values))]

    def newest_nonce_before(self, chain_id: str, wallet: str, topic_id: int, nonce: int) -> int | None:
        """The newest nonce of a topic before `nonce` that has an entry."""
        sql = "SELECT max(nonce) FROM epochs WHERE chain_id = ? AND wallet = ? AND topic_id = ? AND nonce < ?"
        newest = self._query(sql, (chain_id, wallet, topic_id, nonce))[0][0]
        return None if newest is None else int(newest)

    def attempts(self, key: EpochKey) -> list[Submission]:
        """Every signature made for an epoch, oldest first."""
        sql = f"SELECT {_ATTEMPT_COLUMNS} FROM attempts WHERE {_KEY_FILTER} ORDER BY attempt"  # noqa: S608
        return [_submission_from_row(key, values) for values in self._query(sql, key)]

    def commit(self, submission: Submission, now: float) -> LedgerRow:
        """Write a signed submission to disk. Only after this returns may its bytes be sent.

        Raises:
            RetryLater: the disk is full or failed; nothing may be sent.
            NeedsHuman: this epoch already has bytes that are not abandoned (two workers, or a bug in this one).
        """
        with self._lock:
            entry = self.find(submission.key)
            if entry is not None and entry.row.state is not SubmissionState.ABANDONED:
                raise NeedsHuman(
                    f"The ledger already has a submission for topic {submission.topic_id} nonce {submission.nonce} "
                    f"in state {entry.row.state}; a second one is never signed."
                )
            attempts = 1 if entry is None else entry.row.attempts + 1
            row = LedgerRow(SubmissionState.SIGNED, submission.sequence, submission.timeout_height, attempts)
            first_at = float(now) if entry is None else entry.first_at
            with self._transaction():
                self._write_entry(LedgerEntry(submission.key, row, submission.value, first_at, None))
                self._db.execute(
                    f"INSERT INTO attempts (chain_id, topic_id, nonce, wallet, attempt, signed_at, {_ATTEMPT_COLUMNS}) "  # noqa: S608
                    "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (*submission.key, attempts, now, submission.value, submission.sequence, submission.tx_bytes,
                     submission.tx_hash, submission.timeout_height, submission.gas, str(submission.fee_uallo)),
                )  # fmt: skip
                count = self._db.execute("UPDATE signatures SET made = made + 1 RETURNING made").fetchone()[0]
            write_high_water_mark(self.path, int(count))
            return row

    def record(self, key: EpochKey, row: LedgerRow, now: float, *, value: str | None = None) -> LedgerEntry:
        """Update the entry of an epoch; returns it. `value`: the forecast that the chain has, if it may differ from the last
        signed one.

        Raises:
            RetryLater: the disk is full or failed.
            KeyError: the epoch has no entry.
        """
        with self._lock:
            entry = self.get(key)
            value = value or entry.value
            if (entry.row, entry.value) != (row, value):
                settled_at = float(now) if row.state in SETTLED_STATES else None
                entry = replace(entry, row=row, value=value, settled_at=settled_at)
                with self._transaction():
                    self._write_entry(entry)
            return entry

    def record_unsigned(
        self, key: EpochKey, state: SubmissionState, now: float, *, reason: str, value: str | None = None
    ) -> LedgerEntry | None:
        """Record an epoch that this ledger did not sign for: missed, or found on the chain.

        Returns the new entry, None when the epoch already has one, which is kept.
        """
        with self._lock:
            if self.find(key) is not None:
                return None
            row = LedgerRow(state, sequence=-1, timeout_height=key[2], attempts=0, reason=reason)
            entry = LedgerEntry(key, row, value, float(now), float(now))
            with self._transaction():
                self._write_entry(entry)
            return entry

    # The account: which sequences this ledger used

    def used_sequences(self, chain_id: str, wallet: str) -> set[int]:
        """Every sequence that this ledger has signed with."""
        account = (chain_id, wallet)
        signed = self._query("SELECT sequence FROM attempts WHERE chain_id = ? AND wallet = ?", account)
        others = self._query("SELECT sequence FROM uses WHERE chain_id = ? AND wallet = ?", account)
        return {int(values[0]) for values in (*signed, *others)}

    def next_free_sequence(
        self, key: EpochKey, minimum: int, *, topics_of_other_threads: frozenset[int] = frozenset()
    ) -> int:
        """The first sequence from `minimum` on that no other epoch's submission of this wallet uses.

        `minimum` comes from an endpoint, and one that lags reports too little: every sequence of this wallet that a block
        includes is certainly used. `topics_of_other_threads`: topics that other threads serve;
        they may be about to sign again with the sequence of a refused transaction.
        """
        chain_id, topic_id, nonce, wallet = key
        included = (
            SubmissionState.INCLUDED,
            SubmissionState.ADMITTED,
            SubmissionState.PASSIVE,
            SubmissionState.EVICTED,
        )
        sql = (
            "SELECT max(sequence) FROM epochs WHERE chain_id = ? AND wallet = ? AND NOT (topic_id = ? AND nonce = ?) "
            "AND state IN (?, ?, ?, ?)"
        )
        last = self._query(sql, (chain_id, wallet, topic_id, nonce, *included))[0][0]
        minimum = max(minimum, -1 if last is None else int(last) + 1)
        used_sequences = {
            entry.row.sequence
            for entry in self.entries(chain_id, wallet, states=(SubmissionState.SIGNED, SubmissionState.ABANDONED))
            if entry.key != key
            and (entry.row.state is SubmissionState.SIGNED or entry.key[1] in topics_of_other_threads)
        }
        while minimum in used_sequences:
            minimum += 1
        return minimum

    def record_sequence_use(self, chain_id: str, wallet: str, sequence: int, tx_hash: str, purpose: str) -> None:
        """Commit that a transaction other than a submission is signed with `sequence`, before it is sent."""
        self._execute(
            "INSERT OR REPLACE INTO uses VALUES (?, ?, ?, ?, ?)", (chain_id, wallet, sequence, tx_hash, purpose)
        )

    def known_from(self, chain_id: str, wallet: str) -> int | None:
        """The first sequence from which this ledger is complete; None for an account it has not seen."""
        rows = self._query("SELECT known_from FROM accounts WHERE chain_id = ? AND wallet = ?", (chain_id, wallet))
        return int(rows[0][0]) if rows else None

    def unexplained_sequences(self, chain_id: str, wallet: str, sequence: int) -> list[int]:
        """Sequences below the account's next one that transactions of another signer have used."""
        known_from = self.known_from(chain_id, wallet)
        if known_from is None:
            return []
        missed_entries = self.entries(chain_id, wallet, states=(SubmissionState.MISSED,))
        overtaken_sequences = {
            entry.row.sequence for entry in missed_entries if entry.row.reason == SEQUENCE_USED_REASON
        }
        overtaken_sequences -= self._reused_sequences(chain_id, wallet) if overtaken_sequences else set()
        unknown_sequences = set(range(known_from, sequence)) - self.used_sequences(chain_id, wallet)
        return sorted(unknown_sequences | {number for number in overtaken_sequences if number > known_from})

    def _reused_sequences(self, chain_id: str, wallet: str) -> set[int]:
        """Sequences with which this ledger signed several transactions for different epochs: one replaced the other."""
        sql = (
            "SELECT sequence FROM ("
            "SELECT DISTINCT sequence, topic_id, nonce FROM attempts WHERE chain_id = ?1 AND wallet = ?2 "
            "UNION ALL SELECT sequence, -1, -1 FROM uses WHERE chain_id = ?1 AND wallet = ?2"
            ") GROUP BY sequence HAVING count(*) > 1"
        )
        return {int(values[0]) for values in self._query(sql, (chain_id, wallet))}

    def last_fee(self, chain_id: str, wallet: str) -> int | None:
        """The fee in uallo of the newest signature; None without one."""
        sql = "SELECT fee_uallo FROM attempts WHERE chain_id = ? AND wallet = ? ORDER BY signed_at DESC LIMIT 1"
        rows = self._query(sql, (chain_id, wallet))
        return int(rows[0][0]) if rows else None

    def set_known_from(self, chain_id: str, wallet: str, sequence: int) -> None:
        """Accept the account as it is: sequences below `sequence` are no longer checked."""
        self._execute("INSERT OR REPLACE INTO accounts VALUES (?, ?, ?)", (chain_id, wallet, sequence))

    def delete_account(self, chain_id: str, wallet: str) -> None:
        """Delete everything about a wallet on a chain that was reset under its old id, as a local chain may be."""
        with self._transaction():
            for table in ("epochs", "attempts", "uses", "accounts"):
                self._db.execute(f"DELETE FROM {table} WHERE chain_id = ? AND wallet = ?", (chain_id, wallet))  # noqa: S608

    def find_problems(self) -> list[str]:
        """A description of each problem of the file."""
        with self._lock:
            return list(find_problems(self._db))

    def _write_entry(self, entry: LedgerEntry) -> None:
        row = entry.row
        values = (
            *entry.key, row.state.value, row.sequence, row.timeout_height, row.attempts, int(row.fee_refused), row.height,
            row.reason, entry.value, entry.first_at, entry.settled_at,
        )  # fmt: skip
        placeholders = ",".join("?" * (len(values) + 1))
        columns = ", ".join(EPOCH_COLUMNS)
        self._db.execute(
            f"INSERT OR REPLACE INTO epochs ({columns}, crc) VALUES ({placeholders})",  # noqa: S608
            (*values, row_checksum(values)),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                if classify_error(error) == "disk":
                    self.disk_failed = True
                    self._db.close()  # a failed sync is never retried: the next start reads what the disk has
                raise translate_error(error, self.path) from error

    def _execute(self, sql: str, values: tuple[object, ...]) -> None:
        with self._transaction():
            self._db.execute(sql, values)

    def _query(self, sql: str, values: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                return self._db.execute(sql, values).fetchall()
            except sqlite3.Error as error:
                raise translate_error(error, self.path) from error


def _entry_from_row(key: tuple[Any, ...], values: tuple[Any, ...]) -> LedgerEntry:
    state, sequence, timeout_height, attempts, refused, height, reason, value, first_at, settled_at = values
    row = LedgerRow(SubmissionState(state), sequence, timeout_height, attempts, bool(refused), height, reason)
    return LedgerEntry((str(key[0]), int(key[1]), int(key[2]), str(key[3])), row, value, first_at, settled_at)


def _submission_from_row(key: EpochKey, values: tuple[Any, ...]) -> Submission:
    value, sequence, tx_bytes, tx_hash, timeout_height, gas, fee_uallo = values
    return Submission(*key, value, sequence, tx_bytes, tx_hash, timeout_height, gas, int(fee_uallo))
