"""From a market's rows to a checked bundle: split, scale, fit, compare with the baselines, export, write.

The weights of the library's network are exported, and the engine that will run them is held against the network itself:
a bundle whose engine differs is never written. Torch and Lightning are imported by `carry_on` only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models import workdir
from models.base import FloatArray
from models.baselines import Baselines, fit_baselines
from models.bundle import Bundle, Canary, read_manifest, write_bundle
from models.config import TrainingConfig
from models.engines import TOLERANCE, Engine, Scaling, relative_difference, target_scale, to_quantiles
from models.errors import BundleError, Diverged
from models.evaluation import score
from models.kinds import Kind, versions
from models.manifest import Manifest, Network, Scaler, network_reals
from models.progress import Meter, Progress
from models.records import Interval, Training
from models.shapes import exported
from models.windows import Indices, Part, Split, TrainingData, split

BASELINE_WINDOWS = 20_000


def prepare(data: TrainingData, config: TrainingConfig) -> None:
    """Refuse rows that cannot carry the training. Raises DataError."""
    split(data, config.encoder_length, config.horizon, config.validation, config.test)


def carry_on(
    work: workdir.Work, out: Path, progress: Callable[[Progress], None], *, created: int, force: bool, finish: bool
) -> Manifest:
    """From an unfinished training to a written bundle. Raises as `models.training.train` does."""
    data, config = work.data, work.options()
    if not isinstance(data, TrainingData):
        raise TypeError(f"These are no rows of a market: {type(data).__name__}")
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
        batches = fit.loaders(windows, train, held_out, config)
        if not fit.fit(fit.Fit(model, config), batches, config, work.path, meter.fitted):
            raise KeyboardInterrupt
        work.finish()
    fit.best_weights(model, work.path)
    return model.eval()


def _export(job: _Job, model: Any, out: Path, created: int) -> Bundle:
    """The bundle, in memory, without its metrics: the network's weights, and a canary made by the network itself."""
    from models.library import forward

    data, config, parts = job.data, job.config, job.parts
    weights = exported(model, job.network)
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
        versions=versions(),
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


TRADE = Kind(
    rows=TrainingData,
    config=TrainingConfig,
    check=lambda _: None,
    prepare=prepare,
    carry_on=carry_on,
    read_manifest=read_manifest,
)
