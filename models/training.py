"""From rows to a checked bundle: split, scale, fit, compare with the baselines, export, write.

The weights of the library's network are exported, and the engine that will run them is held against the network itself:
a bundle whose engine differs is never written. Torch and Lightning are imported by `go_on` only, so that the command line
can begin a training without them and leave the rest to a process that may be replaced: what the two share is on disk.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from models import workdir
from models.base import FloatArray
from models.baselines import Baselines, fit_baselines
from models.bundle import Bundle, Canary, read_manifest, write_bundle
from models.config import TrainingConfig
from models.engines import TOLERANCE, Engine, Scaling, relative_difference, target_scale, to_quantiles
from models.errors import BundleError, DataError, ModelError
from models.evaluation import score
from models.manifest import MOST, Manifest, Network, Scaler, network_reals
from models.progress import Meter, Progress
from models.records import Interval, Training
from models.shapes import expected_shapes
from models.windows import Indices, Part, Split, TrainingData, split

BASELINE_WINDOWS = 20_000
LEAST = {  # of each size; the most is what a manifest may name, or what fits 32 bits
    "encoder_length": 2, "horizon": 1, "hidden_size": 1, "hidden_continuous_size": 1, "attention_heads": 1,
    "lstm_layers": 1, "epochs": 1, "patience": 1, "batch_size": 1, "batches_per_epoch": 1, "scored_windows": 1, "seed": 0,
}  # fmt: skip


class TrainingInterrupted(ModelError):
    """The training was interrupted. `kept` says whether a checkpoint of at least one whole epoch was kept in `work`."""

    def __init__(self, work: Path, *, kept: bool) -> None:
        what = "Best checkpoint kept" if kept else "No epoch was finished yet, so there is no checkpoint"
        super().__init__(f"Interrupted. {what}; run the same command again to go on.")
        self.work = work
        self.kept = kept


class Diverged(DataError):
    """The training diverged: its weights are not finite. Lower --learning-rate."""

    def __init__(self) -> None:
        super().__init__(type(self).__doc__)


def train(
    data: TrainingData,
    config: TrainingConfig,
    out: Path,
    progress: Callable[[Progress], None],
    *,
    created: float,
    force: bool = False,
    finish: bool = False,
) -> Manifest:
    """Train a network on `data` and write it as a bundle at `out`; go on where an interrupted training left off.

    `created` is the unix time to be written in the manifest. `force` replaces a bundle at `out` and throws away an
    unfinished training with other options. `finish` fits no further and uses the best checkpoint that there is.

    Raises:
        DataError: the rows cannot carry the training, or an option makes no sense.
        BundleError: something is in the way at `out` (check "exists"), another training is at work there ("busy"), or the
            engine does not reproduce the network ("canary").
        TrainingInterrupted: Ctrl-C; what was reached is kept.
        OSError: the disk is full, or `out` may not be written.
    """
    check_config(config)
    if out.exists() and not force:
        raise BundleError(f"{out} exists already. Choose another place, or have it replaced (--force).", check="exists")
    with workdir.hold(out):
        begin(data, config, out, force=force, finish=finish)
        return go_on(out, progress, created=created, force=force, finish=finish)


def begin(data: TrainingData, config: TrainingConfig, out: Path, *, force: bool, finish: bool) -> workdir.Work:
    """Put down what `go_on` needs, for a caller that holds the training of `out` (`workdir.hold`) and has checked `config`.

    Raises as `train` does, before anything is written.
    """
    split(data, config.encoder_length, config.horizon, config.validation, config.test)
    if finish and not (workdir.place(out) / workdir.BEST).exists():
        raise DataError(
            f"No training of {out} has finished an epoch yet: there is no checkpoint to write a bundle from. "
            "Train first, without --finish."
        )
    return workdir.begin(out, data, config, anew=force)


def go_on(
    out: Path, progress: Callable[[Progress], None], *, created: float, force: bool, finish: bool = False
) -> Manifest:
    """Carry the training of `out` that has begun to its end, from its last checkpoint on.

    May be called again with the same arguments when the process that was at it has died, whenever that was: a bundle that
    it had written already is not written twice. Raises as `train` does.
    """
    try:
        with workdir.alone(out) as begun:
            work = workdir.find(out) if begun else None
            manifest = _written(out, work, int(created))
            if manifest is None:
                if work is None:
                    raise DataError(f"The training of {out} was taken away while it was at work. Train again.")
                manifest = _carry_on(work, out, progress, created=int(created), force=force, finish=finish)
            if work is not None:
                work.remove()
            return manifest
    except KeyboardInterrupt:
        place = workdir.place(out)
        raise TrainingInterrupted(place, kept=(place / workdir.BEST).exists()) from None


def _written(out: Path, work: workdir.Work | None, created: int) -> Manifest | None:
    """The bundle of this very training, if it has been written."""
    try:
        manifest = read_manifest(out)
    except BundleError:
        return None
    made = manifest.training
    same = work is None or (dict(made.config), made.data_sha256) == (work.config, work.data.data_sha256)
    return manifest if made.created == created and same else None


def _carry_on(
    work: workdir.Work, out: Path, progress: Callable[[Progress], None], *, created: int, force: bool, finish: bool
) -> Manifest:
    data, config = work.data, work.options()
    parts = split(data, config.encoder_length, config.horizon, config.validation, config.test)
    job = _Job(data, config, _network(data, config), _scalers(data, parts.train), parts)
    meter = _meter(job, progress)
    try:
        model = _fit(job, work, meter, finish=finish)
        meter.step("score", 0)
        bundle = _export(job, model, out, created)
    except Diverged:
        work.remove()  # going on from there would end there
        raise
    meter.step("score", 1)
    engine = Engine(bundle)
    _check_engine(engine, model, bundle.canary)
    meter.step("score", 2)
    manifest = replace(bundle.manifest, metrics=_metrics(engine, job, meter))
    meter.step("write", 0)
    written = write_bundle(out, manifest, bundle.weights, bundle.canary, replace_old=force)
    meter.step("write", 1)
    return written


@dataclass(frozen=True, eq=False)
class _Job:
    """What a training is given, and what follows from it alone."""

    data: TrainingData
    config: TrainingConfig
    network: Network
    scalers: Mapping[str, Scaler]
    parts: Split


def _meter(job: _Job, progress: Callable[[Progress], None]) -> Meter:
    config, parts = job.config, job.parts
    held_out, tested = (len(part.thinned(config.scored_windows)) for part in (parts.validation, parts.test))
    return Meter(
        progress,
        epochs=config.epochs,
        batches=min(config.batches_per_epoch, -(-len(parts.train.origins) // config.batch_size)),
        checks=-(-held_out // config.batch_size),
        scored=-(-held_out // config.batch_size) + -(-tested // config.batch_size),
    )


def check_config(config: TrainingConfig) -> None:
    """Refuse options that make no sense.

    Raises:
        DataError: naming the option.
    """
    for name, least in LEAST.items():
        value, most = getattr(config, name), MOST.get(name, 2**32 - 1)
        if not least <= value <= most:
            raise DataError(f"{_option(name)} must be from {least} to {most}, not {value}.")
    if config.attention_heads > config.hidden_size:
        raise DataError(f"{config.attention_heads} attention heads need a hidden size of at least as many.")
    if not 0 <= config.dropout < 1:
        raise DataError(f"--dropout must be from 0 to below 1, not {config.dropout}.")
    if not 0 < config.learning_rate <= 1:
        raise DataError(f"--learning-rate must be above 0 and at most 1, not {config.learning_rate}.")
    if not min(config.validation, config.test, 1 - config.validation - config.test) > 0:
        raise DataError("validation and test must be shares above 0 that leave something to train on.")
    levels = config.levels
    inside, most = all(0 < level < 1 for level in levels), MOST["levels"]
    if not inside or list(levels) != sorted(set(levels)) or 0.5 not in levels or len(levels) > most:
        raise DataError(
            f"--levels must be at most {most} increasing probabilities between 0 and 1 with 0.5 among them, not "
            f"{', '.join(f'{level:g}' for level in levels)}."
        )


def _option(name: str) -> str:
    return f"--{name.removeprefix('attention_').replace('_', '-')}"


def _network(data: TrainingData, config: TrainingConfig) -> Network:
    encoder, decoder = network_reals(data.past_names, data.known_names)
    return Network(
        hidden_size=config.hidden_size,
        hidden_continuous_size=config.hidden_continuous_size,
        attention_heads=config.attention_heads,
        lstm_layers=config.lstm_layers,
        encoder_reals=encoder,
        decoder_reals=decoder,
        outputs=len(config.levels),
    )


def _scalers(data: TrainingData, part: Part) -> dict[str, Scaler]:
    """Mean and standard deviation of every feature over the finite rows of the training part, and of nothing else."""
    rows = slice(part.start, part.stop)
    found = {}
    for names, matrix in ((data.past_names, data.past), (data.known_names, data.known)):
        for name, column in zip(names, matrix[rows].T, strict=True):
            finite = column[np.isfinite(column)]
            found[name] = Scaler(center=float(finite.mean()), scale=float(finite.std()) or 1.0)
    return found


def _fit(job: _Job, work: workdir.Work, meter: Meter, *, finish: bool) -> Any:
    """The library's network with the best weights that were found, in eval mode on the CPU."""
    # One after the other, for each may take a minute on a busy disk.
    import torch  # noqa: F401

    meter.step("start", 1)
    import lightning.pytorch  # noqa: F401

    meter.step("start", 2)
    from models import fit, library

    meter.step("start", 3)
    config = job.config
    library.seed(config.seed)
    model = library.build(job.network, config.levels, config.encoder_length, config.horizon, config.dropout)
    library.start_from(model, _baselines(job).volatility.mean(axis=0))
    meter.step("start", 4)
    if not (work.finished or finish):
        windows = fit.Windows(job.data, job.scalers, config.encoder_length, config.horizon)
        meter.step("start", 5)
        train, held_out = job.parts.train.origins, job.parts.validation.thinned(config.scored_windows)
        if not fit.fit(model, fit.loaders(windows, train, held_out, config), config, work.path, meter.fitted):
            raise KeyboardInterrupt
        work.finish()
    fit.best_weights(model, work.path)
    return model.eval()


