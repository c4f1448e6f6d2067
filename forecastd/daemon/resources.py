"""What the daemon works with, opened once and kept: leases, ledger, rolling window, the chain, and a kit for each topic.

The one thing to know before changing it: a reload builds everything new first and puts it in place only when all of it is
good. What it replaces stays open until no cycle works with it any more.
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
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.inference.bundle_store import BundleStore, open_bundle_store
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.market.sources import open_source
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.wallet_lock import WalletLock
from forecastd.settings import Settings
from forecastd.submission.connect import ChainConnection, chain_id_for, open_connection
from forecastd.submission.context import SharedWallet
from forecastd.submission.worker import cycle_options_for, open_forecaster, refuse_synthetic
from models.errors import ModelError
from models.market.bundle import read_market_manifest

log = logging.getLogger(__name__)

# What each part is made from: a part is made anew when one of these differs.
_FORECASTER_SETTINGS = (
    "allora_network", "model", "features", "starting_timeout", "loading_timeout", "warming_up_timeout",
    "predicting_timeout", "post_processing_timeout", "stopping_timeout", "child_heartbeat_timeout", "job_attempts",
    "standbys", "model_memory_mb",
)  # fmt: skip
_SOURCE_SETTINGS = ("data_source", "symbol", "tiingo_api_key", "tiingo_url")
_CHAIN_SETTINGS = ("rpc_endpoints", "event_endpoints")
_FIXED_SETTINGS = ("allora_network", "state_dir", "state_directory")  # what only a new process can change


class StartupProblems(NeedsHuman):
    """Everything that a person has to change before this can run; `all` holds a message for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.messages = tuple(dict.fromkeys(problems))
        super().__init__(" ".join(self.messages))


class AlreadyRunning(ForecastdError):
    """Another process on this host works with this wallet."""

    exit_code = 6


@dataclass(frozen=True)
class TopicComponents:
    """What one topic is served with, made from its settings."""

    settings: Settings
    wallet: Wallet
    source: Source
    forecaster: Forecaster


@dataclass
class ResourceSet:
    """A complete set of kits, the way to the chain that they share, and what closes that way."""

    topics: dict[TopicKey, TopicResources] = field(default_factory=dict)
    connection: ChainConnection | None = None
    exit_stack: ExitStack = field(default_factory=ExitStack)


