"""What a cycle works with: `TopicResources`, which outlive it, and `CycleContext`, which is for one cycle only."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Event, Lock

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.fees import FeePolicy
from forecastd.chain.networks import NETWORKS
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import EpochKey, Ledger, LedgerEntry
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.settings import Settings

CONFIRMATION_SECONDS = 60.0  # how long a single run waits for a block


@dataclass(frozen=True)
class TopicResources:
    """The resources of one topic of one wallet.

    `chain_id`: the chain to sign for. `register`: an unregistered worker may be registered, for a fee; on the local
    network it always is, because it costs nothing there. `signing_lock` is held from reading the account's sequence to
    the ledger's commit, so that no two cycles of a wallet use the same sequence. `wallet_topics`: all topics served with
    this wallet, each by one thread at a time.
    """

    settings: Settings
    chain_id: str
    wallet: Wallet
    source: Source
    forecaster: Forecaster
    chain: EndpointPool
    register: bool = False
    signing_lock: Lock = field(default_factory=Lock)
    wallet_topics: frozenset[int] = frozenset()

    @property
    def topic_id(self) -> int:
        return self.settings.topic.id

    @property
    def key(self) -> tuple[int, str]:
        """The topic id and the wallet's address."""
        return self.topic_id, self.wallet.address

    @property
    def topics_of_other_threads(self) -> frozenset[int]:
        """The topics that other threads serve with this wallet."""
        return self.wallet_topics - {self.topic_id}

    @property
    def may_register(self) -> bool:
        return self.register or self.settings.chain.network == "local"

    @property
    def fee_policy(self) -> FeePolicy:
        floor = NETWORKS[self.settings.chain.network].gas_price_floor
        return FeePolicy(floor, self.settings.fees.tier, self.settings.fees.max_uallo)

    def epoch_key(self, nonce: int) -> EpochKey:
        """The key of an epoch of this topic in the ledger."""
        return self.chain_id, self.topic_id, nonce, self.wallet.address


@dataclass(frozen=True)
class CycleContext:
    """What one cycle needs in addition to its resources.

    `wake` is set to stop its waiting early. `retry_until_closed`: a stage that fails temporarily is retried until its
    share of the window is over; a window that closes before it succeeds is recorded as missed. `confirmation_seconds`:
    how long to wait for a block, None for as long as the window is open. `block_seconds`: the time between two blocks.
    `failures`: why earlier cycles failed, by nonce.

    `on_stage_start` is called with a stage's name when it starts, `on_stage_end` with the result of each that succeeded,
    `on_missed` with every epoch that is recorded as missed. `number`: of the cycle in this process.
    """

    resources: TopicResources
    ledger: Ledger
    rolling_window: RollingWindow
    clock: Clock
    wake: Event
    dry_run: bool = False
    retry_until_closed: bool = False
    confirmation_seconds: float | None = CONFIRMATION_SECONDS
    block_seconds: float = 5.0  # the target of Allora's chains
    failures: Mapping[int, str] = field(default_factory=dict)
    on_stage_start: Callable[[str], None] = lambda _: None
    on_stage_end: Callable[[StageResult], None] = lambda _: None
    on_missed: Callable[[LedgerEntry], None] = lambda _: None
    number: int = field(default_factory=itertools.count(1).__next__)

    @property
    def chain(self) -> EndpointPool:
        return self.resources.chain

    @property
    def label(self) -> str:
        """The beginning of each log line of the cycle."""
        return f"cycle {self.number} topic {self.resources.topic_id}"
