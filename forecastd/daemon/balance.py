"""How long the wallet's money lasts: asked now and then, so that a person hears of it long before an epoch is lost."""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.ledger.ledger import Ledger

LOW_EPOCHS = 100  # epochs left, below which a person is told
CHECK_INTERVAL_SECONDS = 3600.0  # seconds


@dataclass(frozen=True)
class WalletBalance:
    """A wallet's balance in uallo, and for how many epochs of all its topics it lasts at the last fee; None: not known."""

    uallo: int
    epochs: int | None

    @property
    def is_low(self) -> bool:
        """Whether a person should know of it."""
        return self.epochs is not None and self.epochs < LOW_EPOCHS


def check_balance(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str, topics: int) -> WalletBalance:
    """Ask for the balance. `topics`: how many are served with this wallet.

    Raises:
        RetryLater: no endpoint answered.
    """
    balance, fee = chain.balance(wallet), ledger.last_fee(chain_id, wallet)
    if fee is None:
        return WalletBalance(balance, None)
    cost = (fee + chain.params().data_sending_fee) * max(1, topics)
    return WalletBalance(balance, balance // cost if cost else None)
