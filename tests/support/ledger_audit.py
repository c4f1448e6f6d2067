"""Compares a worker's ledger with the node's own record, epoch by epoch, and returns every difference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from forecastd.ledger.ledger import SETTLED_STATES, EpochKey, Ledger, LedgerEntry, Submission, SubmissionState
from forecastd.localnet.record import ChainRecord, InferenceStatus
from forecastd.localnet.state import TxRecord
from tests.support.forked_worker import TOPIC

_LEDGER_STATES = {
    InferenceStatus.ADMITTED: SubmissionState.ADMITTED,
    InferenceStatus.EVICTED: SubmissionState.EVICTED,
    InferenceStatus.PASSIVE: SubmissionState.PASSIVE,
    InferenceStatus.NONE: SubmissionState.MISSED,
}


@dataclass(frozen=True)
class LedgerContents:
    """The contents of a ledger, and the problems of its file."""

    entries: dict[EpochKey, LedgerEntry]
    attempts: dict[EpochKey, list[Submission]]
    problems: list[str]


def read_ledger(path: Path, chain_id: str, wallet: str) -> LedgerContents:
    """Read a ledger that no process has open."""
    ledger = Ledger(path)
    try:
        entries = {entry.key: entry for entry in ledger.entries(chain_id, wallet)}
        return LedgerContents(entries, {key: ledger.attempts(key) for key in entries}, ledger.find_problems())
    finally:
        ledger.close()


@dataclass
class AuditCounts:
    """What an audit counted."""

    served_count: int = 0
    doubled_count: int = 0
    lost_count: int = 0
    paid_failure_count: int = 0
    differing_count: int = 0


def audit(
    record: ChainRecord,
    wallet: str,
    nonces: Iterable[int],
    ledger_contents: LedgerContents,
    counts: AuditCounts,
    *,
    first_known_nonce: int = 0,
) -> list[str]:
    """Add the results of a wallet's epochs to `counts` and return the violations. Every window was open long enough.

    The ledger must know the epochs from `first_known_nonce` on. The transaction of that epoch may have been signed by a
    ledger that was lost. The chain's record must be right for all epochs.
    """
    violations = [f"the ledger of {wallet}: {problem}" for problem in ledger_contents.problems]
    for nonce in nonces:
        inclusions = record.inclusions(TOPIC, nonce, wallet)
        good = [inclusion for inclusion in inclusions if inclusion.code == 0]
        counts.served_count += len(good) == 1
        counts.lost_count += not good
        counts.doubled_count += len(good) > 1
        counts.paid_failure_count += len(inclusions) - len(good)
        inclusion_text = (
            ", ".join(
                f"{inclusion.tx_hash[:8]} code {inclusion.code} in {inclusion.height}" for inclusion in inclusions
            )
            or "nothing"
        )
        problems = []
        if not good:
            problems.append("lost")
        if any(inclusion.code == 0 for inclusion in inclusions[:-1]):
            problems.append("paid again after a success")
        entry = ledger_contents.entries.get((record.chain_id, TOPIC, nonce, wallet))
        is_forgotten = entry is None and nonce < first_known_nonce
        differences = [] if is_forgotten else _differences(record, nonce, wallet, good=good, entry=entry)
        hashes = {inclusion.tx_hash for inclusion in ledger_contents.attempts.get(entry.key, ())} if entry else set()
        if good and hashes and good[0].tx_hash not in hashes and nonce != first_known_nonce:
            differences.append("the ledger does not have the transaction that was included")
        counts.differing_count += bool(differences)
        violations += [
            f"nonce {nonce} of {wallet[-6:]}: {what}; the chain has {inclusion_text}"
            for what in (*problems, *differences)
        ]
    return violations


def _differences(
    record: ChainRecord, nonce: int, wallet: str, *, good: list[TxRecord], entry: LedgerEntry | None
) -> list[str]:
    """The differences between an epoch's ledger entry and the node's record."""
    if entry is None:
        return ["not in the ledger"]
    row, status = entry.row, record.inference_status(TOPIC, nonce, wallet)
    if row.state not in SETTLED_STATES:
        return [f"still {row.state} in the ledger"]
    problems = []
    if row.state is not _LEDGER_STATES[status]:
        problems.append(f"the ledger says {row.state} ({row.reason}), the chain says {status}")
    value = record.active.get((TOPIC, nonce), {}).get(wallet)
    if value is not None and entry.value != value:
        problems.append(f"the ledger has the value {entry.value}, the chain {value}")
    if good and row.height is not None and row.height != good[0].height:
        problems.append(f"the ledger has block {row.height}")
    return problems
