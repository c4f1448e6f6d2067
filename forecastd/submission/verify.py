"""`ledger verify`: compares every epoch of the ledger with the chain. Signs, sends and changes nothing.

`query_chain` collects `ChainFacts`; `check_entry`, a pure function, compares them with the entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Literal

from forecastd.chain.client import ChainClient
from forecastd.chain.types import TxResult
from forecastd.ledger.export import LedgerEpoch, read_epoch
from forecastd.ledger.ledger import LedgerEntry, SubmissionState
from forecastd.ledger.snapshot import LedgerSnapshot
from forecastd.submission.account import AccountStatus, compare_account, format_ranges

MAX_PARALLEL_EPOCHS = 4  # queried in parallel; an endpoint gets no more requests than from a worker
Agreement = Literal["agrees", "open", "disagrees"]
_NO_TRACE_REASON = (
    "no endpoint has its transaction or its forecast. Either it never reached the chain, or the endpoints have pruned it: "
    "use an archive endpoint, or check fewer epochs with --limit"
)


@dataclass(frozen=True)
class ChainFacts:
    """What the chain knows of an epoch.

    `accepted` and `failed`: the included transactions of this worker, by their code. `counted_value`: the value that the
    chain counts for this worker, if it still has the epoch's set (`has_epoch_set`). `latest_value`: the value of the worker's
    newest forecast, if that is for this epoch.
    """

    accepted: tuple[TxResult, ...] = ()
    failed: tuple[TxResult, ...] = ()
    has_epoch_set: bool = False
    counted_value: str | None = None
    latest_value: str | None = None

    @property
    def value(self) -> str | None:
        """The forecast that the chain has."""
        return self.latest_value if self.counted_value is None else self.counted_value


@dataclass(frozen=True)
class EntryVerdict:
    """Whether an epoch's entry agrees with the chain. `open`: the entry is not settled yet."""

    entry: LedgerEntry
    agreement: Agreement
    reason: str


@dataclass(frozen=True)
class VerificationReport:
    """The ledger compared with the chain. `other_chains`: the number of entries of each other chain, not compared."""

    chain_id: str
    height: int
    file_problems: tuple[str, ...]
    verdicts: tuple[EntryVerdict, ...]
    accounts: tuple[AccountStatus, ...]
    other_chains: dict[str, int]

    @property
    def disagreements(self) -> list[str]:
        """A description of each disagreement."""
        lines = [f"the file: {problem}" for problem in self.file_problems]
        lines += [
            f"topic {verdict.entry.key[1]} nonce {verdict.entry.nonce}: the ledger has {verdict.entry.row.state}, "
            f"but {verdict.reason}"
            for verdict in self.verdicts
            if verdict.agreement == "disagrees"
        ]
        for account in self.accounts:
            if account.unexplained:
                lines.append(
                    f"{account.wallet}: another signer used the sequences {format_ranges(account.unexplained)}. Stop the "
                    "other worker; if it was you, run `forecastd ledger trust`"
                )
            if account.was_reset:
                lines.append(
                    f"{account.wallet}: its next sequence is {account.sequence}, but the ledger tracks it from "
                    f"{account.known_from}. The chain was reset, or the endpoint is far behind"
                )
        return lines

    def count(self, agreement: Agreement) -> int:
        """The number of entries with this verdict."""
        return sum(verdict.agreement == agreement for verdict in self.verdicts)


def verify_ledger(
    ledger: LedgerSnapshot,
    chain: ChainClient,
    *,
    topic_id: int | None = None,
    limit: int | None = None,
    on_verdict: Callable[[EntryVerdict], None] = lambda _: None,
) -> VerificationReport:
    """Compare the newest `limit` entries of this chain with the chain, and check the file for damage.

    `on_verdict` is called with each verdict as soon as it is known.

    Raises:
        RetryLater: no endpoint answered.
        NeedsHuman: all endpoints are on another chain.
    """
    chain_id, height = chain.chain_id(), chain.height()
    entries = [entry for entry in ledger.newest_entries() if topic_id in (None, entry.key[1])]
    epochs = [read_epoch(ledger, entry) for entry in entries if entry.key[0] == chain_id][:limit]
    verdicts = []
    executor = ThreadPoolExecutor(MAX_PARALLEL_EPOCHS, thread_name_prefix="verify")
    try:
        for epoch, facts in zip(epochs, executor.map(lambda epoch: query_chain(chain, epoch), epochs), strict=True):
            verdict = check_entry(epoch.entry, facts)
            on_verdict(verdict)
            verdicts.append(verdict)
    finally:
        executor.shutdown(cancel_futures=True)
    return VerificationReport(
        chain_id=chain_id,
        height=height,
        file_problems=tuple(ledger.find_problems()),
        verdicts=tuple(verdicts),
        accounts=tuple(
            compare_account(ledger, chain, chain_id, wallet)
            for account_chain_id, wallet in ledger.accounts()
            if account_chain_id == chain_id
        ),
        other_chains=dict(Counter(entry.key[0] for entry in entries if entry.key[0] != chain_id)),
    )


