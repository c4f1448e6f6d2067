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
from forecastd.chain.submit import FeePolicy
from forecastd.chain.wallet import open_wallet
from forecastd.clock import Clock, ReplayClock, to_iso
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.inference.bundle_store import BundleStore, FallbackBundles, open_bundle_store
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import Ledger
from forecastd.ledger.outcome import Outcome, outcome_from_error
from forecastd.market.features import load_features
from forecastd.market.sources import open_source
from forecastd.market.window import RollingWindow
from forecastd.runtime.wallet_lock import WalletLock
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints
from forecastd.submission.context import CycleContext, CycleOptions
from forecastd.submission.cycle import run_cycle
from forecastd.supervise.policy import policy_from_settings
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)

CONFIRMATION_SECONDS = 60.0  # how long a single run waits for a block
TOPIC_HORIZON_HOURS = {67: 168.0}  # what known topics ask for; HORIZON_HOURS says it for others


def run_once(
    topics: Sequence[Settings],
    clock: Clock,
    *,
    as_of: float | None = None,
    dry_run: bool = False,
    register: bool = False,
    retry_until_closed: bool = False,
    on_stage_end: Callable[[StageResult], None] = lambda _: None,
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
        with open_cycle_contexts(topics, clock, replay=as_of is not None) as contexts:
            cycle_options = [
                cycle_options_for(settings, dry_run=dry_run, register=register, retry_until_closed=retry_until_closed)
                for settings in topics
            ]
            return [
                run_cycle(options, context, on_stage_end)
                for options, context in zip(cycle_options, contexts, strict=True)
            ]
    except ForecastdError as error:
        return [
            outcome_from_error(error, Outcome("failed", topic_id=settings.topic_id, as_of=to_iso(clock.now())))
            for settings in topics
        ]


def _check_replay(topics: Sequence[Settings]) -> None:
    """A forecast of the past belongs on a chain of the past: an embedded node's own, never one that is running now."""
    if any(settings.allora_network != "local" for settings in topics):
        raise NeedsHuman("--as-of replays the past and works on the local network only. Leave it out, or --network.")
    if topics[0].rpc_endpoints:
        raise NeedsHuman("--as-of replays on a node of its own. Leave it out, or unset RPC_ENDPOINTS.")


def cycle_options_for(settings: Settings, *, dry_run: bool, register: bool, retry_until_closed: bool) -> CycleOptions:
    """What a cycle of these settings' topic is to do and may spend."""
    is_local = settings.allora_network == "local"
    floor = NETWORKS[settings.allora_network].gas_price_floor
    return CycleOptions(
        settings.topic_id,
        FeePolicy(floor, settings.fee_tier, settings.max_fee_uallo),
        register=is_local or (register and not dry_run),
        dry_run=dry_run,
        retry_until_closed=retry_until_closed,
        timeout_seconds=None if retry_until_closed else CONFIRMATION_SECONDS,
    )


@contextmanager
def open_cycle_contexts(
    topics: Sequence[Settings], clock: Clock, *, replay: bool, standbys: int = 0
) -> Iterator[list[CycleContext]]:
    """What the cycles of these topics work with, closed again in reverse order. Ledger, window and endpoints are shared.

    `standbys`: how many loaded processes stand by for each model, beside the one that works.

    Raises:
        NeedsHuman, RetryLater: as the parts do when they are opened.
    """
    shared_settings = topics[0]
    with ExitStack() as stack:
        bundle_store = open_bundle_store(shared_settings, clock)
        forecasters = [
            stack.enter_context(open_forecaster(settings, bundle_store, clock, standbys=standbys))
            for settings in topics
        ]
        sources = [open_source(settings.data_source, settings) for settings in topics]
        for settings, source in zip(topics, sources, strict=True):
            refuse_synthetic(settings, synthetic=source.synthetic)
        wallets = [open_wallet(settings) for settings in topics]
        chain_id = _replay_chain_id(topics, forecasters, clock) if replay else chain_id_for(shared_settings)
        for address in dict.fromkeys(wallet.address for wallet in wallets):
            stack.enter_context(WalletLock(chain_id, address, clock))
        ledger = Ledger(shared_settings.state_path / "ledger.sqlite")
        stack.callback(ledger.close)
        window = RollingWindow.open(shared_settings.state_path / "window.sqlite")
        stack.callback(window.close)
        chain = stack.enter_context(open_endpoints(shared_settings, clock, chain_id, replay=replay))
        wake = Event()
        yield [
            CycleContext(source, window, forecaster, ledger, chain, wallet, clock, wake)
            for source, forecaster, wallet in zip(sources, forecasters, wallets, strict=True)
        ]


def open_forecaster(settings: Settings, bundle_store: BundleStore, clock: Clock, *, standbys: int) -> Forecaster:
    """The topic's model in its processes, with the last good one in reserve.

    Raises:
        NeedsHuman: the model must not run here, and there is no other.
    """
    return Forecaster(
        settings.model_path,
        load_features(settings.features_path),
        policy=policy_from_settings(settings, standbys=standbys),
        clock=clock,
        fallback=FallbackBundles(bundle_store, settings.topic_id),
        validate=lambda manifest: _check_manifest(settings, manifest),
    )


def _check_manifest(settings: Settings, manifest: MarketManifest) -> None:
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


def check_horizon(settings: Settings, manifest: MarketManifest) -> None:
    """The topic asks for one horizon, and the model has to forecast it. On the local network a difference is only told.

    Raises:
        NeedsHuman: a real network, and a model of another horizon.
    """
    topic_hours = settings.horizon_hours or TOPIC_HORIZON_HOURS.get(settings.topic_id)
    hours = manifest.horizon * manifest.step / 3600
    if topic_hours is None or hours == topic_hours:
        return
    message = (
        f"Topic {settings.topic_id} asks for {topic_hours:g} h ahead, the model {manifest.name} forecasts {hours:g} h."
    )
    if settings.allora_network != "local":
        raise NeedsHuman(f"{message} Choose another --model; if the topic has changed, set HORIZON_HOURS.")
    log.warning("%s A real network would refuse it.", message)


def _replay_chain_id(topics: Sequence[Settings], forecasters: Sequence[Forecaster], clock: Clock) -> str:
    """A replay is a chain of its own for each moment, source and model: the same replay submits once, another anew."""
    inputs = [
        (settings.topic_id, settings.data_source, settings.symbol, forecaster.manifest.sha256)
        for settings, forecaster in zip(topics, forecasters, strict=True)
    ]
    timestamp = to_iso(clock.now()).replace("-", "").replace(":", "")
    return f"{LOCAL_CHAIN_ID}-{timestamp}-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:8]}"
