"""From the rows of a market to a checked bundle: the steps of `models.training.run` for a market.

The weights of the library's network are exported, and the engine that will run them is compared with the network itself.
Invariant: a bundle whose engine differs from the network is never written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from models.base import FloatArray
from models.market.bundle import MarketBundle, make_market_canary
from models.market.dataset import MarketData, MarketPart, split
from models.market.engine import (
    TOLERANCE,
    MarketEngine,
    MarketScaling,
    canary_difference,
    target_scale,
    to_quantiles,
)  # fmt: skip
from models.market.evaluation import MarketBaselines, fit_baselines, score
from models.market.manifest import MarketManifest, Scaler, network_reals
from models.tft.config import TftConfig
from models.tft.parameters import export_parameters
from models.training.config import TrainingConfig
from models.training.data import Indices, Split
from models.training.task import TrainingTask

BASELINE_WINDOWS = 20_000


class MarketTask(TrainingTask[MarketPart, MarketEngine]):
    """The training of a market model."""

    ROWS, CONFIG, MANIFEST, TOLERANCE = MarketData, TrainingConfig, MarketManifest, TOLERANCE
    LIBRARIES = ("models.market.batches", "models.tft.torch_model")

    rows: MarketData

    def split(self) -> Split[MarketPart]:
        """See `TrainingTask.split`."""
        return split(self.rows, self.config)

    @cached_property
    def network(self) -> TftConfig:
        """The sizes of the network."""
        return self.config.make_network(network_reals(self.rows.past_names, self.rows.known_names))

    @cached_property
    def scalers(self) -> Mapping[str, Scaler]:
        """Mean and standard deviation of every feature over the finite rows of the train part alone."""
        data, rows = self.rows, slice(self.parts.train.start, self.parts.train.stop)
        scalers = {}
        for names, matrix in ((data.past_names, data.past), (data.known_names, data.known)):
            for name, column in zip(names, matrix[rows].T, strict=True):
                finite = column[np.isfinite(column)]
                scalers[name] = Scaler(center=float(finite.mean()), scale=float(finite.std()) or 1.0)
        return scalers

    @cached_property
    def baselines(self) -> MarketBaselines:
        """The baselines, fitted to windows of the train part."""
        origins = self.parts.train.thin(BASELINE_WINDOWS)
        returns = self.rows.outcomes(origins, self.config.horizon)
        return fit_baselines(returns, self._target_scales(origins), self.config.levels)

    def count_scored(self, part: MarketPart) -> int:
        """See `TrainingTask.count_scored`."""
        return len(part.thin(self.config.scored_windows))

    def build_network(self) -> Any:
        """See `TrainingTask.build_network`; it predicts about the distribution of the returns, not noise around zero.

        Otherwise the first epochs are spent on the width of the distribution, which the baselines give.
        """
        import torch

        from models.tft.torch_model import build_network

        network = build_network(self.network, self.config.levels, self.config.encoder_length, self.config.dropout)
        with torch.no_grad():
            network.output_layer.weight.mul_(0.1)
            network.output_layer.bias.copy_(torch.as_tensor(self.baselines.volatility.mean(axis=0)))
        return network

    def prepare_fit(self, network: Any) -> Any:
        """See `TrainingTask.prepare_fit`."""
        from models.market.batches import (
            MarketBatchSampler,
            MarketQuantileModule,
            MarketWindowDataset,
            validation_batches,
        )
        from models.training.lightning import FitInput

        config, parts = self.config, self.parts
        return FitInput(
            module=MarketQuantileModule(network, config),
            windows=MarketWindowDataset(self.rows, self.scalers, config.encoder_length, config.horizon),
            sampler=MarketBatchSampler(parts.train.windows, config),
            validation=validation_batches(parts.validation.thin(config.scored_windows), config.batch_size),
        )

    def export(self, network: Any, out: Path, created: int) -> MarketBundle:
        """See `TrainingTask.export`."""
        from models.tft.torch_model import forward

        weights = export_parameters(network, self.network)
        manifest = MarketManifest(
            **self.manifest_fields(created),
            past=self.rows.past_names,
            known=self.rows.known_names,
            scalers=self.scalers,
            network=self.network,
        )
        origin = int(self.parts.test.windows[-1])
        inputs = self.rows.window(origin, self.config.encoder_length, self.config.horizon)
        past, future, scale = MarketScaling(manifest).apply(inputs)
        outputs = forward(network, self.network, past[None], future[None])[0, :, 0].astype(np.float64)
        return MarketBundle(out, manifest, weights, make_market_canary(inputs, to_quantiles(outputs, scale)))

    def load_engine(self, bundle: MarketBundle) -> tuple[MarketEngine, float]:
        """See `TrainingTask.load_engine`."""
        engine = MarketEngine(bundle)
        return engine, canary_difference(bundle, engine)

    def score(self, part: MarketPart, engine: MarketEngine, report: Callable[[float], None]) -> object:
        """See `TrainingTask.score`."""
        length, horizon, levels = self.config.encoder_length, self.config.horizon, self.config.levels
        origins = part.thin(self.config.scored_windows)
        actual = self.rows.outcomes(origins, horizon)
        windows = [self.rows.window(int(origin), length, horizon) for origin in origins]
        forecasts = engine.predict_batch(windows, lambda done, total: report(done / total))
        quantiles = np.stack([forecast.quantiles for forecast in forecasts])
        candidates = {
            "model": (quantiles, quantiles[..., levels.index(0.5)]),
            **self.baselines.forecasts(self._target_scales(origins)),
        }
        return {
            "windows": len(origins),
            "horizons": (part.stop - part.start - length) // horizon,  # that do not overlap
            **{name: score(q, point, actual, levels) for name, (q, point) in candidates.items()},
        }

    def _target_scales(self, origins: Indices) -> FloatArray:
        rows = origins[:, None] + np.arange(1 - self.config.encoder_length, 1)
        return target_scale(self.rows.target[rows], self.config.horizon)
