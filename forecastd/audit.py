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

from forecastd.bookkeeping import Account, Epoch, compare_account, read, shown
from forecastd.chain.answers import TxResult
from forecastd.chain.client import ChainClient
from forecastd.ledger import Entry, State
from forecastd.ledgercopy import LedgerCopy

AT_ONCE = 4  # epochs that are asked about side by side; an endpoint is given no more than a worker would
Said = Literal["agrees", "open", "disagrees"]
_HISTORY = (
    "no endpoint has a transaction of it, nor its forecast. Either it never got there, or the endpoints do not keep so "
    "much: ask one with a history, or fewer epochs with --limit"
)


@dataclass(frozen=True)
class Facts:
    """What the chain says of an epoch.

    `accepted` and `failed`: blocks that hold a transaction of ours, by its code. `counted`: the value that the chain counts
    for this worker, where it keeps the epoch's set (`kept`). `latest`: the value of the worker's newest forecast when that is
    this epoch's.
    """

    accepted: tuple[TxResult, ...] = ()
    failed: tuple[TxResult, ...] = ()
    kept: bool = False
    counted: str | None = None
    latest: str | None = None

    @property
    def value(self) -> str | None:
        """The forecast as the chain shows it."""
        return self.latest if self.counted is None else self.counted


@dataclass(frozen=True)
class Verdict:
    """Whether an epoch's entry says what the chain says. `open`: it claims nothing final yet."""

    entry: Entry
    said: Said
    why: str


@dataclass(frozen=True)
class Audit:
    """The ledger against the chain. `elsewhere`: entries of other chains, which were not asked about, by chain."""

    chain_id: str
    height: int
    problems: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    accounts: tuple[Account, ...]
    elsewhere: dict[str, int]

    @property
    def disagreements(self) -> list[str]:
        """All that does not agree, in words."""
        found = [f"the file: {problem}" for problem in self.problems]
        found += [
            f"topic {one.entry.key[1]} nonce {one.entry.nonce}: the ledger says {one.entry.row.state}, but {one.why}"
            for one in self.verdicts
            if one.said == "disagrees"
        ]
        for account in self.accounts:
            if account.unknown:
                found.append(
                    f"{account.wallet}: somebody else used the sequences {shown(account.unknown)}. Stop the other "
                    "worker; if it was you, run `forecastd ledger trust`"
                )
            if account.began_anew:
                found.append(
                    f"{account.wallet}: its next sequence is {account.sequence}, the ledger knows it from "
                    f"{account.known_from} on. The chain began anew, or the endpoint is far behind"
                )
        return found

    def count(self, said: Said) -> int:
        """How many entries got this verdict."""
        return sum(one.said == said for one in self.verdicts)


def verify(
    ledger: LedgerCopy,
    chain: ChainClient,
    *,
    topic_id: int | None = None,
    limit: int | None = None,
    report: Callable[[Verdict], None] = lambda _: None,
) -> Audit:
    """Compare the newest `limit` entries of this chain with it, and the file with itself.

    Raises:
        RetryLater: the chain cannot be asked.
        NeedsHuman: all endpoints are on another chain.
    """
    chain_id, height = chain.chain_id(), chain.height()
    wanted = [entry for entry in ledger.newest() if topic_id in (None, entry.key[1])]
    asked = [read(ledger, entry) for entry in wanted if entry.key[0] == chain_id][:limit]
    verdicts = []
    threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="verify")
    try:
        for epoch, facts in zip(asked, threads.map(lambda epoch: look(chain, epoch), asked), strict=True):
            verdict = judge(epoch.entry, facts)
            report(verdict)
            verdicts.append(verdict)
    finally:
        threads.shutdown(cancel_futures=True)
    return Audit(
        chain_id=chain_id,
        height=height,
        problems=tuple(ledger.problems()),
        verdicts=tuple(verdicts),
        accounts=tuple(
            compare_account(ledger, chain, chain_id, wallet) for on, wallet in ledger.accounts() if on == chain_id
        ),
        elsewhere=dict(Counter(entry.key[0] for entry in wanted if entry.key[0] != chain_id)),
    )


def look(chain: ChainClient, epoch: Epoch) -> Facts:
    """Ask the chain for everything it says of an epoch. Raises RetryLater when nobody answers."""
    _, topic_id, nonce, wallet = epoch.entry.key
    asked = [chain.find_tx(one.submission.tx_hash) for one in epoch.signatures]
    found = [one for one in asked if one is not None]
    counting = chain.inferences_at(topic_id, nonce)
    latest = chain.latest_inference(topic_id, wallet)
    return Facts(
        accepted=tuple(one for one in found if one.code == 0),
        failed=tuple(one for one in found if one.code != 0),
        kept=bool(counting),
        counted=next((one.value for one in counting if one.worker == wallet), None),
        latest=latest.value if latest is not None and latest.nonce == nonce else None,
    )


def judge(entry: Entry, facts: Facts) -> Verdict:
    """Whether the entry says what the facts say."""
    row = entry.row
    blocks = ", ".join(str(one.height) for one in facts.accepted)
    if len(facts.accepted) > 1:
        return Verdict(entry, "disagrees", f"the chain accepted it {len(facts.accepted)} times, in blocks {blocks}")
    there = facts.accepted or facts.value is not None
    where = f"block {blocks} has it" if blocks else "the chain shows its forecast"
    if row.state is State.SIGNED:
        return Verdict(entry, "open", f"{where}; the next run records it" if there else "no block has it yet")
    if row.state is State.DEAD:
        return Verdict(entry, "disagrees" if there else "open", where if there else "no block took it")
    if row.state is State.MISSED:
        return Verdict(entry, "disagrees" if there else "agrees", where if there else "the chain has nothing of it")
    return _claimed(entry, facts, where=where if there else "")


def _claimed(entry: Entry, facts: Facts, *, where: str) -> Verdict:
    """An entry that claims to be in a block. `where` is empty when the chain has no trace of it."""
    row, against = entry.row, ""
    if not where:
        failed = "".join(f"block {one.height} refused it ({one.codespace} {one.code})" for one in facts.failed[:1])
        against = failed or _HISTORY
    elif facts.accepted and row.height is not None and row.height != facts.accepted[0].height:
        against = f"block {facts.accepted[0].height} has it, not {row.height}"
    elif facts.value is not None and not _same(entry.value, facts.value):
        against = f"the chain has the value {facts.value}, not {entry.value}"
    elif row.state is State.ADMITTED and facts.kept and facts.counted is None:
        against = "the chain does not count it"
    elif row.state in (State.PASSIVE, State.EVICTED) and facts.counted is not None:
        against = "the chain counts it"
    return Verdict(entry, "disagrees" if against else "agrees", against or where)


def _same(ours: str | None, theirs: str) -> bool:
    """Whether two decimals are the same number, however they are written."""
    try:
        return ours is not None and Decimal(ours) == Decimal(theirs)
    except InvalidOperation:
        return False
