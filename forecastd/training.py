"""From candles to a trained bundle: fetches the history, makes its features, and has the rows trained on.

An interrupted training goes on from the rows it began with: nothing is fetched again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forecastd.candles import COLUMNS, HOUR, Candles, examine
from forecastd.clock import Clock, iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.features import FeatureList, check_causal, known_matrix, load_features, past_matrix
from forecastd.settings import Settings
from forecastd.sources import Source, open_source
from forecastd.trainrun import Listener, Run, bundle_name, carry_out, kept_rows
from models.config import TrainingConfig
from models.manifest import Manifest
from models.training import check_config
from models.windows import TrainingData

# What must hold over a whole history. Gaps and standstills need not: windows across them are left out.
REFUSED = ("empty", "unit", "future", "grid", "nonfinite", "inconsistent", "spike")


@dataclass(frozen=True)
class Request:
    """What a user asks a training for. `start` and `until` in unix seconds; without `start`, `hours` before the end.

    `faults`: what its first process shall bring on itself, for a trial (`supervise.faults`).
    """

    config: TrainingConfig
    out: Path | None = None
    start: float | None = None
    until: float | None = None
    hours: int = 17_520
    force: bool = False
    finish: bool = False
    faults: str = ""


@dataclass(frozen=True)
class Trained:
    """A written bundle."""

    path: Path
    manifest: Manifest


def train_model(settings: Settings, request: Request, clock: Clock, listener: Listener) -> Trained:
    """Train what `request` asks for on the candles of `settings.data_source`, or go on where it was interrupted.

    Raises:
        NeedsHuman: the source, the features, an option or the output cannot work as they are, or no child could train.
        RetryLater: a passing fault of the source.
        ModelError: the data cannot carry the training, or it was interrupted (`TrainingInterrupted`).
    """
    now = clock.now()
    check_config(request.config)
    features = load_features(settings.features_path)
    source = open_source(settings.data_source, settings)
    out = request.out or settings.state / "models" / _default_name(source, request.config)
    config = replace(request.config, name=bundle_name(out))
    run = Run(config, out, force=request.force, finish=request.finish, faults=request.faults)

    def rows() -> TrainingData:
        return _rows(source, features, request, run, now=now, tell=listener.tell)

    manifest = carry_out(settings, run, rows, clock, listener)
    if not isinstance(manifest, Manifest):
        raise TypeError(f"This is no market's manifest: {type(manifest).__name__}")
    return Trained(out, manifest)


def _rows(
    source: Source, features: FeatureList, request: Request, run: Run, *, now: float, tell: Callable[[str], None]
) -> TrainingData:
    """The rows of an interrupted training of the same request, or of a history fetched now."""
    key = _key(source, features, request)
    kept = kept_rows(run, key)
    if isinstance(kept, TrainingData):
        tell(f"going on with the interrupted training: {_described(kept)}")
        return kept
    data = _gather(source, features, request, now, key)
    tell(_described(data))
    return data


def training_data(candles: Candles, features: FeatureList, request: str = "") -> TrainingData:
    """The rows a training sees of `candles`; `data_sha256` is over the candles' own numbers.

    Raises:
        NeedsHuman: a feature looks into the future on these candles.
    """
    check_causal(features, candles)
    digest = hashlib.sha256(np.ascontiguousarray(candles.time, dtype="<i8").tobytes())
    for name in COLUMNS:
        digest.update(np.ascontiguousarray(getattr(candles, name), dtype="<f8").tobytes())
    return TrainingData(
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


def _gather(source: Source, features: FeatureList, request: Request, now: float, key: str) -> TrainingData:
    """The history asked for, judged, as rows. A file's history ends where the file does, not now."""
    asked = now if request.until is None else request.until
    until = asked // source.step * source.step  # or an open candle would count as one of the hours
    span = request.hours * HOUR
    ends_early = source.name.startswith("file:")
    start = request.start if request.start is not None else 0 if ends_early else until - span
    try:
        candles = source.fetch(int(start), int(until), now)
        if request.start is None and len(candles):
            candles = candles.between(candles.end - span, until)
        _refuse_bad(candles, now)
    except SkipEpoch as error:
        raise NeedsHuman(f"The candles cannot be trained on: {error}") from error
    return training_data(candles, features, key)


def _refuse_bad(candles: Candles, now: float) -> None:
    reasons = examine(candles, now=now, needed=len(candles), max_age=float("inf"))
    for check in REFUSED:
        if reasons.get(check):
            raise SkipEpoch(f"{candles.provenance.source}: {reasons[check]}", check=check)


def _key(source: Source, features: FeatureList, request: Request) -> str:
    asked = [source.name, source.symbol, features.names, request.start, request.until, request.hours]
    return json.dumps(asked)


def _default_name(source: Source, config: TrainingConfig) -> str:
    return f"{source.symbol}-{config.horizon * source.step // HOUR}h"


def _described(data: TrainingData) -> str:
    made_up = ", made up" if data.synthetic else ""
    return f"{data.source}{made_up}, {len(data)} rows, {iso(data.time[0])} to {iso(data.time[-1] + data.step)}"
