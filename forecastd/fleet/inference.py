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
from forecastd.fleet.contract import INDEX, METRICS
from forecastd.fleet.grid import Block
from forecastd.fleet.heuristic import heuristic
from forecastd.fleet.readiness import Prepared, prepare
from forecastd.fleet.snapshot import HEURISTIC, SERVED, TFT, FleetForecast
from forecastd.quantilejson import metrics_json
from forecastd.supervise.fleetjob import FleetAnswer, fleet_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed
from models.errors import BundleError
from models.fleet.base import FleetInput
from models.fleet.bundle import read_fleet_manifest

if TYPE_CHECKING:
    from forecastd.supervise.audience import Observer
    from forecastd.supervise.report import Counts
    from models.fleet.manifest import FleetManifest


class FleetForecaster:
    """One bundle, run in children of its own. Use as a context manager: leaving ends them.

    `manifest`: of the bundle. Not to be shared by threads.
    """

    def __init__(
        self,
        bundle: Path,
        *,
        policy: Policy,
        clock: Clock,
        engine: str = "auto",
        threads: int = 2,
        step: int | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Read the manifest, hold it against the contract and `step`, and start its children.

        Raises:
            NeedsHuman: there is no bundle, its manifest is no good, or it is for other metrics or another step.
        """
        self.manifest = accepted(bundle, step)
        self.engine = engine
        self._policy, self._clock = policy, clock
        columns = [INDEX[name] for name in self.manifest.names]
        self._metrics = tuple(METRICS[column] for column in columns)
        # Of a block's; a slice is no copy.
        self._columns = slice(None) if columns == list(range(len(METRICS))) else columns
        setup = Setup(bundle, self.manifest.name, engine=engine, engine_threads=threads)
        self._pool = Pool(setup, policy, clock, observe=observe)

    @property
    def counts(self) -> Counts:
        """What supervision saw."""
        return self._pool.counts

    def children(self) -> list[dict[str, object]]:
        """What every child is at."""
        return self._pool.children()

    def ready(self, seconds: float | None = None, over: Callable[[], bool] = lambda: False) -> str:
        """Wait until a child has loaded and proved the bundle; gives its sha256.

        `over` is asked every second whether nobody waits any more.

        Raises:
            NeedsHuman: the bundle is no good.
            SkipEpoch: no child came to be ready.
        """
        try:
            sha256 = self._pool.ready(self._policy.ready_seconds if seconds is None else seconds, over)
        except ModelFailed as error:
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            raise SkipEpoch(str(error), check="model_process") from error
        return sha256

    def prepare(self, block: Block) -> Prepared:
        """Which servers of a block the model can forecast, from the metrics that it knows."""
        manifest = self.manifest
        values = block.values[:, -manifest.encoder_length :, self._columns]
        return prepare(values, manifest.encoder_minimum, manifest.names)

    def forecast(
        self, block: Block, prepared: Prepared | None = None, over: Callable[[], bool] = lambda: False
    ) -> FleetForecast:
        """The forecast of every server of a block that ends with the newest tick.

        Raises:
            SkipEpoch: no child finished it, or the model cannot make it.
        """
        began = self._clock.monotonic()
        manifest = self.manifest
        prepared = self.prepare(block) if prepared is None else prepared
        ready = np.flatnonzero(prepared.lengths)
        rest = np.flatnonzero(prepared.lengths == 0)
        levels, metrics = manifest.levels, self._metrics
        shape = len(block.servers), len(metrics), len(levels), manifest.horizon
        answer = self._ask(block, prepared, ready, over) if len(ready) else None
        if answer is not None and not len(rest):
            quantiles, parts = answer.quantiles, list(answer.encoded)
        else:
            quantiles, parts = np.empty(shape, dtype=np.float32), [b""] * shape[0]
            if answer is not None:
                quantiles[ready] = answer.quantiles
            found = heuristic(block.values[rest][:, :, self._columns], manifest.horizon, levels, metrics)
            quantiles[rest] = found.transpose(0, 2, 3, 1)
            told = metrics_json(quantiles[rest], metrics, levels, SERVED)
            for rows, encoded in ((ready, answer.encoded if answer else ()), (rest, told)):
                for row, part in zip(rows.tolist(), encoded, strict=True):
                    parts[row] = part
        is_ready = prepared.lengths > 0
        return FleetForecast(
            tick=block.tick,
            step=manifest.step,
            made_at=self._clock.now(),
            seconds=self._clock.monotonic() - began,
            metrics=manifest.names,
            levels=levels,
            servers=block.servers,
            profiles=block.profiles,
            models=tuple(TFT if one else HEURISTIC for one in is_ready.tolist()),
            quantiles=quantiles.transpose(0, 3, 1, 2),
            bundle=manifest.name,
            bundle_sha256=manifest.sha256,
            engine=self.engine,
        ).with_json(parts)

    def _ask(self, block: Block, prepared: Prepared, ready: NDArray[np.int64], over: Callable[[], bool]) -> FleetAnswer:
        """Have a child forecast the servers that are ready."""
        manifest, every = self.manifest, len(ready) == len(block.servers)
        inputs = FleetInput(
            tick=block.tick,
            step=manifest.step,
            servers=block.servers if every else tuple(block.servers[row] for row in ready),
            profiles=block.profiles if every else tuple(block.profiles[row] for row in ready),
            values=_whole(prepared.filled if every else prepared.filled[ready], manifest.encoder_length),
            lengths=prepared.lengths if every else prepared.lengths[ready],
        )
        deadline = self._clock.monotonic() + self._policy.forecast_seconds
        job = fleet_job(inputs, manifest, served=SERVED, deadline=deadline, attempts=self._policy.attempts)
        try:
            answer: FleetAnswer = self._pool.run(job, over)
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


def accepted(bundle: Path, step: int | None = None) -> FleetManifest:
    """The manifest of a bundle that this fleet can run.

    Raises:
        NeedsHuman: there is none, it is no good, or it is for other metrics, other units or another step.
    """
    try:
        manifest = read_fleet_manifest(bundle)
    except BundleError as error:
        raise NeedsHuman(str(error)) from error
    for metric in manifest.metrics:
        known = METRICS[INDEX[metric.name]] if metric.name in INDEX else None
        if known is None or known.unit != metric.unit:
            what = f"{metric.name} in {metric.unit}" if known else metric.name
            raise NeedsHuman(
                f"The model {bundle} forecasts {what}, which the fleet's contract does not have. "
                "Train one on this fleet with `forecastd fleet train`."
            )
    if step is not None and manifest.step != step:
        raise NeedsHuman(
            f"The model {bundle} was trained on ticks of {manifest.step} s, the fleet runs on {step} s. "
            "Set FLEET_STEP to the model's, or train one on this step with `forecastd fleet train`."
        )
    return manifest


def _whole(values: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """`[S, L, M]` with as many steps as the encoder has; what a short block lacks comes before its lengths."""
    lacking = length - values.shape[1]
    return values if lacking <= 0 else np.pad(values, ((0, 0), (lacking, 0), (0, 0)))
