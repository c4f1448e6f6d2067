"""What a cycle is told to do, and what it works with."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import Event, Lock

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.submit import FeePolicy
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.submission.delivery import DeliveryContext


@dataclass(frozen=True)
class CycleOptions:
    """What one cycle is to do and may spend.

    `persist`: a stage that fails for a passing reason is tried again until its share of the window is over, and a window
    that closes on it is recorded as missed. `seconds`: how long to wait for a block, None as long as the window is open.
    """

    topic_id: int
    spending: FeePolicy
    register: bool
    dry_run: bool
    retry_until_closed: bool = False
    timeout_seconds: float | None = 60.0


@dataclass(frozen=True)
class SharedWallet:
    """What cycles that run at the same time with one wallet share.

    `signing` is held from the account's sequence to the ledger's commit, so that no two take the same one. `topics`: all that
    are served with this wallet, each by one thread at a time.
    """

    signing_lock: Lock = field(default_factory=Lock)
    topics: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CycleContext:
    """What a cycle works with. `wake` is set to make it stop waiting early."""

    source: Source
    window: RollingWindow
    forecaster: Forecaster
    ledger: Ledger
    chain: EndpointPool
    wallet: Wallet
    clock: Clock
    wake: Event
    shared_wallet: SharedWallet = field(default_factory=SharedWallet)

    @property
    def delivery_context(self) -> DeliveryContext:
        return DeliveryContext(self.ledger, self.chain, self.clock, self.wake)
