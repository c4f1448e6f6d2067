"""The wallet's balance and how long it lasts, so that a low one is reported long before an epoch is missed."""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.ledger.ledger import Ledger

LOW_EPOCHS = 100  # fewer remaining epochs fire an alert
CHECK_INTERVAL_SECONDS = 3600.0


@dataclass(frozen=True)
class WalletBalance:
    """A wallet's balance in uallo. `epochs`: how many epochs of all its topics it pays for; None if unknown."""

    uallo: int
    epochs: int | None

    @property
    def is_low(self) -> bool:
        """Whether the balance is low enough for an alert."""
        return self.epochs is not None and self.epochs < LOW_EPOCHS


def check_balance(chain: ChainClient, ledger: Ledger, chain_id: str, wallet: str, topics: int) -> WalletBalance:
    """Query the balance. `topics`: the number of topics served with this wallet.

    Raises:
        RetryLater: no endpoint answered.
    """
    balance, fee = chain.balance(wallet), ledger.last_fee(chain_id, wallet)
    if fee is None:
        return WalletBalance(balance, None)
    cost = (fee + chain.params().data_sending_fee) * max(1, topics)
    return WalletBalance(balance, balance // cost if cost else None)
