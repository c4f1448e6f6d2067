"""The daemon's resources, opened once: wallet locks, ledger, rolling window, chain connection, and resources per topic.

Invariant: a reload opens everything new first and replaces the current resources only when all of it is valid. The
replaced resources stay open until no cycle uses them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.clock import Clock
from forecastd.daemon.status_registry import TopicKey
from forecastd.daemon.topic_worker import TopicResources
from forecastd.errors import ExitCode, ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.inference.bundle_store import BundleStore, open_bundle_store
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.market.sources import open_source
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.locks import WalletLock
from forecastd.settings import Settings
from forecastd.submission.connect import ChainConnection, chain_id_for, open_connection
from forecastd.submission.context import SharedWallet
from forecastd.submission.worker import cycle_options_for, open_forecaster, refuse_synthetic
from models.errors import ModelError
from models.market.bundle import read_market_manifest

log = logging.getLogger(__name__)


class StartupProblems(NeedsHuman):
    """Everything that a person must change before the daemon can run; `messages` has one message for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.messages = tuple(dict.fromkeys(problems))
        super().__init__(" ".join(self.messages))


class AlreadyRunning(ForecastdError):
    """Another process on this host uses this wallet."""

    exit_code = ExitCode.TEMPORARY


@dataclass(frozen=True)
class TopicComponents:
    """The components of one topic that are created from its settings."""

    settings: Settings
    wallet: Wallet
    source: Source
    forecaster: Forecaster


@dataclass
class ResourceSet:
    """The resources of all topics, the chain connection that they share, and the exit stack that closes it."""

    topics: dict[TopicKey, TopicResources] = field(default_factory=dict)
    connection: ChainConnection | None = None
    exit_stack: ExitStack = field(default_factory=ExitStack)


