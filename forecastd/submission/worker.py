"""From settings to a finished cycle: opens the resources of a cycle and runs it once.

The model's child process starts first, so that it loads while the parent opens everything else. With `as_of` the cycle is a
replay: the wall clock stands still at that time, and the embedded local node has a separate chain for it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from threading import Event

from forecastd.chain.networks import LOCAL_CHAIN_ID
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
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.locks import WalletLock
from forecastd.settings import Settings
from forecastd.submission.connect import chain_id_for, open_endpoints
from forecastd.submission.context import CONFIRMATION_SECONDS, CycleContext, TopicResources
from forecastd.submission.cycle import run_cycle
from forecastd.supervise.policy import policy_from_settings
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)

TOPIC_HORIZON_HOURS = {67: 168.0}  # the horizon of known topics; the setting HORIZON_HOURS is for others


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
    """Serve the newest open epoch of each topic once; errors of `errors.py` are returned as outcomes.

    `topics`: the settings of each topic, which share network, endpoints and state. `as_of` (unix seconds) replays that time
    on the local network. `retry_until_closed`: retry until the window closes. On the local network the worker is always
    registered, in a dry run too, because it costs nothing there.
    """
    clock = clock if as_of is None else ReplayClock(as_of)
    try:
        if as_of is not None:
            _check_replay(topics)
        with ExitStack() as stack:
            resources = _open_resources(
                stack, topics, clock, replay=as_of is not None, register=register and not dry_run
            )
            ledger = Ledger(topics[0].state_path / "ledger.sqlite")
            stack.callback(ledger.close)
            rolling_window = stack.enter_context(RollingWindow.open(topics[0].state_path / "window.sqlite"))
            return [
                run_cycle(
                    CycleContext(
                        topic,
                        ledger,
                        rolling_window,
                        clock,
                        wake=Event(),
                        dry_run=dry_run,
                        retry_until_closed=retry_until_closed,
                        confirmation_seconds=None if retry_until_closed else CONFIRMATION_SECONDS,
                        on_stage_end=on_stage_end,
                    )
                )
                for topic in resources
            ]
    except ForecastdError as error:
        return [
            outcome_from_error(error, Outcome("failed", topic_id=settings.topic.id, as_of=to_iso(clock.now())))
            for settings in topics
        ]


def _check_replay(topics: Sequence[Settings]) -> None:
    """A replay must use the embedded node's separate chain, never a chain that is running now."""
    if any(settings.chain.network != "local" for settings in topics):
        raise NeedsHuman("--as-of works on the local network only. Omit --as-of, or use --network local.")
    if topics[0].chain.rpc_endpoints:
        raise NeedsHuman("--as-of uses an embedded node. Omit --as-of, or unset RPC_ENDPOINTS.")


def _open_resources(
    stack: ExitStack, topics: Sequence[Settings], clock: Clock, *, replay: bool, register: bool
) -> list[TopicResources]:
    """The resources of these topics, which share the endpoints; `stack` closes them.

    Raises:
        NeedsHuman, RetryLater: a resource cannot be opened.
    """
    bundle_store = open_bundle_store(topics[0], clock)
    forecasters = [
        stack.enter_context(open_forecaster(settings, bundle_store, clock, standbys=0)) for settings in topics
    ]
    sources = [open_checked_source(settings) for settings in topics]
    wallets = [open_wallet(settings) for settings in topics]
    chain_id = _replay_chain_id(topics, forecasters, clock) if replay else chain_id_for(topics[0])
    for address in dict.fromkeys(wallet.address for wallet in wallets):
        stack.enter_context(WalletLock(chain_id, address, clock))
    chain = stack.enter_context(open_endpoints(topics[0], clock, chain_id, replay=replay))
    return [
        TopicResources(settings, chain_id, wallet, source, forecaster, chain, register)
        for settings, wallet, source, forecaster in zip(topics, wallets, sources, forecasters, strict=True)
    ]


def open_forecaster(settings: Settings, bundle_store: BundleStore, clock: Clock, *, standbys: int) -> Forecaster:
    """The topic's model in its processes, with the last good model as fallback.

    Raises:
        NeedsHuman: the model may not run on this network, and there is no fallback.
    """
    return Forecaster(
        settings.model_path,
        load_features(settings.model.features_path),
        policy=policy_from_settings(settings, standbys=standbys),
        clock=clock,
        fallback=FallbackBundles(bundle_store, settings.topic.id, MarketManifest.read),
        validate=lambda manifest: _check_manifest(settings, manifest),
    )


def _check_manifest(settings: Settings, manifest: MarketManifest) -> None:
    if manifest.training.synthetic and settings.chain.network != "local":
        raise NeedsHuman(
            f"The model {manifest.name} was trained on synthetic candles and may run on the local network only. "
            "Train one on real candles with `forecastd train --source ...`."
        )
    check_horizon(settings, manifest)


def open_checked_source(settings: Settings) -> Source:
    """The data source. Synthetic candles are refused on a real network; signing checks that again.

    Raises:
        NeedsHuman: a real network with synthetic data, or the source cannot be opened.
    """
    source = open_source(settings.source.name, settings)
    if source.synthetic and settings.chain.network != "local":
        raise NeedsHuman(
            f"The data source {settings.source.name!r} is synthetic and may be used on the local network only. "
            "Set DATA_SOURCE (or --source) to tiingo, exchange:NAME or file:PATH."
        )
    return source


def check_horizon(settings: Settings, manifest: MarketManifest) -> None:
    """Check that the model's horizon is the topic's. On the local network a difference is only a warning.

    Raises:
        NeedsHuman: a real network, and a model with another horizon.
    """
    topic_hours = settings.topic.horizon_hours or TOPIC_HORIZON_HOURS.get(settings.topic.id)
    hours = manifest.horizon * manifest.step / 3600
    if topic_hours is None or hours == topic_hours:
        return
    need = f"Topic {settings.topic.id} needs a horizon of {topic_hours:g} h"
    message = f"{need}, but the model {manifest.name} has {hours:g} h."
    if settings.chain.network != "local":
        raise NeedsHuman(f"{message} Choose another --model; if the topic's horizon has changed, set HORIZON_HOURS.")
    log.warning("%s On a real network this is an error.", message)


def _replay_chain_id(topics: Sequence[Settings], forecasters: Sequence[Forecaster], clock: Clock) -> str:
    """A chain id per replayed time, source and model: a replay submits once, a different one submits again."""
    inputs = [
        (settings.topic.id, settings.source.name, settings.source.symbol, forecaster.manifest.sha256)
        for settings, forecaster in zip(topics, forecasters, strict=True)
    ]
    timestamp = to_iso(clock.now()).replace("-", "").replace(":", "")
    return f"{LOCAL_CHAIN_ID}-{timestamp}-{hashlib.sha256(repr(inputs).encode()).hexdigest()[:8]}"
