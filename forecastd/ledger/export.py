"""Epochs of the ledger with their signatures, for lists and exports. Reads a snapshot, so it works while a worker runs."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forecastd.clock import to_iso
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import LedgerEntry, Submission, SubmissionState
from forecastd.ledger.snapshot import LedgerSnapshot
from forecastd.runtime.files import write_atomic

ExportFormat = Literal["csv", "json"]

STATE_MEANINGS: Mapping[SubmissionState, str] = {
    SubmissionState.SIGNED: "signed and on record, but not confirmed yet",
    SubmissionState.ABANDONED: "can never take effect; may be signed again while the window is open",
    SubmissionState.INCLUDED: "in a block; not known yet whether the chain counts it",
    SubmissionState.ADMITTED: "in a block, and the chain counts it",
    SubmissionState.PASSIVE: "in a block, but outside the active set",
    SubmissionState.EVICTED: "in a block, but pushed out of the active set",
    SubmissionState.MISSED: "the window closed without a submission",
}
EXPORT_COLUMNS = (
    "chain_id", "topic_id", "nonce", "wallet", "state", "value", "tx_hash", "height", "attempts", "sequence", "gas",
    "fee_uallo", "timeout_height", "first_at", "settled_at", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class AttemptRecord:
    """A signature made for an epoch, and its time in unix seconds."""

    submission: Submission
    signed_at: float


@dataclass(frozen=True)
class LedgerEpoch:
    """An epoch of the ledger with all its signatures, oldest first."""

    entry: LedgerEntry
    attempts: tuple[AttemptRecord, ...]

    @property
    def last_submission(self) -> Submission | None:
        """The newest signature, None when this ledger signed nothing for the epoch."""
        return self.attempts[-1].submission if self.attempts else None

    def as_row(self) -> dict[str, object]:
        """The epoch and its newest signature by the names of `EXPORT_COLUMNS`; a missing value is None."""
        entry, row, submission = self.entry, self.entry.row, self.last_submission
        chain_id, topic_id, nonce, wallet = entry.key
        values = (
            chain_id, topic_id, nonce, wallet, row.state.value, entry.value, submission and submission.tx_hash, row.height,
            row.attempts, submission and submission.sequence, submission and submission.gas,
            submission and submission.fee_uallo, submission and submission.timeout_height, to_iso(entry.first_at),
            None if entry.settled_at is None else to_iso(entry.settled_at), row.reason,
        )  # fmt: skip
        return dict(zip(EXPORT_COLUMNS, values, strict=True))

    def as_json(self) -> dict[str, object]:
        """Like `as_row`, with every signature and its exact bytes in base64."""
        return {**self.as_row(), "signatures": [_attempt_json(attempt) for attempt in self.attempts]}


def _attempt_json(attempt: AttemptRecord) -> dict[str, object]:
    submission = attempt.submission
    return {
        "signed_at": to_iso(attempt.signed_at),
        "value": submission.value,
        "sequence": submission.sequence,
        "tx_hash": submission.tx_hash,
        "gas": submission.gas,
        "fee_uallo": submission.fee_uallo,
        "timeout_height": submission.timeout_height,
        "tx_bytes": base64.b64encode(submission.tx_bytes).decode(),
    }


def find_epochs(
    ledger: LedgerSnapshot,
    *,
    topic_id: int | None = None,
    state: str | None = None,
    nonce: int | None = None,
    limit: int | None = None,
) -> list[LedgerEpoch]:
    """The epochs that match all filters, newest first, at most `limit`."""
    entries = [
        entry
        for entry in ledger.newest_entries()
        if topic_id in (None, entry.key[1]) and state in (None, entry.row.state.value) and nonce in (None, entry.nonce)
    ]
    return [read_epoch(ledger, entry) for entry in entries[:limit]]


def read_epoch(ledger: LedgerSnapshot, entry: LedgerEntry) -> LedgerEpoch:
    """An entry with its signatures."""
    pairs = zip(ledger.attempts(entry.key), ledger.attempt_times(entry.key), strict=True)
    return LedgerEpoch(entry, tuple(AttemptRecord(submission, signed_at) for submission, signed_at in pairs))


def format_export(epochs: list[LedgerEpoch], export_format: ExportFormat) -> str:
    """The epochs as CSV (one row each, with the newest signature) or as JSON (with every signature and its bytes)."""
    if export_format == "json":
        return json.dumps({"epochs": [epoch.as_json() for epoch in epochs]}, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, EXPORT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.as_row() for epoch in epochs)
    return text.getvalue()


def write_export(text: str, path: Path, *, force: bool) -> None:
    """Write an export to a file that only its owner can read, atomically.

    Raises:
        NeedsHuman: the file exists and `force` is false, or it cannot be written.
    """
    if path.exists() and not force:
        raise NeedsHuman(f"{path} already exists. Use --force to replace it.")
    write_atomic(path, text.encode())