class ResourceManager:
    """Opens, reloads and closes the resources. The threads may differ, but only one of these methods runs at a time."""

    def __init__(self, clock: Clock, *, register: bool) -> None:
        """`register`: a cycle may register an unregistered worker, for a fee."""
        self._clock, self._register = clock, register
        self._wallet_locks: dict[str, WalletLock] = {}
        self._shared_wallets: dict[str, SharedWallet] = {}
        self._bundle_store: BundleStore | None = None
        self.current = ResourceSet()
        self.ledger: Ledger | None = None
        self.window: RollingWindow | None = None

    def open(
        self,
        topics: Sequence[Settings],
        settings_errors: Sequence[str],
        check_chain: Callable[[ChainConnection, Sequence[TopicComponents]], list[str]],
    ) -> None:
        """Open everything but ledger and window. `check_chain` returns the problems on the chain that need a person.

        Raises:
            StartupProblems: all problems that need a person, `settings_errors` among them.
            AlreadyRunning: another process uses one of the wallets.
            RetryLater, SkipEpoch: temporary failure. Only the wallet locks are kept, so the call can be repeated.
        """
        problems, resource_set = list(settings_errors), ResourceSet()
        components = self._open_topics(topics, resource_set, problems)
        try:
            chain_id = chain_id_for(topics[0])
            self._acquire_wallet_locks(chain_id, components)
            with collect_errors(problems):
                resource_set.connection = resource_set.exit_stack.enter_context(
                    open_connection(topics[0], self._clock, chain_id)
                )
                problems += check_chain(resource_set.connection, components)
            self._add_topics(resource_set, components, problems)
        except BaseException:
            self._close_unused(components, resource_set)
            raise
        self.current = resource_set

    def open_storage(self, state: Path) -> None:
        """Open the ledger and the rolling window.

        Raises:
            NeedsHuman: the ledger cannot be written, or has a newer version.
            RetryLater: another process holds the ledger, or the disk failed.
        """
        self.ledger = Ledger(state / "ledger.sqlite")
        self.window = RollingWindow.open(state / "window.sqlite")

    def prepare_reload(self, topics: Sequence[Settings], settings_errors: Sequence[str]) -> ResourceSet:
        """Open resources for these settings; unchanged components are reused. `apply_reload` makes them current.

        Raises:
            StartupProblems: a person must change something; the current resources stay.
            AlreadyRunning, RetryLater, SkipEpoch: a component cannot be opened now; the current resources stay.
        """
        current, problems, new = self.current, list(settings_errors), ResourceSet()
        current_settings = next(iter(current.topics.values())).settings
        same_network = current_settings.chain.network == topics[0].chain.network
        if not same_network or current_settings.state_path != topics[0].state_path:
            problems.append("ALLORA_NETWORK and STATE_DIR cannot change while the daemon runs. Restart the daemon.")
        components = self._open_topics(topics, current, problems)
        try:
            new.connection = current.connection
            if current_settings.chain != topics[0].chain:
                with collect_errors(problems):
                    new.connection = new.exit_stack.enter_context(
                        open_connection(topics[0], self._clock, chain_id_for(topics[0]))
                    )
            if not problems:
                self._acquire_wallet_locks(chain_id_for(topics[0]), components)
            self._add_topics(new, components, problems)
        except BaseException:
            self._close_unused(components, new)
            raise
        return new

    def apply_reload(self, new: ResourceSet) -> ResourceSet:
        """Make reloaded resources current. Returns the replaced ones; call `release` when no cycle uses them."""
        old, self.current = self.current, new
        if new.connection is old.connection:
            new.exit_stack.push(old.exit_stack.pop_all())
        return old

    def release(self, old: ResourceSet) -> None:
        """Close the replaced resources that the current ones do not share."""
        self._close_unused(
            [
                TopicComponents(topic.settings, topic.wallet, topic.source, topic.forecaster)
                for topic in old.topics.values()
            ],
            old,
        )

    @property
    def holds_wallet_locks(self) -> bool:
        """Whether this process holds the locks, so no other daemon on this host uses these wallets."""
        return bool(self._wallet_locks)

    @property
    def quarantined(self) -> list[str]:
        """The names of the quarantined bundles."""
        if self._bundle_store is None:
            return []
        return sorted(bundle.name for bundle in self._bundle_store.list_quarantined().values())

    def close(self, seconds: float) -> None:
        """Stop the model processes in parallel, within `seconds`; then close connection and wallet locks."""
        close_forecasters([topic.forecaster for topic in self.current.topics.values()], self._clock, seconds)
        self.current.exit_stack.close()
        for wallet_lock in self._wallet_locks.values():
            wallet_lock.close()

    def abort_calls(self) -> None:
        """Abort every call to the chain; later calls fail. Can be repeated."""
        if self.current.connection is not None:
            self.current.connection.endpoints.close()

    def close_storage(self) -> None:
        """Close ledger and window. Call it when no worker uses them."""
        if self.window is not None:
            self.window.close()
        if self.ledger is not None:
            self.ledger.close()

    def _open_topics(self, topics: Sequence[Settings], old: ResourceSet, problems: list[str]) -> list[TopicComponents]:
        """Open the components of each topic; reuses unchanged ones of `old`. Problems are appended to `problems`."""
        components: list[TopicComponents] = []
        if self._bundle_store is None:
            self._bundle_store = open_bundle_store(topics[0], self._clock)
        try:
            for settings in topics:
                component = _open_topic(settings, old, problems, self._bundle_store, self._clock)
                components.extend([component] if component is not None else [])
            for component in components:  # all models have been loading in parallel
                with collect_errors(problems):
                    _check_model(component.forecaster)
        except BaseException:
            self._close_unused(components, ResourceSet())
            raise
        return components

    def _add_topics(
        self, resource_set: ResourceSet, components: Sequence[TopicComponents], problems: Sequence[str]
    ) -> None:
        """Add the resources of each topic. Raises StartupProblems when there are problems."""
        connection = resource_set.connection
        if problems or connection is None:
            raise StartupProblems(problems)
        topics_by_wallet: dict[str, set[int]] = {}
        for component in components:
            topics_by_wallet.setdefault(component.wallet.address, set()).add(component.settings.topic.id)
        for address, topic_ids in topics_by_wallet.items():
            # The lock never changes: cycles that started before a reload hold it.
            self._shared_wallets[address] = replace(
                self._shared_wallets.get(address, SharedWallet()), topics=frozenset(topic_ids)
            )
        for component in components:
            options = cycle_options_for(
                component.settings, dry_run=False, register=self._register, retry_until_closed=True
            )
            address = component.wallet.address
            resource_set.topics[component.settings.topic.id, address] = TopicResources(
                component.settings,
                chain_id_for(component.settings),
                options,
                component.source,
                component.forecaster,
                component.wallet,
                connection.endpoints,
                self._shared_wallets[address],
            )

    def _acquire_wallet_locks(self, chain_id: str, components: Sequence[TopicComponents]) -> None:
        for address in dict.fromkeys(component.wallet.address for component in components):
            if address not in self._wallet_locks:
                try:
                    self._wallet_locks[address] = WalletLock(chain_id, address, self._clock)
                except RetryLater as error:
                    raise AlreadyRunning(str(error)) from error

    def _close_unused(self, components: Sequence[TopicComponents], resource_set: ResourceSet) -> None:
        """Close the components that are not in use, and the connection of `resource_set`."""
        used = {id(topic.forecaster) for topic in self.current.topics.values()}
        close_forecasters(
            [component.forecaster for component in components if id(component.forecaster) not in used],
            self._clock,
            10.0,
        )
        resource_set.exit_stack.close()