def _export(job: _Job, model: Any, out: Path, created: int) -> Bundle:
    """The bundle, in memory, without its metrics: the network's weights, and a canary made by the network itself."""
    from models.library import forward

    data, config, parts = job.data, job.config, job.parts
    state = model.state_dict()
    weights = {name: np.asarray(state[name].numpy(), dtype=np.float32) for name in expected_shapes(job.network)}
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise Diverged
    manifest = Manifest(
        name=config.name,
        past=data.past_names,
        known=data.known_names,
        scalers=job.scalers,
        step=data.step,
        encoder_length=config.encoder_length,
        horizon=config.horizon,
        levels=config.levels,
        network=job.network,
        training=Training(
            start=int(data.time[0]),
            end=int(data.time[-1]) + data.step,
            rows=len(data),
            data_sha256=data.data_sha256,
            source=data.source,
            synthetic=data.synthetic,
            created=created,
            parts={part.name: _interval(part, data) for part in (parts.train, parts.validation, parts.test)},
            config=asdict(config),
        ),
        versions=_versions(),
        metrics={},
        files={},
    )
    inputs = data.window(int(parts.test.origins[-1]), config.encoder_length, config.horizon)
    past, future, scale = Scaling(manifest).apply(inputs)
    canary = Canary(inputs, to_quantiles(forward(model, past[None], future[None])[0], scale))
    return Bundle(out, manifest, "", weights, canary, ())


