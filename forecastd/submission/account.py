"""The wallet's account on the chain compared with the ledger: which sequences another signer has used.

`compare_account` only reads; `trust_account` writes, and needs the ledger itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.clock import Clock
from forecastd.ledger.ledger import Ledger
from forecastd.ledger.snapshot import open_snapshot
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints


@dataclass(frozen=True)
class AccountStatus:
    """A wallet's next sequence on the chain, compared with the ledger.

    `unexplained`: sequences that were used, but not by this ledger. `known_from`: the first sequence from which the ledger is
    complete; None for an account that it has not seen.
    """

    chain_id: str
    wallet: str
    sequence: int
    known_from: int | None
    unexplained: tuple[int, ...]

    @property
    def was_reset(self) -> bool:
        """Whether the account's sequence is lower than the ledger knows, as after a reset of the chain."""
        return self.known_from is not None and self.sequence < self.known_from


def compare_account(ledger: Ledger, chain: ChainClient, chain_id: str, wallet: str) -> AccountStatus:
    """Compare a wallet's account on the chain with the ledger. Changes nothing.

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
    """Open the ledger, with those of its accounts on this chain for which another signer used sequences.

    Raises:
        LedgerNotFound: there is no ledger.
        RetryLater: a worker holds it, or no endpoint answered.
    """
    path, chain_id = settings.state_path / "ledger.sqlite", chain_id_for(settings)
    with open_snapshot(path) as snapshot:  # opening the ledger itself could create or rename it
        wallets = [wallet for account_chain_id, wallet in snapshot.accounts() if account_chain_id == chain_id]
    with Ledger(path) as ledger, open_endpoints(settings, clock, chain_id) as chain:
        accounts = [compare_account(ledger, chain, chain.chain_id(), wallet) for wallet in wallets]
        yield ledger, [account for account in accounts if account.unexplained]


def trust_account(ledger: Ledger, account: AccountStatus) -> None:
    """Accept the account's sequence: the unexplained ones are no longer checked.

    Raises:
        RetryLater: the ledger could not be written.
    """
    ledger.set_known_from(account.chain_id, account.wallet, account.sequence)


def format_ranges(numbers: tuple[int, ...], max_ranges: int = 8) -> str:
    """Numbers as ranges: `3, 5-9 and 12 more`, with at most `max_ranges` ranges."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    text = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges[:max_ranges])
    remaining = sum(high - low + 1 for low, high in ranges[max_ranges:])
    return f"{text} and {remaining} more" if remaining else text