def query_chain(chain: ChainClient, epoch: LedgerEpoch) -> ChainFacts:
    """Query everything that the chain knows of an epoch. Raises RetryLater when no endpoint answers."""
    _, topic_id, nonce, wallet = epoch.entry.key
    results = [chain.find_tx(attempt.submission.tx_hash) for attempt in epoch.attempts]
    transactions = [result for result in results if result is not None]
    inferences = chain.inferences_at(topic_id, nonce)
    latest = chain.latest_inference(topic_id, wallet)
    return ChainFacts(
        accepted=tuple(transaction for transaction in transactions if transaction.code == 0),
        failed=tuple(transaction for transaction in transactions if transaction.code != 0),
        has_epoch_set=bool(inferences),
        counted_value=next((inference.value for inference in inferences if inference.worker == wallet), None),
        latest_value=latest.value if latest is not None and latest.nonce == nonce else None,
    )


def check_entry(entry: LedgerEntry, facts: ChainFacts) -> EntryVerdict:
    """Whether the entry agrees with the facts."""
    row = entry.row
    blocks = ", ".join(str(transaction.height) for transaction in facts.accepted)
    if len(facts.accepted) > 1:
        return EntryVerdict(
            entry, "disagrees", f"the chain accepted it {len(facts.accepted)} times, in blocks {blocks}"
        )
    is_on_chain = facts.accepted or facts.value is not None
    location = f"block {blocks} has it" if blocks else "the chain shows its forecast"
    if row.state is SubmissionState.SIGNED:
        return EntryVerdict(
            entry, "open", f"{location}; the next run records it" if is_on_chain else "no block has it yet"
        )
    if row.state is SubmissionState.ABANDONED:
        return EntryVerdict(
            entry, "disagrees" if is_on_chain else "open", location if is_on_chain else "no block accepted it"
        )
    if row.state is SubmissionState.MISSED:
        return EntryVerdict(
            entry, "disagrees" if is_on_chain else "agrees", location if is_on_chain else "the chain has no trace of it"
        )
    return _check_included(entry, facts, location=location if is_on_chain else "")


def _check_included(entry: LedgerEntry, facts: ChainFacts, *, location: str) -> EntryVerdict:
    """The verdict of an entry that should be in a block. `location` is empty when the chain has no trace of it."""
    row, mismatch = entry.row, ""
    if not location:
        failed = "".join(
            f"block {transaction.height} refused it ({transaction.codespace} {transaction.code})"
            for transaction in facts.failed[:1]
        )
        mismatch = failed or _NO_TRACE_REASON
    elif facts.accepted and row.height is not None and row.height != facts.accepted[0].height:
        mismatch = f"block {facts.accepted[0].height} has it, not {row.height}"
    elif facts.value is not None and not _is_same_number(entry.value, facts.value):
        mismatch = f"the chain has the value {facts.value}, not {entry.value}"
    elif row.state is SubmissionState.ADMITTED and facts.has_epoch_set and facts.counted_value is None:
        mismatch = "the chain does not count it"
    elif row.state in (SubmissionState.PASSIVE, SubmissionState.EVICTED) and facts.counted_value is not None:
        mismatch = "the chain counts it"
    return EntryVerdict(entry, "disagrees" if mismatch else "agrees", mismatch or location)


def _is_same_number(own_value: str | None, chain_value: str) -> bool:
    """Whether two decimal texts are the same number."""
    try:
        return own_value is not None and Decimal(own_value) == Decimal(chain_value)
    except InvalidOperation:
        return False
