"""Market training: fetch the history, compute its features, and train a bundle on the rows.

An interrupted training run resumes with the rows that it started with; nothing is fetched again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np

from forecastd.clock import Clock, to_iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import COLUMNS, HOUR, Candles, run_checks
from forecastd.market.features import FeatureList, check_causal, known_matrix, load_features, past_matrix
from forecastd.market.sources import Source, open_source
from forecastd.runtime.jobs import JobRunner
from forecastd.settings import Settings
from forecastd.training.run import RowSource, TrainedBundle, TrainingListener, TrainingRequest, run_training
from models.market.dataset import MarketData

# Checks that a whole history must pass. Gaps and flat stretches are allowed: windows across them are skipped.
REQUIRED_CHECKS = ("empty", "unit", "future", "grid", "nonfinite", "inconsistent", "spike")


@dataclass(frozen=True, kw_only=True)
class MarketTrainingRequest(TrainingRequest):
    """What to train on: candles from `start` (unix seconds) on; without it, the last `hours`."""

    start: float | None = None
    hours: int = 17_520


def train_market(
    settings: Settings, request: MarketTrainingRequest, clock: Clock, listener: TrainingListener, jobs: JobRunner
) -> TrainedBundle:
    """Train a bundle on the candles of `settings.source.data_source`, or resume an interrupted training run.

    Raises:
        NeedsHuman: the source, the features, an option or the output must be changed, or every child failed.
        RetryLater: a temporary fault of the source.
        ModelError: the data is not fit for the training, or it was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    request.config.check()
    features = load_features(settings.model.features_path)
    source = open_source(settings.source.name, settings)
    parts = [source.name, source.symbol, features.names, request.start, request.until, request.hours]
    rows = RowSource(json.dumps(parts), lambda: fetch_rows(source, features, request, now), _describe)
    name = f"{source.symbol}-{request.config.horizon * source.step // HOUR}h"
    return run_training(
        settings,
        request,
        rows,
        default_out=settings.state_path / "models" / name,
        clock=clock,
        listener=listener,
        jobs=jobs,
    )


def make_training_data(candles: Candles, features: FeatureList) -> MarketData:
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
    )


def fetch_rows(source: Source, features: FeatureList, request: MarketTrainingRequest, now: float) -> MarketData:
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
    return make_training_data(candles, features)


def _require_valid(candles: Candles, now: float) -> None:
    reasons = run_checks(candles, now=now, min_length=len(candles), max_age=float("inf"))
    for check in REQUIRED_CHECKS:
        if reasons.get(check):
            raise SkipEpoch(f"{candles.provenance.source}: {reasons[check]}", check=check)


def _describe(data: MarketData) -> str:
    synthetic_note = ", synthetic" if data.synthetic else ""
    return f"{data.source}{synthetic_note}, {len(data)} rows, {to_iso(data.time[0])} to {to_iso(data.time[-1] + data.step)}"
