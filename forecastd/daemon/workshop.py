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
from forecastd.connect import Way, chain_of, open_way
from forecastd.daemon.book import Key
from forecastd.daemon.topicworker import Kit
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.forecaster import Forecaster
from forecastd.lease import Lease
from forecastd.ledger import Ledger
from forecastd.parts import Account
from forecastd.settings import Settings
from forecastd.shelf import Shelf, open_shelf
from forecastd.sources import open_source
from forecastd.sources.base import Source
from forecastd.window import RollingWindow
from forecastd.worker import job_of, open_forecaster, refuse_synthetic
from models.bundle import read_manifest
from models.errors import ModelError

log = logging.getLogger(__name__)

# What each part is made from: a part is made anew when one of these differs.
_FORECASTER = (
    "allora_network", "model", "features", "starting_timeout", "loading_timeout", "warming_up_timeout",
    "predicting_timeout", "post_processing_timeout", "stopping_timeout", "silence_timeout", "job_attempts", "standbys",
    "model_memory_mb",
)  # fmt: skip
_SOURCE = ("data_source", "symbol", "tiingo_api_key", "tiingo_url")
_CHAIN = ("rpc_endpoints", "event_endpoints")
_LASTING = ("allora_network", "state_dir", "state_directory")  # what only a new process can change


class Problems(NeedsHuman):
    """Everything that a person has to change before this can run; `all` holds a message for each."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.all = tuple(dict.fromkeys(problems))
        super().__init__(" ".join(self.all))


class AlreadyRunning(ForecastdError):
    """Another process on this host works with this wallet."""

    exit_code = 6


@dataclass(frozen=True)
class Gear:
    """What one topic is served with, made from its settings."""

    settings: Settings
    wallet: Wallet
    source: Source
    forecaster: Forecaster


@dataclass
class Outfit:
    """A complete set of kits, the way to the chain that they share, and what closes that way."""

    kits: dict[Key, Kit] = field(default_factory=dict)
    way: Way | None = None
    closing: ExitStack = field(default_factory=ExitStack)


class Workshop:
    """Opened in the thread that starts the daemon, reloaded and closed by whoever asks; one of these at a time."""

    def __init__(self, clock: Clock, *, register: bool) -> None:
        """`register`: a worker that is not registered may be, for a fee."""
        self._clock, self._register = clock, register
        self._leases: dict[str, Lease] = {}
        self._accounts: dict[str, Account] = {}
        self._shelf: Shelf | None = None
        self.outfit = Outfit()
        self.ledger: Ledger | None = None
        self.window: RollingWindow | None = None

    def equip(
        self, topics: Sequence[Settings], wrong: Sequence[str], ask_chain: Callable[[Way, Sequence[Gear]], list[str]]
    ) -> None:
        """Open everything but the books. `wrong`: what is known to be wrong with the settings; `ask_chain` says what only a
        person can mend of what it finds there.

        Raises:
            Problems: a person has to change something, all of it at once.
            AlreadyRunning: another process works with one of the wallets.
            RetryLater, SkipEpoch: something cannot be opened now; nothing but leases is kept, so it may be tried again.
        """
        problems, outfit = list(wrong), Outfit()
        gears = self._gears(topics, outfit, problems)
        try:
            chain_id = chain_of(topics[0])
            self._take_leases(chain_id, gears)
            with noting(problems):
                outfit.way = outfit.closing.enter_context(open_way(topics[0], self._clock, chain_id))
                problems += ask_chain(outfit.way, gears)
            self._fill(outfit, gears, problems)
        except BaseException:
            self._discard(gears, outfit)
            raise
        self.outfit = outfit

    def open_books(self, state: Path) -> None:
        """Open the ledger and the rolling window.

        Raises:
            NeedsHuman: the ledger's place cannot be written, or it is of a newer version.
            RetryLater: another process holds the ledger, or the disk failed.
        """
        self.ledger = Ledger(state / "ledger.sqlite")
        self.window = RollingWindow.open(state / "window.sqlite")

    def reloaded(self, topics: Sequence[Settings], wrong: Sequence[str]) -> Outfit:
        """An outfit for these settings, with what is in use where that is unchanged. It is not in place yet: see `adopt`.

        Raises:
            Problems: a person has to change something; nothing has changed.
            AlreadyRunning, RetryLater, SkipEpoch: a part cannot be had now; nothing has changed.
        """
        old, problems, new = self.outfit, list(wrong), Outfit()
        before = next(iter(old.kits.values())).settings
        if _differ(before, topics[0], _LASTING):
            problems.append("ALLORA_NETWORK and STATE_DIR cannot change while the daemon runs: restart it for that.")
        gears = self._gears(topics, old, problems)
        try:
            new.way = old.way
            if _differ(before, topics[0], _CHAIN):
                with noting(problems):
                    new.way = new.closing.enter_context(open_way(topics[0], self._clock, chain_of(topics[0])))
            if not problems:
                self._take_leases(chain_of(topics[0]), gears)
            self._fill(new, gears, problems)
        except BaseException:
            self._discard(gears, new)
            raise
        return new

    def adopt(self, new: Outfit) -> Outfit:
        """Put a reloaded outfit in place; gives the one that it replaces, to be closed with `discard` when it is not used."""
        old, self.outfit = self.outfit, new
        if new.way is old.way:
            new.closing.push(old.closing.pop_all())
        return old

    def discard(self, old: Outfit) -> None:
        """Close what an outfit had and the present one does not have."""
        self._discard([Gear(kit.settings, kit.wallet, kit.source, kit.forecaster) for kit in old.kits.values()], old)

    @property
    def holds_leases(self) -> bool:
        """Whether no other daemon on this host works with these wallets."""
        return bool(self._leases)

    @property
    def quarantined(self) -> list[str]:
        """The names of the bundles that are not run any more."""
        return [] if self._shelf is None else sorted(one.name for one in self._shelf.quarantined().values())

    def close(self, seconds: float) -> None:
        """End the models' processes, all at once and for `seconds` at most, and let go of the chain and the leases."""
        close_all([kit.forecaster for kit in self.outfit.kits.values()], self._clock, seconds)
        self.outfit.closing.close()
        for lease in self._leases.values():
            lease.close()

    def cut(self) -> None:
        """Break off every call to the chain. May be done again, and nothing can be asked any more."""
        if self.outfit.way is not None:
            self.outfit.way.chain.close()

    def close_books(self) -> None:
        """Let go of ledger and window, when no worker uses them any more."""
        if self.window is not None:
            self.window.close()
        if self.ledger is not None:
            self.ledger.close()

    def _gears(self, topics: Sequence[Settings], old: Outfit, problems: list[str]) -> list[Gear]:
        """What each topic is served with, of `old` where that is unchanged; what is wrong with one goes to `problems`."""
        gears: list[Gear] = []
        if self._shelf is None:
            self._shelf = open_shelf(topics[0], self._clock)
        try:
            for settings in topics:
                gear = _gear(settings, old, problems, self._shelf, self._clock)
                gears.extend([gear] if gear is not None else [])
            for gear in gears:  # all have been loading side by side meanwhile
                with noting(problems):
                    _check_model(gear.forecaster)
        except BaseException:
            self._discard(gears, Outfit())
            raise
        return gears

    def _fill(self, outfit: Outfit, gears: Sequence[Gear], problems: Sequence[str]) -> None:
        """Make the kits. Raises Problems when there are any."""
        way = outfit.way
        if problems or way is None:
            raise Problems(problems)
        served: dict[str, set[int]] = {}
        for gear in gears:
            served.setdefault(gear.wallet.address, set()).add(gear.settings.topic_id)
        for address, topics in served.items():
            # The lock is the same for ever: cycles that began before a reload hold it.
            self._accounts[address] = replace(self._accounts.get(address, Account()), topics=frozenset(topics))
        for gear in gears:
            job = job_of(gear.settings, dry_run=False, register=self._register, persist=True)
            outfit.kits[gear.settings.topic_id, gear.wallet.address] = Kit(
                gear.settings, chain_of(gear.settings), job, gear.source, gear.forecaster, gear.wallet, way.chain,
                self._accounts[gear.wallet.address],
            )  # fmt: skip

    def _take_leases(self, chain_id: str, gears: Sequence[Gear]) -> None:
        for address in dict.fromkeys(gear.wallet.address for gear in gears):
            if address not in self._leases:
                try:
                    self._leases[address] = Lease(chain_id, address, self._clock)
                except RetryLater as error:
                    raise AlreadyRunning(str(error)) from error

    def _discard(self, gears: Sequence[Gear], outfit: Outfit) -> None:
        """Close what is not in use: new models' processes, and the way to the chain."""
        used = {id(kit.forecaster) for kit in self.outfit.kits.values()}
        close_all([gear.forecaster for gear in gears if id(gear.forecaster) not in used], self._clock, 10.0)
        outfit.closing.close()


