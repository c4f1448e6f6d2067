"""Market training: fetch the history, compute its features, and train a bundle on the rows.

An interrupted training run resumes with the rows that it started with; nothing is fetched again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forecastd.clock import Clock, to_iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import COLUMNS, HOUR, Candles, run_checks
from forecastd.market.features import FeatureList, check_causal, known_matrix, load_features, past_matrix
from forecastd.market.sources import Source, open_source
from forecastd.runtime.jobs import JobRunner
from forecastd.settings import Settings
from forecastd.training.run import TrainingListener, TrainingRun, bundle_name, run_training, saved_rows
from models.market.dataset import MarketData
from models.market.manifest import MarketManifest
from models.training.config import TrainingConfig

# Checks that a whole history must pass. Gaps and flat stretches are allowed: windows across them are skipped.
REQUIRED_CHECKS = ("empty", "unit", "future", "grid", "nonfinite", "inconsistent", "spike")


@dataclass(frozen=True)
class TrainingRequest:
    """A user's request for a training run. `start`, `until`: unix seconds. Without `start`, the last `hours` are used."""

    config: TrainingConfig
    out: Path | None = None
    start: float | None = None
    until: float | None = None
    hours: int = 17_520
    force: bool = False
    finish: bool = False


@dataclass(frozen=True)
class TrainedBundle:
    """A trained bundle on disk."""

    path: Path
    manifest: MarketManifest


def train_model(
    settings: Settings, request: TrainingRequest, clock: Clock, listener: TrainingListener, jobs: JobRunner
) -> TrainedBundle:
    """Train a bundle on the candles of `settings.source`, or resume an interrupted training run.

    Raises:
        NeedsHuman: the source, the features, an option or the output must be changed, or every child failed.
        RetryLater: a temporary fault of the source.
        ModelError: the data is not fit for the training, or it was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    request.config.check()
    features = load_features(settings.model.features_path)
    source = open_source(settings.source.name, settings)
    out = request.out or settings.state_path / "models" / _default_name(source, request.config)
    config = replace(request.config, name=bundle_name(out))
    run = TrainingRun(config, out, force=request.force, finish=request.finish)

    def load_rows() -> MarketData:
        return _load_rows(source, features, request, run, now=now, on_message=listener.on_message)

    manifest = run_training(settings, run, load_rows, clock, listener, jobs=jobs, read_manifest=MarketManifest.read)
    return TrainedBundle(out, manifest)


def _load_rows(
    source: Source,
    features: FeatureList,
    request: TrainingRequest,
    run: TrainingRun,
    *,
    now: float,
    on_message: Callable[[str], None],
) -> MarketData:
    """The saved rows of an interrupted training run of the same request, or rows of a history that is fetched now."""
    key = _request_key(source, features, request)
    saved = saved_rows(run, key, MarketData)
    if saved is not None:
        on_message(f"resuming the interrupted training: {_describe(saved)}")
        return saved
    data = _fetch_rows(source, features, request, now, key)
    on_message(_describe(data))
    return data


def make_training_data(candles: Candles, features: FeatureList, request: str = "") -> MarketData:
    """The training rows of `candles`. `data_sha256` covers the numbers of the candles.

    Raises:
        NeedsHuman: a feature uses future candles.
    """
    check_causal(features, candles)
    digest = hashlib.sha256(np.ascontiguousarray(candles.time, dtype="<i8").tobytes())
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(getattr(candles, name), dtype="<f8").tobytes())
    return MarketData(
        time=candles.time,
        target=np.log(candles.close),
        past=past_matrix(features.past, candles),
        known=known_matrix(features.known, candles.time),
        past_names=features.past,
        known_names=features.known,
        step=candles.step,
        data_sha256=digest.hexdigest(),
        source=candles.provenance.source,
        synthetic=candles.provenance.synthetic,
        request=request,
    )


def _fetch_rows(source: Source, features: FeatureList, request: TrainingRequest, now: float, key: str) -> MarketData:
    """Fetch and check the requested history, as rows. The history of a file ends where the file ends, not now."""
    end = now if request.until is None else request.until
    until = end // source.step * source.step  # else the open candle would count as one of the hours
    span = request.hours * HOUR
    ends_early = source.name.startswith("file:")
    start = request.start if request.start is not None else 0 if ends_early else until - span
    try:
        candles = source.fetch(int(start), int(until), now)
        if request.start is None and len(candles):
            candles = candles.between(candles.end - span, until)
        _require_valid(candles, now)
    except SkipEpoch as error:
        raise NeedsHuman(f"The candles cannot be trained on: {error}") from error
    return make_training_data(candles, features, key)


def _require_valid(candles: Candles, now: float) -> None:
    reasons = run_checks(candles, now=now, min_length=len(candles), max_age=float("inf"))
    for check in REQUIRED_CHECKS:
        if reasons.get(check):
            raise SkipEpoch(f"{candles.provenance.source}: {reasons[check]}", check=check)


def _request_key(source: Source, features: FeatureList, request: TrainingRequest) -> str:
    parts = [source.name, source.symbol, features.names, request.start, request.until, request.hours]
    return json.dumps(parts)


def _default_name(source: Source, config: TrainingConfig) -> str:
    return f"{source.symbol}-{config.horizon * source.step // HOUR}h"


def _describe(data: MarketData) -> str:
    synthetic_note = ", synthetic" if data.synthetic else ""
    return f"{data.source}{synthetic_note}, {len(data)} rows, {to_iso(data.time[0])} to {to_iso(data.time[-1] + data.step)}"