class ResourceManager:
    """Opened in the thread that starts the daemon, reloaded and closed by whoever asks; one of these at a time."""

    def __init__(self, clock: Clock, *, register: bool) -> None:
        """`register`: a worker that is not registered may be, for a fee."""
        self._clock, self._register = clock, register
        self._wallet_locks: dict[str, WalletLock] = {}
        self._signing_locks: dict[str, SharedWallet] = {}
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
        """Open everything but the books. `wrong`: what is known to be wrong with the settings; `ask_chain` says what only a
        person can mend of what it finds there.

        Raises:
            Problems: a person has to change something, all of it at once.
            AlreadyRunning: another process works with one of the wallets.
            RetryLater, SkipEpoch: something cannot be opened now; nothing but leases is kept, so it may be tried again.
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
            NeedsHuman: the ledger's place cannot be written, or it is of a newer version.
            RetryLater: another process holds the ledger, or the disk failed.
        """
        self.ledger = Ledger(state / "ledger.sqlite")
        self.window = RollingWindow.open(state / "window.sqlite")

    def prepare_reload(self, topics: Sequence[Settings], settings_errors: Sequence[str]) -> ResourceSet:
        """An outfit for these settings, with what is in use where that is unchanged. It is not in place yet: see `adopt`.

        Raises:
            Problems: a person has to change something; nothing has changed.
            AlreadyRunning, RetryLater, SkipEpoch: a part cannot be had now; nothing has changed.
        """
        current, problems, new = self.current, list(settings_errors), ResourceSet()
        current_settings = next(iter(current.topics.values())).settings
        if _settings_differ(current_settings, topics[0], _FIXED_SETTINGS):
            problems.append("ALLORA_NETWORK and STATE_DIR cannot change while the daemon runs: restart it for that.")
        components = self._open_topics(topics, current, problems)
        try:
            new.connection = current.connection
            if _settings_differ(current_settings, topics[0], _CHAIN_SETTINGS):
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
        """Put a reloaded outfit in place; gives the one that it replaces, to be closed with `discard` when it is not used."""
        old, self.current = self.current, new
        if new.connection is old.connection:
            new.exit_stack.push(old.exit_stack.pop_all())
        return old

    def release(self, old: ResourceSet) -> None:
        """Close what an outfit had and the present one does not have."""
        self._close_unused(
            [
                TopicComponents(topic.settings, topic.wallet, topic.source, topic.forecaster)
                for topic in old.topics.values()
            ],
            old,
        )

    @property
    def holds_wallet_locks(self) -> bool:
        """Whether no other daemon on this host works with these wallets."""
        return bool(self._wallet_locks)

    @property
    def quarantined(self) -> list[str]:
        """The names of the bundles that are not run any more."""
        return (
            []
            if self._bundle_store is None
            else sorted(bundle.name for bundle in self._bundle_store.list_quarantined().values())
        )

    def close(self, seconds: float) -> None:
        """End the models' processes, all at once and for `seconds` at most, and let go of the chain and the leases."""
        close_forecasters([topic.forecaster for topic in self.current.topics.values()], self._clock, seconds)
        self.current.exit_stack.close()
        for wallet_lock in self._wallet_locks.values():
            wallet_lock.close()

    def abort_calls(self) -> None:
        """Break off every call to the chain. May be done again, and nothing can be asked any more."""
        if self.current.connection is not None:
            self.current.connection.endpoints.close()

    def close_storage(self) -> None:
        """Let go of ledger and window, when no worker uses them any more."""
        if self.window is not None:
            self.window.close()
        if self.ledger is not None:
            self.ledger.close()

    def _open_topics(self, topics: Sequence[Settings], old: ResourceSet, problems: list[str]) -> list[TopicComponents]:
        """What each topic is served with, of `old` where that is unchanged; what is wrong with one goes to `problems`."""
        components: list[TopicComponents] = []
        if self._bundle_store is None:
            self._bundle_store = open_bundle_store(topics[0], self._clock)
        try:
            for settings in topics:
                component = _open_topic(settings, old, problems, self._bundle_store, self._clock)
                components.extend([component] if component is not None else [])
            for component in components:  # all have been loading side by side meanwhile
                with collect_errors(problems):
                    _check_model(component.forecaster)
        except BaseException:
            self._close_unused(components, ResourceSet())
            raise
        return components

    def _add_topics(
        self, resource_set: ResourceSet, components: Sequence[TopicComponents], problems: Sequence[str]
    ) -> None:
        """Make the kits. Raises Problems when there are any."""
        connection = resource_set.connection
        if problems or connection is None:
            raise StartupProblems(problems)
        topics_by_wallet: dict[str, set[int]] = {}
        for component in components:
            topics_by_wallet.setdefault(component.wallet.address, set()).add(component.settings.topic_id)
        for address, topic_ids in topics_by_wallet.items():
            # The lock is the same for ever: cycles that began before a reload hold it.
            self._signing_locks[address] = replace(
                self._signing_locks.get(address, SharedWallet()), topics=frozenset(topic_ids)
            )
        for component in components:
            options = cycle_options_for(
                component.settings, dry_run=False, register=self._register, retry_until_closed=True
            )
            resource_set.topics[component.settings.topic_id, component.wallet.address] = TopicResources(
                component.settings, chain_id_for(component.settings), options, component.source, component.forecaster, component.wallet, connection.endpoints,
                self._signing_locks[component.wallet.address],
            )  # fmt: skip

    def _acquire_wallet_locks(self, chain_id: str, components: Sequence[TopicComponents]) -> None:
        for address in dict.fromkeys(component.wallet.address for component in components):
            if address not in self._wallet_locks:
                try:
                    self._wallet_locks[address] = WalletLock(chain_id, address, self._clock)
                except RetryLater as error:
                    raise AlreadyRunning(str(error)) from error

    def _close_unused(self, components: Sequence[TopicComponents], resource_set: ResourceSet) -> None:
        """Close what is not in use: new models' processes, and the way to the chain."""
        used = {id(topic.forecaster) for topic in self.current.topics.values()}
        close_forecasters(
            [component.forecaster for component in components if id(component.forecaster) not in used],
            self._clock,
            10.0,
        )
        resource_set.exit_stack.close()


def close_forecasters(forecasters: Sequence[Forecaster], clock: Clock, seconds: float) -> None:
    """End several models' processes side by side; what takes longer than `seconds` dies with this process."""
    threads = [threading.Thread(target=forecaster.close, name="closing", daemon=True) for forecaster in forecasters]
    for thread in threads:
        thread.start()
    end = clock.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - clock.monotonic()))


class collect_errors:  # noqa: N801 - reads as a statement
    """Put down what needs a person, and go on after the block."""

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
    topic = None if wallet is None else old.topics.get((settings.topic_id, wallet.address))
    with collect_errors(problems):
        unchanged = topic is not None and not _settings_differ(topic.settings, settings, _SOURCE_SETTINGS)
        source = topic.source if topic is not None and unchanged else open_source(settings.data_source, settings)
        refuse_synthetic(settings, synthetic=source.synthetic)
    with collect_errors(problems):
        unchanged = (
            topic is not None
            and not _settings_differ(topic.settings, settings, _FORECASTER_SETTINGS)
            and _is_bundle_unchanged(topic)
        )
        forecaster = topic.forecaster if topic is not None and unchanged else open_forecaster(
            settings, bundle_store, clock, standbys=settings.standbys
        )  # fmt: skip
    if source is not None and forecaster is not None and wallet is not None:
        return TopicComponents(settings, wallet, source, forecaster)
    if forecaster is not None and (topic is None or forecaster is not topic.forecaster):
        forecaster.close()
    return None


def _check_model(forecaster: Forecaster) -> None:
    try:
        forecaster.check()
    except SkipEpoch as error:  # a process that died may live the next time; each cycle checks again
        log.warning("%s", error, extra={"action": "start"})


def _is_bundle_unchanged(topic: TopicResources) -> bool:
    """Whether the bundle on disk is still the one in use."""
    try:
        return read_market_manifest(topic.settings.model_path).sha256 == topic.forecaster.manifest.sha256
    except ModelError:
        return False


def _settings_differ(settings: Settings, other: Settings, names: Sequence[str]) -> bool:
    return any(getattr(settings, name) != getattr(other, name) for name in names)
