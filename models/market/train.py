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

from models.base import FloatArray
from models.bundle.records import Interval, TrainingRecord
from models.errors import BundleError, TrainingDiverged
from models.market.baselines import MarketBaselines, fit_baselines
from models.market.bundle import MarketBundle, MarketCanary, read_market_manifest, write_market_bundle
from models.market.dataset import Indices, MarketData, MarketPart, MarketSplit, split
from models.market.engine import TOLERANCE, MarketEngine, MarketScaling, relative_difference, target_scale, to_quantiles
from models.market.manifest import MarketManifest, Scaler, TftConfig, network_reals
from models.market.metrics import score
from models.registry import TrainingTask, library_versions
from models.tft.parameters import export_parameters
from models.training import state
from models.training.config import TrainingConfig
from models.training.progress import ProgressMeter, TrainingProgress

BASELINE_WINDOWS = 20_000


def check_data(data: MarketData, config: TrainingConfig) -> None:
    """Refuse rows that cannot carry the training. Raises DataError."""
    split(data, config.encoder_length, config.horizon, config.validation, config.test)


def resume(
    work: state.TrainingState,
    out: Path,
    progress: Callable[[TrainingProgress], None],
    *,
    created: int,
    force: bool,
    finish: bool,
) -> MarketManifest:
    """From an unfinished training to a written bundle. Raises as `models.training.train` does."""
    data, config = work.data, work.read_config()
    if not isinstance(data, MarketData):
        raise TypeError(f"These are no rows of a market: {type(data).__name__}")
    parts = split(data, config.encoder_length, config.horizon, config.validation, config.test)
    run = _MarketRun(data, config, _make_network(data, config), _fit_scalers(data, parts.train), parts)
    meter = _make_meter(run, progress)
    try:
        model = _fit_network(run, work, meter, finish=finish)
        meter.report_stage("score", 0)
        bundle = _export(run, model, out, created)
    except TrainingDiverged:
        work.remove()  # going on from there would end there
        raise
    meter.report_stage("score", 1)
    engine = MarketEngine(bundle)
    _compare_engine(engine, model, bundle.canary)
    meter.report_stage("score", 2)
    manifest = replace(bundle.manifest, metrics=_score_parts(engine, run, meter))
    meter.report_stage("write", 0)
    written = write_market_bundle(out, manifest, bundle.weights, bundle.canary, replace_old=force)
    meter.report_stage("write", 1)
    return written


@dataclass(frozen=True, eq=False)
class _MarketRun:
    """What a training is given, and what follows from it alone."""

    data: MarketData
    config: TrainingConfig
    network: TftConfig
    scalers: Mapping[str, Scaler]
    parts: MarketSplit


