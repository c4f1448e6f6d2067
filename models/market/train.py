"""From the rows of a market to a checked bundle: the steps of `models.training.run` for a market.

The weights of the library's network are exported, and the engine that will run them is compared with the network itself.
Invariant: a bundle whose engine differs from the network is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from models.base import FloatArray
from models.bundle.records import Interval, TrainingRecord
from models.errors import BundleError
from models.market.baselines import MarketBaselines, fit_baselines
from models.market.bundle import MarketBundle, MarketCanary, read_market_manifest, write_market_bundle
from models.market.dataset import Indices, MarketData, MarketPart, MarketSplit, split
from models.market.engine import TOLERANCE, MarketEngine, MarketScaling, relative_difference, target_scale, to_quantiles
from models.market.manifest import MarketManifest, Scaler, network_reals
from models.market.metrics import score
from models.tft.config import TftConfig
from models.tft.parameters import export_parameters
from models.training.config import TrainingConfig
from models.training.task import BatchCounts, TrainingTask, library_versions

BASELINE_WINDOWS = 20_000


@dataclass(frozen=True, eq=False)
class _MarketRun:
    """The inputs of a training run, and values derived only from them."""

    data: MarketData
    config: TrainingConfig
    network: TftConfig
    scalers: Mapping[str, Scaler]
    parts: MarketSplit


class MarketTask(
    TrainingTask[MarketData, TrainingConfig, MarketSplit, _MarketRun, MarketBundle, MarketEngine, MarketManifest]
):
    """The training of a market model."""

    rows_type = MarketData
    config_type = TrainingConfig

    def check_options(self, config: TrainingConfig) -> None:
        """A market has no options of its own."""

    def check_data(self, rows: MarketData, config: TrainingConfig) -> None:
        """See `TrainingTask.check_data`."""
        self.split(rows, config)

    def split(self, rows: MarketData, config: TrainingConfig) -> MarketSplit:
        """See `TrainingTask.split`."""
        return split(rows, config.encoder_length, config.horizon, config.validation, config.test)

    def count_batches(self, rows: MarketData, config: TrainingConfig, parts: MarketSplit) -> BatchCounts:
        """See `TrainingTask.count_batches`."""
        validation, test = (
            -(-len(part.thin(config.scored_windows)) // config.batch_size) for part in (parts.validation, parts.test)
        )
        train = min(config.batches_per_epoch, -(-len(parts.train.origins) // config.batch_size))
        return BatchCounts(train, validation, validation + test)

    def load_libraries(self) -> None:
        """See `TrainingTask.load_libraries`."""
        import models.market.batches
        import models.tft.torch_model  # noqa: F401

    def make_run(self, rows: MarketData, config: TrainingConfig, parts: MarketSplit) -> _MarketRun:
        """See `TrainingTask.make_run`."""
        return _MarketRun(rows, config, _make_network(rows, config), _fit_scalers(rows, parts.train), parts)

    def build_network(self, run: _MarketRun) -> Any:
        """See `TrainingTask.build_network`."""
        from models.tft.torch_model import build_network, initialize_output

        config = run.config
        network = build_network(run.network, config.levels, config.encoder_length, config.horizon, config.dropout)
        initialize_output(network, _fit_baselines(run).volatility.mean(axis=0))
        return network

    def make_module(self, run: _MarketRun, network: Any) -> tuple[Any, tuple[Any, Any]]:
        """See `TrainingTask.make_module`."""
        from models.market.batches import MarketQuantileModule, MarketWindowDataset, make_loaders

        config, parts = run.config, run.parts
        windows = MarketWindowDataset(run.data, run.scalers, config.encoder_length, config.horizon)
        validation = parts.validation.thin(config.scored_windows)
        return MarketQuantileModule(network, config), make_loaders(windows, parts.train.origins, validation, config)

    def export(self, run: _MarketRun, network: Any, out: Path, created: int) -> MarketBundle:
        """See `TrainingTask.export`; the canary's quantiles are the network's own."""
        from models.tft.torch_model import forward

        weights, manifest = export_parameters(network, run.network), _make_manifest(run, created)
        origin = int(run.parts.test.origins[-1])
        inputs = run.data.window(origin, run.config.encoder_length, run.config.horizon)
        past, future, scale = MarketScaling(manifest).apply(inputs)
        canary = MarketCanary(inputs, to_quantiles(forward(network, past[None], future[None])[0], scale))
        return MarketBundle(out, manifest, "", weights, canary, ())

    def check_engine(self, bundle: MarketBundle, network: Any) -> tuple[MarketBundle, MarketEngine]:
        """See `TrainingTask.check_engine`."""
        engine, canary = MarketEngine(bundle), bundle.canary
        difference = relative_difference(engine.predict(canary.inputs).quantiles, canary.quantiles)
        if not difference <= TOLERANCE:
            raise BundleError(
                f"The engine differs from the trained {type(network).__name__} by {difference:.1e} of the quantile range; "
                f"{TOLERANCE:.0e} is allowed, so no bundle was written. The installed pytorch-forecasting may have "
                "changed.",
                check="canary",
            )
        return bundle, engine

    def score(self, run: _MarketRun, engine: MarketEngine, report: Callable[[float], None]) -> dict[str, object]:
        """See `TrainingTask.score`: the model and the baselines on the same windows."""
        baselines = _fit_baselines(run)
        scores, scored_batches = dict[str, object](), 0.0
        for part in (run.parts.validation, run.parts.test):
            origins = part.thin(run.config.scored_windows)
            share, before = len(origins) / run.config.batch_size, scored_batches
            report(before)

            def on_step(steps: int, total: int, before: float = before, share: float = share) -> None:
                report(before + share * steps / total)

            scores[part.name] = _score_part(engine, baselines, run, part, origins, on_step=on_step)
            scored_batches += share
        return scores

    def write(self, out: Path, bundle: MarketBundle, scores: dict[str, object], *, replace_old: bool) -> MarketManifest:
        """See `TrainingTask.write`."""
        manifest = replace(bundle.manifest, metrics=scores)
        return write_market_bundle(out, manifest, bundle.weights, bundle.canary, replace_old=replace_old)

    def read_manifest(self, path: Path) -> MarketManifest:
        """See `TrainingTask.read_manifest`."""
        return read_market_manifest(path)


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
    """Mean and standard deviation of every feature over the finite rows of the train part alone."""
    rows = slice(part.start, part.stop)
    scalers = {}
    for names, matrix in ((data.past_names, data.past), (data.known_names, data.known)):
        for name, column in zip(names, matrix[rows].T, strict=True):
            finite = column[np.isfinite(column)]
            scalers[name] = Scaler(center=float(finite.mean()), scale=float(finite.std()) or 1.0)
    return scalers


def _make_manifest(run: _MarketRun, created: int) -> MarketManifest:
    """The manifest without metrics and without records of the files."""
    data, config, parts = run.data, run.config, run.parts
    return MarketManifest(
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


def _fit_baselines(run: _MarketRun) -> MarketBaselines:
    origins = run.parts.train.thin(BASELINE_WINDOWS)
    returns = run.data.outcomes(origins, run.config.horizon)
    return fit_baselines(returns, _target_scales(origins, run), run.config.levels)


def _score_part(
    engine: MarketEngine,
    baselines: MarketBaselines,
    run: _MarketRun,
    part: MarketPart,
    origins: Indices,
    *,
    on_step: Callable[[int, int], None],
) -> dict[str, object]:
    """The scores of the model and of the baselines on the same windows of one part."""
    length, horizon, levels = run.config.encoder_length, run.config.horizon, run.config.levels
    actual = run.data.outcomes(origins, horizon)
    forecasts = engine.predict_batch([run.data.window(int(origin), length, horizon) for origin in origins], on_step)
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
