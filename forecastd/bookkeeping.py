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
from forecastd.clock import Clock, iso
from forecastd.connect import chain_of, open_chain
from forecastd.errors import NeedsHuman
from forecastd.ledger import Entry, Ledger, State, Submission
from forecastd.ledgercopy import LedgerCopy, read_ledger
from forecastd.settings import Settings
from forecastd.wholefile import write_whole

Format = Literal["csv", "json"]

MEANING: Mapping[State, str] = {
    State.SIGNED: "signed and on record, its fate is not known yet",
    State.DEAD: "cannot take effect any more, may be signed again while the window is open",
    State.INCLUDED: "in a block, whether it counts is not known yet",
    State.ADMITTED: "in a block, and it counts",
    State.PASSIVE: "in a block, but outside the active set",
    State.EVICTED: "in a block, but pushed out of the active set",
    State.MISSED: "the epoch went by without it",
}
COLUMNS = (
    "chain_id", "topic_id", "nonce", "wallet", "state", "value", "tx_hash", "height", "attempts", "sequence", "gas",
    "fee_uallo", "timeout_height", "first_at", "settled_at", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class Signed:
    """A signature that was made for an epoch, and when (unix seconds)."""

    submission: Submission
    at: float


@dataclass(frozen=True)
class Epoch:
    """An epoch of the ledger with every signature made for it, oldest first."""

    entry: Entry
    signatures: tuple[Signed, ...]

    @property
    def last(self) -> Submission | None:
        """The newest signature, None when nothing was signed here."""
        return self.signatures[-1].submission if self.signatures else None

    def as_row(self) -> dict[str, object]:
        """The epoch and its newest signature by the names of `COLUMNS`; what there is not is None."""
        entry, row, last = self.entry, self.entry.row, self.last
        chain_id, topic_id, nonce, wallet = entry.key
        values = (
            chain_id, topic_id, nonce, wallet, row.state.value, entry.value, last and last.tx_hash, row.height,
            row.attempts, last and last.sequence, last and last.gas, last and last.fee_uallo,
            last and last.timeout_height, iso(entry.first_at),
            None if entry.settled_at is None else iso(entry.settled_at), row.reason,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))

    def as_json(self) -> dict[str, object]:
        """As `as_row`, with every signature and its exact bytes in base64."""
        return {**self.as_row(), "signatures": [_signature(one) for one in self.signatures]}


def _signature(one: Signed) -> dict[str, object]:
    told = one.submission
    return {
        "signed_at": iso(one.at),
        "value": told.value,
        "sequence": told.sequence,
        "tx_hash": told.tx_hash,
        "gas": told.gas,
        "fee_uallo": told.fee_uallo,
        "timeout_height": told.timeout_height,
        "tx_bytes": base64.b64encode(told.tx_bytes).decode(),
    }


def epochs(
    ledger: LedgerCopy,
    *,
    topic_id: int | None = None,
    state: str | None = None,
    nonce: int | None = None,
    limit: int | None = None,
) -> list[Epoch]:
    """The epochs that fit all that is given, the newest first, at most `limit`."""
    fitting = [
        entry
        for entry in ledger.newest()
        if topic_id in (None, entry.key[1]) and state in (None, entry.row.state.value) and nonce in (None, entry.nonce)
    ]
    return [read(ledger, entry) for entry in fitting[:limit]]


def read(ledger: LedgerCopy, entry: Entry) -> Epoch:
    """An entry with its signatures."""
    signed = zip(ledger.attempts(entry.key), ledger.signed_at(entry.key), strict=True)
    return Epoch(entry, tuple(Signed(submission, at) for submission, at in signed))


# Exports


def exported(found: list[Epoch], form: Format) -> str:
    """The epochs as CSV (a row each, with the newest signature) or as JSON (with every signature and its bytes)."""
    if form == "json":
        return json.dumps({"epochs": [epoch.as_json() for epoch in found]}, indent=1) + "\n"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(epoch.as_row() for epoch in found)
    return text.getvalue()


def write(text: str, path: Path, *, force: bool) -> None:
    """Put a text into a file that only its owner can read, whole or not at all.

    Raises:
        NeedsHuman: the file exists and `force` is not given, or it cannot be written.
    """
    if path.exists() and not force:
        raise NeedsHuman(f"{path} exists. Give --force to replace it.")
    write_whole(path, text.encode())


# The account


@dataclass(frozen=True)
class Account:
    """A wallet's sequence on the chain beside what the ledger knows. `unknown`: used, and not by this ledger.

    `known_from` is where the ledger's knowledge begins; None for an account that it has not seen yet.
    """

    chain_id: str
    wallet: str
    sequence: int
    known_from: int | None
    unknown: tuple[int, ...]

    @property
    def began_anew(self) -> bool:
        """Whether the account is younger than what the ledger knows of it."""
        return self.known_from is not None and self.sequence < self.known_from


def compare_account(ledger: Ledger, chain: ChainClient, chain_id: str, wallet: str) -> Account:
    """A wallet's account on the chain against the ledger. Changes nothing.

    Raises:
        RetryLater: no endpoint answered.
    """
    account = chain.account(wallet)
    sequence = 0 if account is None else account.sequence
    known = ledger.known_from(chain_id, wallet)
    return Account(chain_id, wallet, sequence, known, tuple(ledger.unexplained(chain_id, wallet, sequence)))


@contextmanager
def strangers(settings: Settings, clock: Clock) -> Iterator[tuple[Ledger, list[Account]]]:
    """The ledger itself, held, and those of its accounts on this chain that somebody else signed for.

    Raises:
        NoLedger: there is none.
        RetryLater: a worker holds it, or no endpoint answered.
    """
    path, chain_id = settings.state / "ledger.sqlite", chain_of(settings)
    with read_ledger(path) as copy:  # a ledger is not made, or set aside, by asking for it
        wallets = [wallet for on, wallet in copy.accounts() if on == chain_id]
    with closing(Ledger(path)) as ledger, open_chain(settings, clock, chain_id) as chain:
        found = [compare_account(ledger, chain, chain.chain_id(), wallet) for wallet in wallets]
        yield ledger, [account for account in found if account.unknown]


def trust(ledger: Ledger, account: Account) -> None:
    """Take the account's sequence as it is: who used the unknown ones is not asked any more.

    Raises:
        RetryLater: the disk did not take it.
    """
    ledger.know_from(account.chain_id, account.wallet, account.sequence)


def shown(numbers: tuple[int, ...], most: int = 8) -> str:
    """Numbers in a few words: `3, 5-9 and 12 more`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    told = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs[:most])
    left = sum(high - low + 1 for low, high in runs[most:])
    return f"{told} and {left} more" if left else told
