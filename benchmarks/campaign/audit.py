"""Compares a worker's ledger with the node's own record, epoch by epoch. What comes back is the evidence against it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.campaign.worker import TOPIC
from forecastd.ledger import SETTLED, Entry, Key, Ledger, State, Submission
from forecastd.localnet.record import Record, Standing
from forecastd.localnet.state import TxRecord

_OUTCOMES = {
    Standing.ADMITTED: State.ADMITTED,
    Standing.EVICTED: State.EVICTED,
    Standing.PASSIVE: State.PASSIVE,
    Standing.NONE: State.MISSED,
}


@dataclass(frozen=True)
class Book:
    """A ledger's contents and SQLite's verdict on its file."""

    entries: dict[Key, Entry]
    attempts: dict[Key, list[Submission]]
    verdict: str


def read_book(path: Path, chain_id: str, wallet: str) -> Book:
    """Read a ledger that no process holds any more."""
    ledger = Ledger(path)
    try:
        entries = {entry.key: entry for entry in ledger.entries(chain_id, wallet)}
        return Book(entries, {key: ledger.attempts(key) for key in entries}, ledger.check())
    finally:
        ledger.close()


@dataclass
class Tally:
    """What an audit counted."""

    served: int = 0
    doubled: int = 0
    lost: int = 0
    paid_failures: int = 0
    differing: int = 0


def audit(
    record: Record, wallet: str, nonces: Iterable[int], book: Book, tally: Tally, *, remembers: int = 0
) -> list[str]:
    """Count into `tally` what became of a wallet's epochs; every one had its window open long enough.

    The ledger must know the epochs from `remembers` on, whose own bytes may have been a lost ledger's; the chain's record
    counts for all.
    """
    broken = [] if book.verdict == "ok" else [f"the ledger of {wallet}: {book.verdict}"]
    for nonce in nonces:
        inclusions = record.inclusions(TOPIC, nonce, wallet)
        good = [one for one in inclusions if one.code == 0]
        tally.served += len(good) == 1
        tally.lost += not good
        tally.doubled += len(good) > 1
        tally.paid_failures += len(inclusions) - len(good)
        told = ", ".join(f"{one.tx_hash[:8]} code {one.code} in {one.height}" for one in inclusions) or "nothing"
        found = []
        if not good:
            found.append("lost")
        if any(earlier.code == 0 for earlier in inclusions[:-1]):
            found.append("paid again after a success")
        entry = book.entries.get((record.chain_id, TOPIC, nonce, wallet))
        forgotten = entry is None and nonce < remembers
        differences = [] if forgotten else _differences(record, nonce, wallet, good=good, entry=entry)
        hashes = {one.tx_hash for one in book.attempts.get(entry.key, ())} if entry else set()
        if good and hashes and good[0].tx_hash not in hashes and nonce != remembers:
            differences.append("the ledger does not have the transaction that was included")
        tally.differing += bool(differences)
        broken += [f"nonce {nonce} of {wallet[-6:]}: {what}; the chain has {told}" for what in (*found, *differences)]
    return broken


def _differences(record: Record, nonce: int, wallet: str, *, good: list[TxRecord], entry: Entry | None) -> list[str]:
    """In what an epoch's entry differs from the node's record."""
    if entry is None:
        return ["not in the ledger"]
    row, standing = entry.row, record.standing(TOPIC, nonce, wallet)
    if row.state not in SETTLED:
        return [f"still {row.state} in the ledger"]
    found = []
    if row.state is not _OUTCOMES[standing]:
        found.append(f"the ledger says {row.state} ({row.reason}), the chain {standing}")
    value = record.active.get((TOPIC, nonce), {}).get(wallet)
    if value is not None and entry.value != value:
        found.append(f"the ledger has the value {entry.value}, the chain {value}")
    if good and row.height is not None and row.height != good[0].height:
        found.append(f"the ledger has block {row.height}")
    return found
