"""From settings to a finished cycle: the one place that puts the parts together.

The model's child process starts first, so that it loads while the parent opens everything else. With `as_of` the cycle is a
replay: the wall clock stands at that time, and the local node is a chain of its own for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Event

from forecastd.chain.networks import LOCAL_CHAIN_ID, NETWORKS
from forecastd.chain.submit import Spending
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, ReplayClock, iso
from forecastd.connect import chain_of, open_chain
from forecastd.cycle import run_cycle
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.features import load_features
from forecastd.forecaster import Forecaster
from forecastd.lease import Lease
from forecastd.ledger import Ledger
from forecastd.outcome import Outcome, ended_by
from forecastd.parts import Job, Parts
from forecastd.settings import Settings
from forecastd.shelf import Reserve, Shelf, open_shelf
from forecastd.sources import open_source
from forecastd.stages import Stage
from forecastd.supervise.policy import policy_of
from forecastd.window import RollingWindow
from models.manifest import Manifest

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 60.0  # how long a single run waits for a block
HORIZON_HOURS = {67: 168.0}  # what known topics ask for; HORIZON_HOURS says it for others


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
        if as_of is not None:
            _check_replay(topics)
        with open_parts(topics, clock, replay=as_of is not None) as parts:
            jobs = [job_of(one, dry_run=dry_run, register=register, persist=persist) for one in topics]
            return [run_cycle(job, part, report) for job, part in zip(jobs, parts, strict=True)]
    except ForecastdError as error:
        return [ended_by(error, Outcome("failed", topic_id=one.topic_id, as_of=iso(clock.now()))) for one in topics]


def _check_replay(topics: Sequence[Settings]) -> None:
    """A forecast of the past belongs on a chain of the past: an embedded node's own, never one that is running now."""
    if any(one.allora_network != "local" for one in topics):
        raise NeedsHuman("--as-of replays the past and works on the local network only. Leave it out, or --network.")
    if topics[0].rpc_endpoints:
        raise NeedsHuman("--as-of replays on a node of its own. Leave it out, or unset RPC_ENDPOINTS.")


def job_of(settings: Settings, *, dry_run: bool, register: bool, persist: bool) -> Job:
    """What a cycle of these settings' topic is to do and may spend."""
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
def open_parts(topics: Sequence[Settings], clock: Clock, *, replay: bool, standbys: int = 0) -> Iterator[list[Parts]]:
    """What the cycles of these topics work with, closed again in reverse order. Ledger, window and endpoints are shared.

    `standbys`: how many loaded processes stand by for each model, beside the one that works.

    Raises:
        NeedsHuman, RetryLater: as the parts do when they are opened.
    """
    common = topics[0]
    with ExitStack() as stack:
        shelf = open_shelf(common, clock)
        forecasters = [
            stack.enter_context(open_forecaster(settings, shelf, clock, standbys=standbys)) for settings in topics
        ]
        sources = [open_source(settings.data_source, settings) for settings in topics]
        for settings, source in zip(topics, sources, strict=True):
            refuse_synthetic(settings, synthetic=source.synthetic)
        wallets = [open_wallet(settings) for settings in topics]
        chain_id = _replay_id(topics, forecasters, clock) if replay else chain_of(common)
        for address in dict.fromkeys(wallet.address for wallet in wallets):
            stack.enter_context(Lease(chain_id, address, clock))
        ledger = Ledger(common.state / "ledger.sqlite")
        stack.callback(ledger.close)
        window = RollingWindow.open(common.state / "window.sqlite")
        stack.callback(window.close)
        chain = stack.enter_context(open_chain(common, clock, chain_id, replay=replay))
        wake = Event()
        yield [
            Parts(source, window, forecaster, ledger, chain, wallet, clock, wake)
            for source, forecaster, wallet in zip(sources, forecasters, wallets, strict=True)
        ]


def open_forecaster(settings: Settings, shelf: Shelf, clock: Clock, *, standbys: int) -> Forecaster:
    """The topic's model in its processes, with the last good one in reserve.

    Raises:
        NeedsHuman: the model must not run here, and there is no other.
    """
    return Forecaster(
        settings.model_path,
        load_features(settings.features_path),
        policy=policy_of(settings, standbys=standbys),
        clock=clock,
        reserve=Reserve(shelf, settings.topic_id),
        accept=lambda manifest: _accept(settings, manifest),
    )


def _accept(settings: Settings, manifest: Manifest) -> None:
    if manifest.training.synthetic and settings.allora_network != "local":
        raise NeedsHuman(
            f"The model {manifest.name} was trained on synthetic candles and serves the local network only. "
            "Train one on real candles with `forecastd train --source ...`."
        )
    check_horizon(settings, manifest)


def refuse_synthetic(settings: Settings, *, synthetic: bool) -> None:
    """Made-up candles have no business on a real network. Signing checks it again, with the model's own.

    Raises:
        NeedsHuman: a real network with synthetic data.
    """
    if synthetic and settings.allora_network != "local":
        raise NeedsHuman(
            f"The data source {settings.data_source!r} is synthetic and serves the local network only. "
            "Set DATA_SOURCE (or --source) to tiingo, exchange:NAME or file:PATH."
        )


def check_horizon(settings: Settings, manifest: Manifest) -> None:
    """The topic asks for one horizon, and the model has to forecast it. On the local network a difference is only told.

    Raises:
        NeedsHuman: a real network, and a model of another horizon.
    """
    wanted = settings.horizon_hours or HORIZON_HOURS.get(settings.topic_id)
    hours = manifest.horizon * manifest.step / 3600
    if wanted is None or hours == wanted:
        return
    told = f"Topic {settings.topic_id} asks for {wanted:g} h ahead, the model {manifest.name} forecasts {hours:g} h."
    if settings.allora_network != "local":
        raise NeedsHuman(f"{told} Choose another --model; if the topic has changed, set HORIZON_HOURS.")
    log.warning("%s A real network would refuse it.", told)


def _replay_id(topics: Sequence[Settings], forecasters: Sequence[Forecaster], clock: Clock) -> str:
    """A replay is a chain of its own for each moment, source and model: the same replay submits once, another anew."""
    made_from = [
        (one.topic_id, one.data_source, one.symbol, forecaster.manifest.sha256)
        for one, forecaster in zip(topics, forecasters, strict=True)
    ]
    moment = iso(clock.now()).replace("-", "").replace(":", "")
    return f"{LOCAL_CHAIN_ID}-{moment}-{hashlib.sha256(repr(made_from).encode()).hexdigest()[:8]}"