def close_forecasters(forecasters: Sequence[Forecaster], clock: Clock, seconds: float) -> None:
    """Stop the processes of several models in parallel; those that take longer than `seconds` end with this process."""
    threads = [
        threading.Thread(target=forecaster.close, name="closing the model", daemon=True) for forecaster in forecasters
    ]
    for thread in threads:
        thread.start()
    end = clock.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - clock.monotonic()))


class collect_errors:  # noqa: N801 - used as a statement; a class tells mypy that it may suppress an error
    """Append a NeedsHuman error of the block to `problems` and continue after the block."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, NeedsHuman):
            self._problems.append(str(error))
        return isinstance(error, NeedsHuman)


def _open_topic(
    settings: Settings, old: ResourceSet, problems: list[str], bundle_store: BundleStore, clock: Clock
) -> TopicComponents | None:
    wallet: Wallet | None = None
    source: Source | None = None
    forecaster: Forecaster | None = None
    with collect_errors(problems):
        wallet = open_wallet(settings)
    topic = None if wallet is None else old.topics.get((settings.topic.id, wallet.address))
    with collect_errors(problems):
        unchanged = topic is not None and topic.settings.source == settings.source
        source = topic.source if topic is not None and unchanged else open_source(settings.source.name, settings)
        refuse_synthetic(settings, synthetic=source.synthetic)
    with collect_errors(problems):
        unchanged = (
            topic is not None
            and (topic.settings.model, topic.settings.supervision) == (settings.model, settings.supervision)
            and _is_bundle_unchanged(topic)
        )
        forecaster = topic.forecaster if topic is not None and unchanged else open_forecaster(
            settings, bundle_store, clock, standbys=settings.supervision.standbys
        )  # fmt: skip
    if source is not None and forecaster is not None and wallet is not None:
        return TopicComponents(settings, wallet, source, forecaster)
    if forecaster is not None and (topic is None or forecaster is not topic.forecaster):
        forecaster.close()
    return None


def _check_model(forecaster: Forecaster) -> None:
    try:
        forecaster.check()
    except SkipEpoch as error:  # a crash may be temporary; each cycle checks again
        log.warning("%s", error, extra={"action": "start"})


def _is_bundle_unchanged(topic: TopicResources) -> bool:
    """Whether the bundle on disk is still the one in use."""
    try:
        return read_market_manifest(topic.settings.model_path).sha256 == topic.forecaster.manifest.sha256
    except ModelError:
        return False
