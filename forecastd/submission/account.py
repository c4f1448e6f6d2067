"""What the ledger says, for people and for files: epochs with their signatures, exports, and an account taken as it is.

Reading is done on a copy (`ledgercopy`), so it works beside a worker. Only `trust` writes, and needs the ledger itself.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from forecastd.chain.client import ChainClient
from forecastd.clock import Clock, to_iso
from forecastd.errors import NeedsHuman
from forecastd.ledger.ledger import Ledger, LedgerEntry, Submission, SubmissionState
from forecastd.ledger.snapshot import LedgerSnapshot, open_snapshot
from forecastd.runtime.files import write_atomic
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints

ExportFormat = Literal["csv", "json"]

STATE_MEANINGS: Mapping[SubmissionState, str] = {
    SubmissionState.SIGNED: "signed and on record, its fate is not known yet",
    SubmissionState.ABANDONED: "cannot take effect any more, may be signed again while the window is open",
    SubmissionState.INCLUDED: "in a block, whether it counts is not known yet",
    SubmissionState.ADMITTED: "in a block, and it counts",
    SubmissionState.PASSIVE: "in a block, but outside the active set",
    SubmissionState.EVICTED: "in a block, but pushed out of the active set",
    SubmissionState.MISSED: "the epoch went by without it",
}
EXPORT_COLUMNS = (
    "chain_id", "topic_id", "nonce", "wallet", "state", "value", "tx_hash", "height", "attempts", "sequence", "gas",
    "fee_uallo", "timeout_height", "first_at", "settled_at", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class AttemptRecord:
    """A signature that was made for an epoch, and when (unix seconds)."""

    submission: Submission
    signed_at: float


@dataclass(frozen=True)
class LedgerEpoch:
    """An epoch of the ledger with every signature made for it, oldest first."""

    entry: LedgerEntry
    attempts: tuple[AttemptRecord, ...]

    @property
    def last_submission(self) -> Submission | None:
        """The newest signature, None when nothing was signed here."""
        return self.attempts[-1].submission if self.attempts else None

    def as_row(self) -> dict[str, object]:
        """The epoch and its newest signature by the names of `COLUMNS`; what there is not is None."""
        entry, row, submission = self.entry, self.entry.row, self.last_submission
        chain_id, topic_id, nonce, wallet = entry.key
        values = (
            chain_id, topic_id, nonce, wallet, row.state.value, entry.value, submission and submission.tx_hash, row.height,
            row.attempts, submission and submission.sequence, submission and submission.gas, submission and submission.fee_uallo,
            submission and submission.timeout_height, to_iso(entry.first_at),
            None if entry.settled_at is None else to_iso(entry.settled_at), row.reason,
        )  # fmt: skip
        return dict(zip(EXPORT_COLUMNS, values, strict=True))

    def as_json(self) -> dict[str, object]:
        """As `as_row`, with every signature and its exact bytes in base64."""
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
    """The epochs that fit all that is given, the newest first, at most `limit`."""
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


# Exports


def format_export(epochs: list[LedgerEpoch], export_format: ExportFormat) -> str:
    """The epochs as CSV (a row each, with the newest signature) or as JSON (with every signature and its bytes)."""
    if export_format == "json":
        return json.dumps({"epochs": [epoch.as_json() for epoch in epochs]}, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, EXPORT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.as_row() for epoch in epochs)
    return text.getvalue()


def write_export(text: str, path: Path, *, force: bool) -> None:
    """Put a text into a file that only its owner can read, whole or not at all.

    Raises:
        NeedsHuman: the file exists and `force` is not given, or it cannot be written.
    """
    if path.exists() and not force:
        raise NeedsHuman(f"{path} exists. Give --force to replace it.")
    write_atomic(path, text.encode())


# The account


@dataclass(frozen=True)
class AccountStatus:
    """A wallet's sequence on the chain beside what the ledger knows. `unknown`: used, and not by this ledger.

    `known_from` is where the ledger's knowledge begins; None for an account that it has not seen yet.
    """

    chain_id: str
    wallet: str
    sequence: int
    known_from: int | None
    unexplained: tuple[int, ...]

    @property
    def was_reset(self) -> bool:
        """Whether the account is younger than what the ledger knows of it."""
        return self.known_from is not None and self.sequence < self.known_from


def compare_account(ledger: Ledger, chain: ChainClient, chain_id: str, wallet: str) -> AccountStatus:
    """A wallet's account on the chain against the ledger. Changes nothing.

    Raises:
        RetryLater: no endpoint answered.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known_from = ledger.known_from(chain_id, wallet)
    return AccountStatus(
        chain_id, wallet, sequence, known_from, tuple(ledger.unexplained_sequences(chain_id, wallet, sequence))
    )


@contextmanager
def open_unexplained_accounts(settings: Settings, clock: Clock) -> Iterator[tuple[Ledger, list[AccountStatus]]]:
    """The ledger itself, held, and those of its accounts on this chain that somebody else signed for.

    Raises:
        NoLedger: there is none.
        RetryLater: a worker holds it, or no endpoint answered.
    """
    path, chain_id = settings.state_path / "ledger.sqlite", chain_id_for(settings)
    with open_snapshot(path) as snapshot:  # a ledger is not made, or set aside, by asking for it
        wallets = [wallet for account_chain_id, wallet in snapshot.accounts() if account_chain_id == chain_id]
    with closing(Ledger(path)) as ledger, open_endpoints(settings, clock, chain_id) as chain:
        accounts = [compare_account(ledger, chain, chain.chain_id(), wallet) for wallet in wallets]
        yield ledger, [account for account in accounts if account.unexplained]


def trust_account(ledger: Ledger, account: AccountStatus) -> None:
    """Take the account's sequence as it is: who used the unknown ones is not asked any more.

    Raises:
        RetryLater: the disk did not take it.
    """
    ledger.set_known_from(account.chain_id, account.wallet, account.sequence)


def format_ranges(numbers: tuple[int, ...], max_ranges: int = 8) -> str:
    """Numbers in a few words: `3, 5-9 and 12 more`."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges[:max_ranges])
    remaining = sum(high - low + 1 for low, high in ranges[max_ranges:])
    return f"{text} and {remaining} more" if remaining else text
