"""Forecasts a whole fleet: the model in a supervised child, and the heuristic for servers the model cannot forecast.

Invariant: servers are matched by name, and the child's rows are placed by name. A server that the model cannot
forecast is never left out or mixed up with another: it gets the heuristic, and its forecast says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Unpack

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman, has_extra, require_extra
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.forecast.fleet_forecast import HEURISTIC, STORED_LEVELS, TFT, FleetForecast
from forecastd.fleet.forecast.heuristic import heuristic_forecast
from forecastd.fleet.window.readiness import PreparedInput, prepare_input
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.fleet_runner import FleetResult, fleet_job, fleet_setup
from forecastd.inference.quantile_json import QuantileJsonWriter
from forecastd.inference.supervised_model import ModelOptions, SupervisedModel
from forecastd.supervise.jobs import ChildSetup, Job
from models.fleet.base import FleetInput
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

ENGINE_EXTRAS = {"library": "train", "onnx": "onnx", "stream": "onnx"}  # the extra that an engine needs


class FleetForecaster(SupervisedModel[FleetManifest]):
    """Runs one fleet bundle in children of its own."""

    manifest_type = FleetManifest
    retry_seconds = (30.0, 600.0)

    def __init__(
        self,
        bundle: Path,
        *,
        engine: str = "auto",
        threads: int = 2,
        step: int | None = None,
        **options: Unpack[ModelOptions[FleetManifest]],
    ) -> None:
        """See `SupervisedModel`. A bundle for other metrics than the contract's, or for another `step`, is refused, and
        an engine whose libraries are not installed."""
        if engine in ENGINE_EXTRAS:
            require_extra(ENGINE_EXTRAS[engine], f"The engine {engine}")
        elif engine == "auto" and not has_extra("onnx"):
            log.warning("ONNX Runtime is not installed, so the engine is fused. Faster: pip install 'forecastd[onnx]'.")
        self.engine = engine
        self._threads, self._step = threads, step
        self._kept_bundle: Path | None = None
        super().__init__(bundle, **options)

    def _setup(self, bundle: Path, manifest: FleetManifest) -> ChildSetup:
        return fleet_setup(bundle, manifest.name, self.engine, self._threads)

    def _accept(self, bundle: Path, manifest: FleetManifest) -> None:
        for metric in manifest.metrics:
            definition = METRICS[METRIC_INDEX[metric.name]] if metric.name in METRIC_INDEX else None
            if definition is None or definition.unit != metric.unit:
                description = f"{metric.name} in {metric.unit}" if definition else metric.name
                raise NeedsHuman(
                    f"The model {bundle} forecasts {description}, which is not in the fleet's contract. "
                    "Train a model on this fleet with `forecastd fleet train`."
                )
        if self._step is not None and manifest.step != self._step:
            raise NeedsHuman(
                f"The model {bundle} was trained on ticks of {manifest.step} s, but the fleet uses {self._step} s. Set "
                "FLEET_STEP to the model's step, or train a model with this step using `forecastd fleet train`."
            )
        super()._accept(bundle, manifest)
        columns = [METRIC_INDEX[name] for name in manifest.names]
        self._metrics = tuple(METRICS[column] for column in columns)
        # Columns of a block; a slice avoids a copy.
        self._columns = slice(None) if columns == list(range(len(METRICS))) else columns

    def prepare_input(self, block: WindowBlock) -> PreparedInput:
        """Which servers of a block the model can forecast, judged by the metrics of the model."""
        manifest = self.manifest
        values = block.values[:, -manifest.encoder_length :, self._columns]
        return prepare_input(values, manifest.encoder_minimum, manifest.names)

    def forecast(self, block: WindowBlock, should_stop: Callable[[], bool] = lambda: False) -> FleetForecast:
        """The forecast of every server of a block that ends with the newest tick.

        Raises:
            SkipEpoch: no child finished the forecast, or the model failed.
            NeedsHuman: the model is invalid now, and there is no fallback.
        """
        started = self._clock.monotonic()
        result: FleetResult | None = None
        while True:
            manifest, prepared = self.manifest, self.prepare_input(block)
            is_ready = prepared.lengths > 0
            if not is_ready.any():
                break
            result = self._run(self._make_job(block, prepared, np.flatnonzero(is_ready)), should_stop)
            if result is not None:
                break
        if result is not None and self._kept_bundle != self.bundle:
            self.keep_bundle()
            self._kept_bundle = self.bundle
        quantiles, encoded = self._add_heuristic(block, is_ready, result)
        return FleetForecast(
            tick=block.tick,
            step=manifest.step,
            made_at=self._clock.now(),
            seconds=self._clock.monotonic() - started,
            metrics=manifest.names,
            levels=manifest.levels,
            servers=block.servers,
            profiles=block.profiles,
            models=tuple(TFT if ready_row else HEURISTIC for ready_row in is_ready.tolist()),
            quantiles=quantiles.transpose(0, 3, 1, 2),
            bundle=manifest.name,
            bundle_sha256=manifest.sha256,
            engine=self.engine,
        ).with_encoded(encoded)

    def _make_job(self, block: WindowBlock, prepared: PreparedInput, ready: NDArray[np.intp]) -> Job:
        """The forecast of the servers that are ready."""
        manifest, all_ready = self.manifest, len(ready) == len(block.servers)
        inputs = FleetInput(
            tick=block.tick,
            step=manifest.step,
            servers=block.servers if all_ready else tuple(block.servers[row] for row in ready),
            profiles=block.profiles if all_ready else tuple(block.profiles[row] for row in ready),
            values=_pad_to_length(prepared.filled if all_ready else prepared.filled[ready], manifest.encoder_length),
            lengths=prepared.lengths if all_ready else prepared.lengths[ready],
        )
        deadline, attempts = self._job_deadline(), self._policy.attempts
        return fleet_job(inputs, manifest, served=STORED_LEVELS, deadline=deadline, attempts=attempts)

    def _add_heuristic(
        self, block: WindowBlock, is_ready: NDArray[np.bool_], result: FleetResult | None
    ) -> tuple[NDArray[np.float32], list[bytes]]:
        """Quantiles `[S, M, Q, H]` and the JSON of all servers: those of the model, and the heuristic's for the others."""
        if result is not None and is_ready.all():
            return result.quantiles, list(result.encoded)
        manifest, metrics = self.manifest, self._metrics
        shape = len(block.servers), len(metrics), len(manifest.levels), manifest.horizon
        quantiles = np.empty(shape, dtype=np.float32)
        if result is not None:
            quantiles[is_ready] = result.quantiles
        values = block.values[~is_ready][:, :, self._columns]
        heuristic = heuristic_forecast(values, manifest.horizon, manifest.levels, metrics)
        quantiles[~is_ready] = heuristic.transpose(0, 2, 3, 1)
        write = QuantileJsonWriter(metrics, manifest.levels, STORED_LEVELS)
        model_json, heuristic_json = iter(result.encoded if result else ()), iter(write(quantiles[~is_ready]))
        return quantiles, [next(model_json if ready_row else heuristic_json) for ready_row in is_ready.tolist()]


def _pad_to_length(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """`[S, L, M]` padded to the length of the encoder; a short block is padded at its start."""
    missing_steps = length - values.shape[1]
    return values if missing_steps <= 0 else np.pad(values, ((0, 0), (missing_steps, 0), (0, 0)))
