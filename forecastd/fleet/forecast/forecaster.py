"""Forecasts a whole fleet: the model in a supervised child, and the heuristic for servers the model cannot forecast.

Invariant: servers are matched by name, and the child's rows are placed by name. A server that the model cannot
forecast is never left out or mixed up with another: it gets the heuristic, and its forecast says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, SkipEpoch, has_extra, require_extra
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.forecast.fleet_forecast import HEURISTIC, STORED_LEVELS, TFT, FleetForecast
from forecastd.fleet.forecast.heuristic import heuristic_forecast
from forecastd.fleet.window.readiness import PreparedInput, prepare_input
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.fleet_runner import FleetResult, fleet_job, fleet_setup
from forecastd.inference.quantile_json import metrics_json
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise.events import Observer, SupervisionCounts
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.errors import BundleError
from models.fleet.base import FleetInput
from models.fleet.bundle import read_fleet_manifest
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

ENGINE_EXTRAS = {"library": "train", "onnx": "onnx", "stream": "onnx"}  # the extra that an engine needs


class FleetForecaster(Closeable):
    """Runs one bundle in children of its own. Use as a context manager: leaving ends them.

    `manifest`: the manifest of the bundle. Not thread-safe.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        policy: SupervisionPolicy,
        clock: Clock,
        engine: str = "auto",
        threads: int = 2,
        step: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Read the manifest, check it against the contract and `step`, and start the children.

        Raises:
            NeedsHuman: there is no bundle, its manifest is invalid, or it is for other metrics or another step; or
                the libraries of the engine are not installed.
        """
        self.manifest = load_compatible_manifest(bundle, step)
        if engine in ENGINE_EXTRAS:
            require_extra(ENGINE_EXTRAS[engine], f"The engine {engine}")
        elif engine == "auto" and not has_extra("onnx"):
            log.warning("ONNX Runtime is not installed, so the engine is fused. Faster: pip install 'forecastd[onnx]'.")
        self.engine = engine
        self._policy, self._clock = policy, clock
        columns = [METRIC_INDEX[name] for name in self.manifest.names]
        self._metrics = tuple(METRICS[column] for column in columns)
        # Columns of a block; a slice avoids a copy.
        self._columns = slice(None) if columns == list(range(len(METRICS))) else columns
        setup = fleet_setup(bundle, self.manifest.name, engine, threads)
        self._pool = ProcessPool(setup, policy, clock, observer=observer)

    @property
    def counts(self) -> SupervisionCounts:
        """The counters of supervision."""
        return self._pool.counts

    def children(self) -> list[dict[str, object]]:
        """The state of every child."""
        return self._pool.children()

    def wait_until_ready(self, seconds: float | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> str:
        """Wait until a child has loaded the bundle and passed its canary; returns the bundle's sha256.

        `is_cancelled` is called every second; the wait ends when it returns True.

        Raises:
            NeedsHuman: the bundle is invalid.
            SkipEpoch: no child became ready.
        """
        try:
            sha256 = self._pool.wait_ready(self._policy.ready_seconds if seconds is None else seconds, is_cancelled)
        except ModelFailed as error:
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            raise SkipEpoch(str(error), check="model_process") from error
        return sha256

    def prepare_input(self, block: WindowBlock) -> PreparedInput:
        """Which servers of a block the model can forecast, judged by the metrics of the model."""
        manifest = self.manifest
        values = block.values[:, -manifest.encoder_length :, self._columns]
        return prepare_input(values, manifest.encoder_minimum, manifest.names)

    def forecast(
        self,
        block: WindowBlock,
        prepared: PreparedInput | None = None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> FleetForecast:
        """The forecast of every server of a block that ends with the newest tick.

        Raises:
            SkipEpoch: no child finished the forecast, or the model failed.
        """
        started = self._clock.monotonic()
        manifest = self.manifest
        prepared = self.prepare_input(block) if prepared is None else prepared
        ready = np.flatnonzero(prepared.lengths)
        unready = np.flatnonzero(prepared.lengths == 0)
        levels, metrics = manifest.levels, self._metrics
        shape = len(block.servers), len(metrics), len(levels), manifest.horizon
        model_forecast = self._run_model(block, prepared, ready, is_cancelled) if len(ready) else None
        if model_forecast is not None and not len(unready):
            quantiles, encoded_rows = model_forecast.quantiles, list(model_forecast.encoded)
        else:
            quantiles, encoded_rows = np.empty(shape, dtype=np.float32), [b""] * shape[0]
            if model_forecast is not None:
                quantiles[ready] = model_forecast.quantiles
            heuristic_quantiles = heuristic_forecast(
                block.values[unready][:, :, self._columns], manifest.horizon, levels, metrics
            )
            quantiles[unready] = heuristic_quantiles.transpose(0, 2, 3, 1)
            heuristic_json = metrics_json(quantiles[unready], metrics, levels, STORED_LEVELS)
            for rows, encoded_part in (
                (ready, model_forecast.encoded if model_forecast else ()),
                (unready, heuristic_json),
            ):
                for row, row_json in zip(rows.tolist(), encoded_part, strict=True):
                    encoded_rows[row] = row_json
        is_ready = prepared.lengths > 0
        return FleetForecast(
            tick=block.tick,
            step=manifest.step,
            made_at=self._clock.now(),
            seconds=self._clock.monotonic() - started,
            metrics=manifest.names,
            levels=levels,
            servers=block.servers,
            profiles=block.profiles,
            models=tuple(TFT if ready_row else HEURISTIC for ready_row in is_ready.tolist()),
            quantiles=quantiles.transpose(0, 3, 1, 2),
            bundle=manifest.name,
            bundle_sha256=manifest.sha256,
            engine=self.engine,
        ).with_encoded(encoded_rows)

    def _run_model(
        self, block: WindowBlock, prepared: PreparedInput, ready: NDArray[np.int64], is_cancelled: Callable[[], bool]
    ) -> FleetResult:
        """Forecast the servers that are ready, in a child."""
        manifest, all_ready = self.manifest, len(ready) == len(block.servers)
        inputs = FleetInput(
            tick=block.tick,
            step=manifest.step,
            servers=block.servers if all_ready else tuple(block.servers[row] for row in ready),
            profiles=block.profiles if all_ready else tuple(block.profiles[row] for row in ready),
            values=_pad_to_length(prepared.filled if all_ready else prepared.filled[ready], manifest.encoder_length),
            lengths=prepared.lengths if all_ready else prepared.lengths[ready],
        )
        deadline = self._clock.monotonic() + self._policy.forecast_seconds
        job = fleet_job(inputs, manifest, served=STORED_LEVELS, deadline=deadline, attempts=self._policy.attempts)
        try:
            answer: FleetResult = self._pool.run(job, is_cancelled)
        except (ModelFailed, ChildFailed) as error:
            raise SkipEpoch(str(error), check="fleet_forecast") from error
        return answer

    def close(self) -> None:
        """End the children."""
        self._pool.close()


def load_compatible_manifest(bundle: Path, step: int | None = None) -> FleetManifest:
    """The manifest of a bundle that this fleet can run.

    Raises:
        NeedsHuman: there is no bundle, its manifest is invalid, or it is for other metrics, other units or another
            step.
    """
    try:
        manifest = read_fleet_manifest(bundle)
    except BundleError as error:
        raise NeedsHuman(str(error)) from error
    for metric in manifest.metrics:
        definition = METRICS[METRIC_INDEX[metric.name]] if metric.name in METRIC_INDEX else None
        if definition is None or definition.unit != metric.unit:
            description = f"{metric.name} in {metric.unit}" if definition else metric.name
            raise NeedsHuman(
                f"The model {bundle} forecasts {description}, which is not in the fleet's contract. "
                "Train a model on this fleet with `forecastd fleet train`."
            )
    if step is not None and manifest.step != step:
        raise NeedsHuman(
            f"The model {bundle} was trained on ticks of {manifest.step} s, but the fleet uses {step} s. "
            "Set FLEET_STEP to the model's step, or train a model with this step using `forecastd fleet train`."
        )
    return manifest


def _pad_to_length(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """`[S, L, M]` padded to the length of the encoder; a short block is padded at its start."""
    missing_steps = length - values.shape[1]
    return values if missing_steps <= 0 else np.pad(values, ((0, 0), (missing_steps, 0), (0, 0)))
