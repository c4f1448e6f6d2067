"""From settings to a finished cycle: the one place that puts the parts together.

The model's child process starts first, so that it loads while the parent opens everything else. With `as_of` the cycle is a
replay: the wall clock stands at that time, and the local node is a chain of its own for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event

from forecastd.chain.endpoints import Endpoints
from forecastd.chain.networks import LOCAL_CHAIN_ID, NETWORKS
from forecastd.chain.submit import Spending
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, ReplayClock, iso
from forecastd.cycle import Job, Parts, run_cycle
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.features import load_features
from forecastd.forecaster import Forecaster
from forecastd.lease import Lease
from forecastd.ledger import Ledger
from forecastd.localnet.embedded import find_running, open_embedded
from forecastd.outcome import Outcome, ended_by
from forecastd.settings import Settings
from forecastd.sources import open_source
from forecastd.stages import Stage
from forecastd.window import RollingWindow

CONFIRM_SECONDS = 60.0  # how long a single run waits for a block


def run_once(
    topics: Sequence[Settings],
    clock: Clock,
    *,
    as_of: float | None = None,
    dry_run: bool = False,
    register: bool = False,
    persist: bool = False,
    report: Callable[[Stage], None] = lambda _: None,
) -> list[Outcome]:
    """Serve the newest open epoch of each topic once; errors of `errors.py` come back as outcomes.

    `topics`: the settings of each, which share network, endpoints and state. `as_of` (unix seconds) replays that moment on
    the local network. `persist`: keep trying until the window closes. On the local network the worker is registered without
    being asked, in a dry run too, for nothing there has a price.
    """
    clock = clock if as_of is None else ReplayClock(as_of)
    try:
        if as_of is not None and any(one.allora_network != "local" for one in topics):
            raise NeedsHuman(
                "--as-of replays the past and works on the local network only. Leave it out, or --network."
            )
        with open_parts(topics, clock, replay=as_of is not None) as parts:
            jobs = [_job(one, dry_run=dry_run, register=register, persist=persist) for one in topics]
            return [run_cycle(job, part, report) for job, part in zip(jobs, parts, strict=True)]
    except ForecastdError as error:
        return [ended_by(error, Outcome("failed", topic_id=one.topic_id, as_of=iso(clock.now()))) for one in topics]


def _job(settings: Settings, *, dry_run: bool, register: bool, persist: bool) -> Job:
    local = settings.allora_network == "local"
    floor = NETWORKS[settings.allora_network].gas_price_floor
    return Job(
        settings.topic_id,
        Spending(floor, settings.fee_tier, settings.max_fee_uallo),
        register=local or (register and not dry_run),
        dry_run=dry_run,
        persist=persist,
        seconds=None if persist else CONFIRM_SECONDS,
    )


@contextmanager
def open_parts(topics: Sequence[Settings], clock: Clock, *, replay: bool) -> Iterator[list[Parts]]:
    """What the cycles of these topics work with, closed again in reverse order. Ledger, window and endpoints are shared.

    Raises:
        NeedsHuman, RetryLater: as the parts do when they are opened.
    """
    common = topics[0]
    with ExitStack() as stack:
        forecasters = [stack.enter_context(_forecaster(settings)) for settings in topics]
        sources = [open_source(settings.data_source, settings) for settings in topics]
        for settings, source, forecaster in zip(topics, sources, forecasters, strict=True):
            refuse_synthetic(settings, source.synthetic, forecaster)
        wallets = [open_wallet(settings) for settings in topics]
        chain_id = _chain_id(common, clock, replay=replay)
        for address in dict.fromkeys(wallet.address for wallet in wallets):
            stack.enter_context(Lease(chain_id, address, clock))
        ledger = Ledger(common.state / "ledger.sqlite")
        stack.callback(ledger.close)
        window = RollingWindow.open(common.state / "window.sqlite")
        stack.callback(window.close)
        chain = stack.enter_context(_open_chain(common, clock, chain_id, replay=replay))
        wake = Event()
        yield [
            Parts(source, window, forecaster, ledger, chain, wallet, clock, wake)
            for source, forecaster, wallet in zip(sources, forecasters, wallets, strict=True)
        ]


def _forecaster(settings: Settings) -> Forecaster:
    return Forecaster(settings.model_path, load_features(settings.features_path))


def refuse_synthetic(settings: Settings, synthetic: bool, forecaster: Forecaster) -> None:
    """Made-up candles, or a model that learnt from them, have no business on a real network. Signing checks it again.

    Raises:
        NeedsHuman: a real network with synthetic data or a model trained on it.
    """
    if settings.allora_network == "local":
        return
    if synthetic:
        raise NeedsHuman(
            f"The data source {settings.data_source!r} is synthetic and serves the local network only. "
            "Set DATA_SOURCE (or --source) to tiingo, exchange:NAME or file:PATH."
        )
    if forecaster.manifest.training.synthetic:
        raise NeedsHuman(
            f"The model {settings.model_path} was trained on synthetic candles and serves the local network only. "
            "Train one on real candles with `forecastd train --source ...`."
        )


def _chain_id(settings: Settings, clock: Clock, *, replay: bool) -> str:
    """The chain that is signed for. A replay on an embedded node is a chain of its own."""
    if replay and not settings.rpc_endpoints:
        return f"{LOCAL_CHAIN_ID}-{iso(clock.now()).replace('-', '').replace(':', '')}"
    return NETWORKS[settings.allora_network].chain_id


@contextmanager
def _open_chain(settings: Settings, clock: Clock, chain_id: str, *, replay: bool) -> Iterator[Endpoints]:
    """The endpoints to talk to: the user's, the network's own, a running local node, or one embedded in this process."""
    with ExitStack() as stack:
        if settings.rpc_endpoints:
            endpoints = settings.rpc_endpoints
        elif settings.allora_network != "local":
            endpoints = NETWORKS[settings.allora_network].endpoints
        else:
            running = None if replay else find_running(settings.state)
            endpoints = (
                running or stack.enter_context(open_embedded(settings.state, clock, chain_id=chain_id)).endpoint,
            )
        yield stack.enter_context(Endpoints(endpoints, chain_id=chain_id, clock=clock))