def _check_engine(engine: Engine, model: Any, canary: Canary) -> None:
    """Hold the engine against the network it was exported from, on the canary."""
    difference = relative_difference(engine.predict(canary.inputs).quantiles, canary.quantiles)
    if not difference <= TOLERANCE:
        raise BundleError(
            f"The engine differs from the trained {type(model).__name__} by {difference:.1e} of the quantile range; "
            f"{TOLERANCE:.0e} is allowed, so no bundle was written. The installed pytorch-forecasting may have changed.",
            check="canary",
        )


def _baselines(job: _Job) -> Baselines:
    origins = job.parts.train.thinned(BASELINE_WINDOWS)
    returns = job.data.outcome(origins, job.config.horizon)
    return fit_baselines(returns, _target_scales(origins, job), job.config.levels)


def _metrics(engine: Engine, job: _Job, meter: Meter) -> dict[str, object]:
    baselines = _baselines(job)
    found, done = dict[str, object](), 0.0
    for part in (job.parts.validation, job.parts.test):
        origins = part.thinned(job.config.scored_windows)
        share, before = len(origins) / job.config.batch_size, done
        meter.scored(before)

        def tell(steps: int, total: int, before: float = before, share: float = share) -> None:
            meter.scored(before + share * steps / total)

        found[part.name] = _score(engine, baselines, job, part, origins, tell=tell)
        done += share
    return found


def _score(
    engine: Engine, baselines: Baselines, job: _Job, part: Part, origins: Indices, *, tell: Callable[[int, int], None]
) -> dict[str, object]:
    """The scores of the model and of the baselines on the same windows of one part."""
    length, horizon, levels = job.config.encoder_length, job.config.horizon, job.config.levels
    actual = job.data.outcome(origins, horizon)
    forecasts = engine.predict_batch([job.data.window(int(origin), length, horizon) for origin in origins], tell)
    quantiles = np.stack([forecast.quantiles for forecast in forecasts])
    every = {
        "model": (quantiles, quantiles[..., levels.index(0.5)]),
        **baselines.forecasts(_target_scales(origins, job)),
    }
    return {
        "windows": len(origins),
        "horizons": (part.stop - part.start - length) // horizon,  # that do not overlap
        **{name: score(q, point, actual, levels) for name, (q, point) in every.items()},
    }


def _target_scales(origins: Indices, job: _Job) -> FloatArray:
    rows = origins[:, None] + np.arange(1 - job.config.encoder_length, 1)
    return target_scale(job.data.target[rows], job.config.horizon)


def _interval(part: Part, data: TrainingData) -> Interval:
    return Interval(int(data.time[part.start]), int(data.time[part.stop - 1]) + data.step, len(part.origins))


def _versions() -> dict[str, str]:
    names = ("torch", "lightning", "pytorch-forecasting", "numpy", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
