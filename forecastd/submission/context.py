"""What a cycle needs: its options, the wallet that topics share, and the resources it works with."""

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
    """What one cycle does and may spend.

    `retry_until_closed`: a stage that fails temporarily is retried until its share of the window is over; a window that
    closes before it succeeds is recorded as missed. `timeout_seconds`: how long to wait for a block, None for as long as
    the window is open.
    """

    topic_id: int
    spending: FeePolicy
    register: bool
    dry_run: bool
    retry_until_closed: bool = False
    timeout_seconds: float | None = 60.0


@dataclass(frozen=True)
class SharedWallet:
    """What concurrent cycles of one wallet share.

    `signing_lock` is held from reading the account's sequence to the ledger's commit, so that no two cycles use the same
    sequence. `topics`: all topics served with this wallet, each by one thread at a time.
    """

    signing_lock: Lock = field(default_factory=Lock)
    topics: frozenset[int] = frozenset()


@dataclass(frozen=True)
class CycleContext:
    """The resources of a cycle. `wake` is set to stop its waiting early; `block_seconds`: the time between two blocks."""

    source: Source
    window: RollingWindow
    forecaster: Forecaster
    ledger: Ledger
    chain: EndpointPool
    wallet: Wallet
    clock: Clock
    wake: Event
    shared_wallet: SharedWallet = field(default_factory=SharedWallet)
    block_seconds: float = 5.0  # the target of Allora's chains

    @property
    def delivery_context(self) -> DeliveryContext:
        return DeliveryContext(self.ledger, self.chain, self.clock, self.wake)
