"""The daemon's resources, opened once: wallet locks, ledger, rolling window, chain connection, and resources per topic.

Invariant: a reload opens everything new first and replaces the current resources only when all of it is valid. The
replaced resources stay open until no cycle uses them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.wallet import Wallet, open_wallet
from forecastd.clock import Clock
from forecastd.daemon.status_registry import TopicKey
from forecastd.errors import ExitCode, ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.inference.bundle_store import BundleStore, open_bundle_store
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.locks import WalletLock
from forecastd.settings import Settings
from forecastd.submission.connect import ChainConnection, chain_id_for, open_connection
from forecastd.submission.context import TopicResources
from forecastd.submission.worker import open_checked_source, open_forecaster
from models.errors import ModelError
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)

TopicWallet = tuple[Settings, Wallet]


class StartupProblems(NeedsHuman):
    """Everything that a person must change before the daemon can run; `messages` has one message for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.messages = tuple(dict.fromkeys(problems))
        super().__init__(" ".join(self.messages))


class AlreadyRunning(ForecastdError):
    """Another process on this host uses this wallet."""

    exit_code = ExitCode.TEMPORARY


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
        # A signing lock never changes: cycles that started before a reload hold it.
        self._signing_locks: dict[str, threading.Lock] = {}
        self._bundle_store: BundleStore | None = None
        self.current = ResourceSet()
        self.ledger: Ledger | None = None
        self.rolling_window: RollingWindow | None = None

    def open(
        self,
        topics: Sequence[Settings],
        settings_errors: Sequence[str],
        check_chain: Callable[[ChainConnection, Sequence[TopicWallet]], list[str]],
    ) -> None:
        """Open everything but ledger and window. `check_chain` returns the problems on the chain that need a person.

        Raises:
            StartupProblems: all problems that need a person, `settings_errors` among them.
            AlreadyRunning: another process uses one of the wallets.
            RetryLater, SkipEpoch: temporary failure. Only the wallet locks are kept, so the call can be repeated.
        """
        self.current = self._open_set(topics, list(settings_errors), check_chain)

    def open_storage(self, state: Path) -> None:
        """Open the ledger and the rolling window.

        Raises:
            NeedsHuman: the ledger cannot be written, or has a newer version.
            RetryLater: another process holds the ledger, or the disk failed.
        """
        self.ledger = Ledger(state / "ledger.sqlite")
        self.rolling_window = RollingWindow.open(state / "window.sqlite")

    def prepare_reload(self, topics: Sequence[Settings], settings_errors: Sequence[str]) -> ResourceSet:
        """Open resources for these settings; unchanged ones are reused. `apply_reload` makes them current.

        Raises:
            StartupProblems: a person must change something; the current resources stay.
            AlreadyRunning, RetryLater, SkipEpoch: a resource cannot be opened now; the current ones stay.
        """
        problems, current = list(settings_errors), next(iter(self.current.topics.values())).settings
        if (current.chain.network, current.state_path) != (topics[0].chain.network, topics[0].state_path):
            problems.append("ALLORA_NETWORK and STATE_DIR cannot change while the daemon runs. Restart the daemon.")
        return self._open_set(topics, problems)

    def apply_reload(self, new: ResourceSet) -> ResourceSet:
        """Make reloaded resources current. Returns the replaced ones; call `release` when no cycle uses them."""
        old, self.current = self.current, new
        if new.connection is old.connection:
            new.exit_stack.push(old.exit_stack.pop_all())
        return old

    def release(self, old: ResourceSet) -> None:
        """Close the resources of a set that the current ones do not share."""
        used = {id(topic.forecaster) for topic in self.current.topics.values()}
        close_forecasters(
            [topic.forecaster for topic in old.topics.values() if id(topic.forecaster) not in used], self._clock, 10.0
        )
        old.exit_stack.close()

    @property
    def endpoints(self) -> EndpointPool:
        """The endpoints of the current connection. Raises RetryLater before it is open."""
        if self.current.connection is None:
            raise RetryLater("The connection to the chain is not open yet.")
        return self.current.connection.endpoints

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
        if self.rolling_window is not None:
            self.rolling_window.close()
        if self.ledger is not None:
            self.ledger.close()

    def _open_set(
        self,
        topics: Sequence[Settings],
        problems: list[str],
        check_chain: Callable[[ChainConnection, Sequence[TopicWallet]], list[str]] = lambda *_: [],
    ) -> ResourceSet:
        """Open the resources of these settings, with unchanged ones of the current set. See `open` for the errors."""
        old, new, chain_id = self.current, ResourceSet(), chain_id_for(topics[0])
        topic_wallets = [(settings, _open_wallet(settings, problems)) for settings in topics]
        wallets = [(settings, wallet) for settings, wallet in topic_wallets if wallet is not None]
        with ExitStack() as undo:
            undo.callback(self.release, new)
            if not old.topics:  # another process is found before anything is opened that it uses
                self._acquire_wallet_locks(chain_id, wallets)
            if old.topics and next(iter(old.topics.values())).settings.chain == topics[0].chain:
                new.connection = old.connection
            else:
                with collect_errors(problems):
                    new.connection = new.exit_stack.enter_context(open_connection(topics[0], self._clock, chain_id))
            for settings, wallet in topic_wallets:
                self._open_topic(settings, wallet, new, problems)
            if new.connection is not None:
                with collect_errors(problems):
                    problems += check_chain(new.connection, wallets)
            for topic in new.topics.values():  # all models have been loading in parallel
                with collect_errors(problems):
                    _check_model(topic.forecaster)
            if problems:
                raise StartupProblems(problems)
            self._acquire_wallet_locks(chain_id, wallets)
            undo.pop_all()
        for key, topic in new.topics.items():
            wallet_topics = frozenset(topic_id for topic_id, address in new.topics if address == key[1])
            new.topics[key] = replace(topic, wallet_topics=wallet_topics)
        return new

    def _open_topic(self, settings: Settings, wallet: Wallet | None, new: ResourceSet, problems: list[str]) -> None:
        """Add the resources of one topic to `new`. What needs a person is added to `problems`."""
        if self._bundle_store is None:
            self._bundle_store = open_bundle_store(settings, self._clock)
        old = None if wallet is None else self.current.topics.get((settings.topic.id, wallet.address))
        source: Source | None = None
        forecaster: Forecaster | None = None
        with collect_errors(problems):
            is_unchanged = old is not None and old.settings.source == settings.source
            source = old.source if old is not None and is_unchanged else open_checked_source(settings)
        with collect_errors(problems):
            if old is not None and _has_same_model(old, settings):
                forecaster = old.forecaster
            else:
                standbys = settings.supervision.standbys
                forecaster = open_forecaster(settings, self._bundle_store, self._clock, standbys=standbys)
        if source is None or forecaster is None or wallet is None or new.connection is None:
            if forecaster is not None and (old is None or forecaster is not old.forecaster):
                forecaster.close()
            return
        topic = TopicResources(
            settings,
            chain_id_for(settings),
            wallet,
            source,
            forecaster,
            new.connection.endpoints,
            self._register,
            self._signing_locks.setdefault(wallet.address, threading.Lock()),
        )
        new.topics[topic.key] = topic

    def _acquire_wallet_locks(self, chain_id: str, wallets: Sequence[TopicWallet]) -> None:
        for address in dict.fromkeys(wallet.address for _, wallet in wallets):
            if address not in self._wallet_locks:
                try:
                    self._wallet_locks[address] = WalletLock(chain_id, address, self._clock)
                except RetryLater as error:
                    raise AlreadyRunning(str(error)) from error


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


@contextmanager
def collect_errors(problems: list[str]) -> Iterator[None]:
    """Append a NeedsHuman error of the block to `problems` and continue after the block."""
    try:
        yield
    except NeedsHuman as error:
        problems.append(str(error))


def _open_wallet(settings: Settings, problems: list[str]) -> Wallet | None:
    try:
        return open_wallet(settings)
    except NeedsHuman as error:
        problems.append(str(error))
        return None


def _check_model(forecaster: Forecaster) -> None:
    try:
        forecaster.check()
    except SkipEpoch as error:  # a crash may be temporary; each cycle checks again
        log.warning("%s", error, extra={"action": "start"})


def _has_same_model(topic: TopicResources, settings: Settings) -> bool:
    """Whether these settings name the topic's model, and the bundle on disk is still the one in use."""
    if (topic.settings.model, topic.settings.supervision) != (settings.model, settings.supervision):
        return False
    try:
        return MarketManifest.read(topic.settings.model_path).sha256 == topic.forecaster.manifest.sha256
    except ModelError:
        return False
