"""What a cycle is told to do, and what it works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Lock

from forecastd.chain.endpoints import Endpoints
from forecastd.chain.submit import Spending
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.delivery import Delivery
from forecastd.forecaster import Forecaster
from forecastd.ledger import Ledger
from forecastd.sources.base import Source
from forecastd.window import RollingWindow


@dataclass(frozen=True)
class Job:
    """What one cycle is to do and may spend.

    `persist`: a stage that fails for a passing reason is tried again until its share of the window is over, and a window
    that closes on it is recorded as missed. `seconds`: how long to wait for a block, None as long as the window is open.
    """

    topic_id: int
    spending: Spending
    register: bool
    dry_run: bool
    persist: bool = False
    seconds: float | None = 60.0


@dataclass(frozen=True)
class Account:
    """What cycles that run at the same time with one wallet share.

    `signing` is held from the account's sequence to the ledger's commit, so that no two take the same one. `topics`: all that
    are served with this wallet, each by one thread at a time.
    """

    signing: Lock = field(default_factory=Lock)
    topics: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Parts:
    """What a cycle works with. `wake` is set to make it stop waiting early."""

    source: Source
    window: RollingWindow
    forecaster: Forecaster
    ledger: Ledger
    chain: Endpoints
    wallet: Wallet
    clock: Clock
    wake: Event
    account: Account = field(default_factory=Account)

    @property
    def delivery(self) -> Delivery:
        return Delivery(self.ledger, self.chain, self.clock, self.wake)
