"""From a block of the window to a forecast of the whole fleet: one job for a supervised child, and a heuristic for the rest.

The one thing to know before changing it: servers are matched by their names, and the child's rows are put where the names
say. A server the model cannot forecast is never left out and never mixed up with one that it can: it gets the heuristic, by
that name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.forecast.fleet_forecast import HEURISTIC, STORED_LEVELS, TFT, FleetForecast
from forecastd.fleet.forecast.heuristic import heuristic_forecast
from forecastd.fleet.window.readiness import PreparedInput, prepare_input
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.fleet_job import FleetResult, fleet_job
from forecastd.inference.quantile_json import metrics_json
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.process import ChildFailed, ModelFailed
from models.errors import BundleError
from models.fleet.base import FleetInput
from models.fleet.bundle import read_fleet_manifest

if TYPE_CHECKING:
    from forecastd.supervise.event_dispatcher import Observer
    from forecastd.supervise.events import SupervisionCounts
    from models.fleet.manifest import FleetManifest


class FleetForecaster:
    """One bundle, run in children of its own. Use as a context manager: leaving ends them.

    `manifest`: of the bundle. Not to be shared by threads.
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
        """Read the manifest, hold it against the contract and `step`, and start its children.

        Raises:
            NeedsHuman: there is no bundle, its manifest is no good, or it is for other metrics or another step.
        """
        self.manifest = load_compatible_manifest(bundle, step)
        self.engine = engine
        self._policy, self._clock = policy, clock
        columns = [METRIC_INDEX[name] for name in self.manifest.names]
        self._metrics = tuple(METRICS[column] for column in columns)
        # Of a block's; a slice is no copy.
        self._columns = slice(None) if columns == list(range(len(METRICS))) else columns
        setup = ChildSetup(bundle, self.manifest.name, engine=engine, engine_threads=threads)
        self._pool = ProcessPool(setup, policy, clock, observer=observer)

    @property
    def counts(self) -> SupervisionCounts:
        """What supervision saw."""
        return self._pool.counts

    def children(self) -> list[dict[str, object]]:
        """What every child is at."""
        return self._pool.children()

    def wait_until_ready(self, seconds: float | None = None, is_cancelled: Callable[[], bool] = lambda: False) -> str:
        """Wait until a child has loaded and proved the bundle; gives its sha256.

        `over` is asked every second whether nobody waits any more.

        Raises:
            NeedsHuman: the bundle is no good.
            SkipEpoch: no child came to be ready.
        """
        try:
            sha256 = self._pool.wait_ready(self._policy.ready_seconds if seconds is None else seconds, is_cancelled)
        except ModelFailed as error:
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            raise SkipEpoch(str(error), check="model_process") from error
        return sha256

    def prepare_input(self, block: WindowBlock) -> PreparedInput:
        """Which servers of a block the model can forecast, from the metrics that it knows."""
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
            SkipEpoch: no child finished it, or the model cannot make it.
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
        """Have a child forecast the servers that are ready."""
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

    def __enter__(self) -> FleetForecaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def load_compatible_manifest(bundle: Path, step: int | None = None) -> FleetManifest:
    """The manifest of a bundle that this fleet can run.

    Raises:
        NeedsHuman: there is none, it is no good, or it is for other metrics, other units or another step.
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
                f"The model {bundle} forecasts {description}, which the fleet's contract does not have. "
                "Train one on this fleet with `forecastd fleet train`."
            )
    if step is not None and manifest.step != step:
        raise NeedsHuman(
            f"The model {bundle} was trained on ticks of {manifest.step} s, the fleet runs on {step} s. "
            "Set FLEET_STEP to the model's, or train one on this step with `forecastd fleet train`."
        )
    return manifest


def _pad_to_length(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """`[S, L, M]` with as many steps as the encoder has; what a short block lacks comes before its lengths."""
    missing_steps = length - values.shape[1]
    return values if missing_steps <= 0 else np.pad(values, ((0, 0), (missing_steps, 0), (0, 0)))
