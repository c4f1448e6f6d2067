"""`ledger verify`: every epoch of the ledger against what the chain says of it. Signs, sends and changes nothing.

What the chain is asked for becomes a `Facts`; `judge` compares it with the entry and is a pure function.
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
from forecastd.ledger.ledger import LedgerEntry, SubmissionState
from forecastd.ledger.snapshot import LedgerSnapshot
from forecastd.submission.account import AccountStatus, LedgerEpoch, compare_account, format_ranges, read_epoch

MAX_PARALLEL_EPOCHS = 4  # epochs that are asked about side by side; an endpoint is given no more than a worker would
Agreement = Literal["agrees", "open", "disagrees"]
_NO_TRACE_REASON = (
    "no endpoint has a transaction of it, nor its forecast. Either it never got there, or the endpoints do not keep so "
    "much: ask one with a history, or fewer epochs with --limit"
)


@dataclass(frozen=True)
class ChainFacts:
    """What the chain says of an epoch.

    `accepted` and `failed`: blocks that hold a transaction of ours, by its code. `counted`: the value that the chain counts
    for this worker, where it keeps the epoch's set (`kept`). `latest`: the value of the worker's newest forecast when that is
    this epoch's.
    """

    accepted: tuple[TxResult, ...] = ()
    failed: tuple[TxResult, ...] = ()
    has_epoch_set: bool = False
    counted_value: str | None = None
    latest_value: str | None = None

    @property
    def value(self) -> str | None:
        """The forecast as the chain shows it."""
        return self.latest_value if self.counted_value is None else self.counted_value


@dataclass(frozen=True)
class EntryVerdict:
    """Whether an epoch's entry says what the chain says. `open`: it claims nothing final yet."""

    entry: LedgerEntry
    agreement: Agreement
    reason: str


@dataclass(frozen=True)
class VerificationReport:
    """The ledger against the chain. `elsewhere`: entries of other chains, which were not asked about, by chain."""

    chain_id: str
    height: int
    file_problems: tuple[str, ...]
    verdicts: tuple[EntryVerdict, ...]
    accounts: tuple[AccountStatus, ...]
    other_chains: dict[str, int]

    @property
    def disagreements(self) -> list[str]:
        """All that does not agree, in words."""
        lines = [f"the file: {problem}" for problem in self.file_problems]
        lines += [
            f"topic {verdict.entry.key[1]} nonce {verdict.entry.nonce}: the ledger says {verdict.entry.row.state}, but {verdict.reason}"
            for verdict in self.verdicts
            if verdict.agreement == "disagrees"
        ]
        for account in self.accounts:
            if account.unexplained:
                lines.append(
                    f"{account.wallet}: somebody else used the sequences {format_ranges(account.unexplained)}. Stop the other "
                    "worker; if it was you, run `forecastd ledger trust`"
                )
            if account.was_reset:
                lines.append(
                    f"{account.wallet}: its next sequence is {account.sequence}, the ledger knows it from "
                    f"{account.known_from} on. The chain began anew, or the endpoint is far behind"
                )
        return lines

    def count(self, agreement: Agreement) -> int:
        """How many entries got this verdict."""
        return sum(verdict.agreement == agreement for verdict in self.verdicts)


def verify_ledger(
    ledger: LedgerSnapshot,
    chain: ChainClient,
    *,
    topic_id: int | None = None,
    limit: int | None = None,
    on_verdict: Callable[[EntryVerdict], None] = lambda _: None,
) -> VerificationReport:
    """Compare the newest `limit` entries of this chain with it, and the file with itself.

    Raises:
        RetryLater: the chain cannot be asked.
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
    """Ask the chain for everything it says of an epoch. Raises RetryLater when nobody answers."""
    _, topic_id, nonce, wallet = epoch.entry.key
    results = [chain.find_tx(item.submission.tx_hash) for item in epoch.attempts]
    transactions = [item for item in results if item is not None]
    inferences = chain.inferences_at(topic_id, nonce)
    latest = chain.latest_inference(topic_id, wallet)
    return ChainFacts(
        accepted=tuple(item for item in transactions if item.code == 0),
        failed=tuple(item for item in transactions if item.code != 0),
        has_epoch_set=bool(inferences),
        counted_value=next((item.value for item in inferences if item.worker == wallet), None),
        latest_value=latest.value if latest is not None and latest.nonce == nonce else None,
    )


def check_entry(entry: LedgerEntry, facts: ChainFacts) -> EntryVerdict:
    """Whether the entry says what the facts say."""
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
            entry, "disagrees" if is_on_chain else "open", location if is_on_chain else "no block took it"
        )
    if row.state is SubmissionState.MISSED:
        return EntryVerdict(
            entry, "disagrees" if is_on_chain else "agrees", location if is_on_chain else "the chain has nothing of it"
        )
    return _check_included(entry, facts, location=location if is_on_chain else "")


def _check_included(entry: LedgerEntry, facts: ChainFacts, *, location: str) -> EntryVerdict:
    """An entry that claims to be in a block. `where` is empty when the chain has no trace of it."""
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
    """Whether two decimals are the same number, however they are written."""
    try:
        return own_value is not None and Decimal(own_value) == Decimal(chain_value)
    except InvalidOperation:
        return False