def close_all(forecasters: Sequence[Forecaster], clock: Clock, seconds: float) -> None:
    """End several models' processes side by side; what takes longer than `seconds` dies with this process."""
    threads = [threading.Thread(target=one.close, name="closing", daemon=True) for one in forecasters]
    for thread in threads:
        thread.start()
    end = clock.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, end - clock.monotonic()))


class noting:  # noqa: N801 - reads as a statement
    """Put down what needs a person, and go on after the block."""

    def __init__(self, problems: list[str]) -> None:
        self._problems = problems

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, NeedsHuman):
            self._problems.append(str(error))
        return isinstance(error, NeedsHuman)


def _gear(settings: Settings, old: Outfit, problems: list[str], shelf: Shelf, clock: Clock) -> Gear | None:
    wallet: Wallet | None = None
    source: Source | None = None
    forecaster: Forecaster | None = None
    with noting(problems):
        wallet = open_wallet(settings)
    kit = None if wallet is None else old.kits.get((settings.topic_id, wallet.address))
    with noting(problems):
        same = kit is not None and not _differ(kit.settings, settings, _SOURCE)
        source = kit.source if kit is not None and same else open_source(settings.data_source, settings)
        refuse_synthetic(settings, synthetic=source.synthetic)
    with noting(problems):
        same = kit is not None and not _differ(kit.settings, settings, _FORECASTER) and _unchanged(kit)
        forecaster = kit.forecaster if kit is not None and same else open_forecaster(
            settings, shelf, clock, standbys=settings.standbys
        )  # fmt: skip
    if source is not None and forecaster is not None and wallet is not None:
        return Gear(settings, wallet, source, forecaster)
    if forecaster is not None and (kit is None or forecaster is not kit.forecaster):
        forecaster.close()
    return None


def _check_model(forecaster: Forecaster) -> None:
    try:
        forecaster.check()
    except SkipEpoch as error:  # a process that died may live the next time; each cycle checks again
        log.warning("%s", error, extra={"action": "start"})


def _unchanged(kit: Kit) -> bool:
    """Whether the bundle on disk is still the one in use."""
    try:
        return read_manifest(kit.settings.model_path).sha256 == kit.forecaster.manifest.sha256
    except ModelError:
        return False


def _differ(one: Settings, other: Settings, names: Sequence[str]) -> bool:
    return any(getattr(one, name) != getattr(other, name) for name in names)