def _make_meter(run: _MarketRun, progress: Callable[[TrainingProgress], None]) -> ProgressMeter:
    config, parts = run.config, run.parts
    held_out, tested = (len(part.thin(config.scored_windows)) for part in (parts.validation, parts.test))
    return ProgressMeter(
        progress,
        epochs=config.epochs,
        batches=min(config.batches_per_epoch, -(-len(parts.train.origins) // config.batch_size)),
        validation_batches=-(-held_out // config.batch_size),
        scoring_batches=-(-held_out // config.batch_size) + -(-tested // config.batch_size),
    )


def _make_network(data: MarketData, config: TrainingConfig) -> TftConfig:
    encoder, decoder = network_reals(data.past_names, data.known_names)
    return TftConfig(
        hidden_size=config.hidden_size,
        hidden_continuous_size=config.hidden_continuous_size,
        attention_heads=config.attention_heads,
        lstm_layers=config.lstm_layers,
        encoder_reals=encoder,
        decoder_reals=decoder,
        outputs=len(config.levels),
    )


def _fit_scalers(data: MarketData, part: MarketPart) -> dict[str, Scaler]:
    """Mean and standard deviation of every feature over the finite rows of the training part, and of nothing else."""
    rows = slice(part.start, part.stop)
    scalers = {}
    for names, matrix in ((data.past_names, data.past), (data.known_names, data.known)):
        for name, column in zip(names, matrix[rows].T, strict=True):
            finite = column[np.isfinite(column)]
            scalers[name] = Scaler(center=float(finite.mean()), scale=float(finite.std()) or 1.0)
    return scalers


def _fit_network(run: _MarketRun, work: state.TrainingState, meter: ProgressMeter, *, finish: bool) -> Any:
    """The library's network with the best weights that were found, in eval mode on the CPU."""
    # One after the other, for each may take a minute on a busy disk.
    import torch  # noqa: F401

    meter.report_stage("start", 1)
    import lightning.pytorch  # noqa: F401

    meter.report_stage("start", 2)
    from models.tft import torch_model
    from models.training import lightning as fitting

    meter.report_stage("start", 3)
    config = run.config
    torch_model.seed_all(config.seed)
    model = torch_model.build_network(run.network, config.levels, config.encoder_length, config.horizon, config.dropout)
    torch_model.initialise_output(model, _fit_baselines(run).volatility.mean(axis=0))
    meter.report_stage("start", 4)
    if not (work.finished or finish):
        windows = fitting.MarketWindowDataset(run.data, run.scalers, config.encoder_length, config.horizon)
        meter.report_stage("start", 5)
        train, held_out = run.parts.train.origins, run.parts.validation.thin(config.scored_windows)
        batches = fitting.make_loaders(windows, train, held_out, config)
        if not fitting.fit_module(fitting.QuantileModule(model, config), batches, config, work.path, meter.report_fit):
            raise KeyboardInterrupt
        work.mark_finished()
    fitting.load_best_weights(model, work.path)
    return model.eval()


def _export(run: _MarketRun, model: Any, out: Path, created: int) -> MarketBundle:
    """The bundle, in memory, without its metrics: the network's weights, and a canary made by the network itself."""
    from models.tft.torch_model import forward

    data, config, parts = run.data, run.config, run.parts
    weights = export_parameters(model, run.network)
    manifest = MarketManifest(
        name=config.name,
        past=data.past_names,
        known=data.known_names,
        scalers=run.scalers,
        step=data.step,
        encoder_length=config.encoder_length,
        horizon=config.horizon,
        levels=config.levels,
        network=run.network,
        training=TrainingRecord(
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
        versions=library_versions(),
        metrics={},
        files={},
    )
    inputs = data.window(int(parts.test.origins[-1]), config.encoder_length, config.horizon)
    past, future, scale = MarketScaling(manifest).apply(inputs)
    canary = MarketCanary(inputs, to_quantiles(forward(model, past[None], future[None])[0], scale))
    return MarketBundle(out, manifest, "", weights, canary, ())


def _compare_engine(engine: MarketEngine, model: Any, canary: MarketCanary) -> None:
    """Hold the engine against the network it was exported from, on the canary."""
    difference = relative_difference(engine.predict(canary.inputs).quantiles, canary.quantiles)
    if not difference <= TOLERANCE:
        raise BundleError(
            f"The engine differs from the trained {type(model).__name__} by {difference:.1e} of the quantile range; "
            f"{TOLERANCE:.0e} is allowed, so no bundle was written. The installed pytorch-forecasting may have changed.",
            check="canary",
        )


def _fit_baselines(run: _MarketRun) -> MarketBaselines:
    origins = run.parts.train.thin(BASELINE_WINDOWS)
    returns = run.data.outcomes(origins, run.config.horizon)
    return fit_baselines(returns, _target_scales(origins, run), run.config.levels)


def _score_parts(engine: MarketEngine, run: _MarketRun, meter: ProgressMeter) -> dict[str, object]:
    baselines = _fit_baselines(run)
    scores, scored_batches = dict[str, object](), 0.0
    for part in (run.parts.validation, run.parts.test):
        origins = part.thin(run.config.scored_windows)
        share, before = len(origins) / run.config.batch_size, scored_batches
        meter.report_scoring(before)

        def tell(steps: int, total: int, before: float = before, share: float = share) -> None:
            meter.report_scoring(before + share * steps / total)

        scores[part.name] = _score_part(engine, baselines, run, part, origins, report=tell)
        scored_batches += share
    return scores


def _score_part(
    engine: MarketEngine,
    baselines: MarketBaselines,
    run: _MarketRun,
    part: MarketPart,
    origins: Indices,
    *,
    report: Callable[[int, int], None],
) -> dict[str, object]:
    """The scores of the model and of the baselines on the same windows of one part."""
    length, horizon, levels = run.config.encoder_length, run.config.horizon, run.config.levels
    actual = run.data.outcomes(origins, horizon)
    forecasts = engine.predict_batch([run.data.window(int(origin), length, horizon) for origin in origins], report)
    quantiles = np.stack([forecast.quantiles for forecast in forecasts])
    candidates = {
        "model": (quantiles, quantiles[..., levels.index(0.5)]),
        **baselines.forecasts(_target_scales(origins, run)),
    }
    return {
        "windows": len(origins),
        "horizons": (part.stop - part.start - length) // horizon,  # that do not overlap
        **{name: score(q, point, actual, levels) for name, (q, point) in candidates.items()},
    }


def _target_scales(origins: Indices, run: _MarketRun) -> FloatArray:
    rows = origins[:, None] + np.arange(1 - run.config.encoder_length, 1)
    return target_scale(run.data.target[rows], run.config.horizon)


def _interval(part: MarketPart, data: MarketData) -> Interval:
    return Interval(int(data.time[part.start]), int(data.time[part.stop - 1]) + data.step, len(part.origins))


TASK = TrainingTask(
    rows_type=MarketData,
    config_type=TrainingConfig,
    check_options=lambda _: None,
    check_data=check_data,
    resume=resume,
    read_manifest=read_market_manifest,
)
