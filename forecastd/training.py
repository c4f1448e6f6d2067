"""From candles to a trained bundle: fetches the history, makes its features, has a supervised child train on the rows.

This process has the keys and never imports torch; the child finds the rows on disk. An interrupted training goes on from the
rows it began with, kept beside its output: nothing is fetched again, and newer candles cannot change what is being trained
on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from forecastd.candles import COLUMNS, HOUR, Candles, examine
from forecastd.clock import Clock, iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.features import FeatureList, check_causal, known_matrix, load_features, past_matrix
from forecastd.settings import Settings, numeric_environment
from forecastd.sources import Source, open_source
from forecastd.supervise.policy import Policy, Setup, policy_of
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.trainer import Trainer
from forecastd.supervise.trainjob import failure, train_job
from models import workdir
from models.bundle import read_manifest
from models.config import TrainingConfig
from models.errors import BundleError, DataError
from models.manifest import Manifest
from models.progress import Progress
from models.training import TrainingInterrupted, begin, check_config
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


def train_model(
    settings: Settings,
    request: Request,
    *,
    clock: Clock,
    tell: Callable[[str], None],
    progress: Callable[[Progress], None],
    remark: Callable[[str], None],
    at_once: Callable[[], bool] = lambda: False,
) -> Trained:
    """Train what `request` asks for on the candles of `settings.data_source`, or go on where it was interrupted.

    `tell` gets a sentence on the data before the training begins, `remark` one on each child that was replaced.
    `at_once`: asked, once it was interrupted, whether it is to end without any more ado.

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
    config = replace(request.config, name=_bundle_name(out))
    try:
        _require_writable(out, force=request.force)
        with workdir.hold(out):
            data = _rows(source, features, request, out, now=now, tell=tell)
            begin(data, config, out, force=request.force, finish=request.finish)
            del data
            setup = Setup(name=config.name, faults=request.faults, threads=0, environment=numeric_environment())
            trainer = Trainer(setup, _policy(settings), clock, progress=progress, remark=remark, at_once=at_once)
            manifest = _supervised(trainer, request, out, now, settings.job_attempts)
    except OSError as error:
        raise NeedsHuman(
            f"Cannot write {out}: {error.strerror or error}. Make room, or choose another --out."
        ) from error
    return Trained(out, manifest)


def _policy(settings: Settings) -> Policy:
    """As for a prediction, but without a limit on memory and without quarantine.

    Torch reserves address space far beyond what it uses, with a GPU hundreds of GiB, so a limit on it would say nothing;
    what a training may take is the machine's, as for any program that its user starts. And there is no bundle to suspect.
    """
    return replace(policy_of(settings, standbys=0), memory=0, strikes=settings.job_attempts + 1)


def _supervised(trainer: Trainer, request: Request, out: Path, created: float, attempts: int) -> Manifest:
    """Have the training of `out`, which has begun, carried to its end; raises what the child told."""
    job = train_job(out, created=created, force=request.force, finish=request.finish, attempts=attempts)
    try:
        sha256 = trainer.run(job)
    except ModelFailed as error:
        raise failure(error, out) from None
    except ChildFailed as error:
        raise NeedsHuman(
            f"No process brought the training to its end (JOB_ATTEMPTS: {attempts}). {error} What was reached is kept: the "
            "same command goes on; `forecastd -v train ...` tells what its processes write."
        ) from None
    except KeyboardInterrupt:
        place = workdir.place(out)
        raise TrainingInterrupted(place, kept=(place / workdir.BEST).exists()) from None
    manifest = read_manifest(out)
    if manifest.sha256 != sha256:
        raise BundleError(f"{out} was replaced by something else just after the training.", check="hash")
    return manifest


def _rows(
    source: Source, features: FeatureList, request: Request, out: Path, *, now: float, tell: Callable[[str], None]
) -> TrainingData:
    """The rows of an interrupted training of the same request, or of a history fetched now."""
    key = _key(source, features, request)
    kept = _kept(out, key, anew=request.force)
    if kept is not None:
        tell(f"going on with the interrupted training: {_described(kept)}")
        return kept
    if request.finish:
        raise NeedsHuman(
            f"There is no interrupted training of {out} with these options. Train first, without --finish."
        )
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


def _kept(out: Path, key: str, *, anew: bool) -> TrainingData | None:
    """The rows of an interrupted training of the same request."""
    try:
        work = workdir.find(out)
    except DataError:
        if anew:
            return None
        raise
    return work.data if work is not None and work.data.request == key else None


def _key(source: Source, features: FeatureList, request: Request) -> str:
    asked = [source.name, source.symbol, features.names, request.start, request.until, request.hours]
    return json.dumps(asked)


def _default_name(source: Source, config: TrainingConfig) -> str:
    return f"{source.symbol}-{config.horizon * source.step // HOUR}h"


def _bundle_name(out: Path) -> str:
    """The bundle's name after its directory, with the letters a manifest allows."""
    name = re.sub(r"[^A-Za-z0-9_-]", "-", out.name)[:60]
    return name if name[:1].isalpha() else f"m{name}"


def _require_writable(out: Path, *, force: bool) -> None:
    """Say before a long training, not after it, that its result cannot be written."""
    if out.exists() and not force:
        raise NeedsHuman(f"{out} exists already. Choose another --out, or have it replaced with --force.")
    if out.is_file():
        raise NeedsHuman(f"{out} is a file; a bundle is a directory. Choose another --out.")
    above = next(parent for parent in out.absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise NeedsHuman(f"{above} cannot be written to. Choose another --out, or change its permissions.")


def _described(data: TrainingData) -> str:
    made_up = ", made up" if data.synthetic else ""
    return f"{data.source}{made_up}, {len(data)} rows, {iso(data.time[0])} to {iso(data.time[-1] + data.step)}"
