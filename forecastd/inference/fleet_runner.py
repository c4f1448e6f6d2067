"""The forecast of a fleet: the job that the parent sends, and its runner in the child.

Every job carries the whole windows, so that a standby has all that it needs to take the job over; an engine that caches
decoder states detects by itself which ticks are new. The result also carries each server's forecast as JSON bytes, so that
the child encodes the JSON of a large fleet, not the process that serves requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.inference.quantile_json import QuantileJsonWriter
from forecastd.inference.runner import ProgressReport, Runner, RunnerResult, StepReport, child_setup
from forecastd.runtime.jobs import InvalidResult
from forecastd.supervise.detector import Phase
from forecastd.supervise.jobs import ChildSetup, Job
from forecastd.supervise.protocol import ChildMessage, InvalidMessage
from models.fleet.base import FleetInput
from models.fleet.bundle import FleetBundle, load_fleet_bundle
from models.fleet.engine import FleetEngine
from models.fleet.engines import load_fleet_engine, verify_fleet_canary
from models.fleet.malloc import keep_freed_memory
from models.fleet.manifest import FleetManifest


@dataclass(frozen=True, eq=False)
class FleetResult:
    """Quantiles float32 `[S, M, Q, H]`, and the JSON of each server's metrics at the served levels."""

    quantiles: NDArray[np.float32]
    encoded: tuple[bytes, ...]
    bundle_sha256: str


def fleet_setup(bundle: Path, name: str, engine: str, threads: int) -> ChildSetup:
    """Children that load the fleet model `name` from `bundle` into this engine."""
    options = {"bundle": str(bundle.resolve()), "engine": engine, "threads": threads}
    return child_setup("fleet", name=name, options=options)


def fleet_job(
    inputs: FleetInput, manifest: FleetManifest, *, served: tuple[float, ...], deadline: float, attempts: int
) -> Job:
    """The forecast of these windows. `served`: the levels to encode as JSON. The job's value is a `FleetResult`."""
    profiles = {name: row for row, name in enumerate(dict.fromkeys(inputs.profiles))}
    return Job(
        kind="run",
        name=f"forecast of {len(inputs.servers)} servers at tick {inputs.tick}",
        deadline=deadline,
        attempts=attempts,
        read=lambda message: _read_result(message, inputs, manifest),
        fields={
            "tick": inputs.tick,
            "step": inputs.step,
            "profiles": [list(profiles), [profiles[name] for name in inputs.profiles]],  # each name once
            "served": list(served),
        },
        # Bytes come last, so that the numeric arrays are aligned in memory.
        arrays={
            "lengths": inputs.lengths,
            "values": inputs.values,
            "servers": np.frombuffer("\n".join(inputs.servers).encode(), dtype=np.uint8),
        },
    )


class FleetRunner(Runner):
    """Loads a fleet bundle into an engine, and forecasts the whole fleet in each job."""

    report_seconds = 0.05
    _bundle: FleetBundle
    _engine: FleetEngine
    _next_tick = 0

    def load(self, options: ChildMessage, report: ProgressReport) -> str:
        report(Phase.LOADING, 1, 3)
        keep_freed_memory()
        self._bundle = load_fleet_bundle(Path(options.text("bundle")))
        self._engine = load_fleet_engine(self._bundle, options.text("engine"), int(options.number("threads")))
        return self._bundle.sha256

    def check(self, report: StepReport) -> None:
        verify_fleet_canary(self._bundle, self._engine, report)

    def run(self, job: ChildMessage, report: ProgressReport) -> RunnerResult:
        """Each engine thread encodes the servers that it has finished. Raises DataError, BundleError."""
        report(Phase.PREDICTING, 0, 1)
        inputs = _read_input(job)
        encoded = [b""] * len(inputs.servers)
        manifest = self._engine.manifest
        write = QuantileJsonWriter(manifest.metrics, manifest.levels, job.fields["served"])

        def encode_rows(rows: NDArray[np.int64], quantiles: NDArray[np.float32]) -> None:
            for row, text in zip(rows.tolist(), write(quantiles), strict=True):
                encoded[row] = text

        quantiles = self._engine.forecast(
            inputs, lambda done, total: report(Phase.PREDICTING, done, total), encode_rows
        )
        report(Phase.POST_PROCESSING, 0, 1)
        fields = {"tick": inputs.tick, "bundle_sha256": self._bundle.sha256}
        arrays: dict[str, NDArray[Any]] = {
            "quantiles": quantiles,
            "sizes": np.array([len(part) for part in encoded], dtype=np.int64),
            "encoded": np.frombuffer(b"".join(encoded), dtype=np.uint8),
        }
        self._next_tick = inputs.tick + 1
        return RunnerResult(fields, arrays)

    def prepare_next(self) -> None:
        self._engine.look_ahead(self._next_tick)


def _read_input(job: ChildMessage) -> FleetInput:
    names, rows = job.fields["profiles"]
    text = job.arrays["servers"].tobytes().decode()
    return FleetInput(
        int(job.number("tick")),
        int(job.number("step")),
        tuple(text.split("\n")) if text else (),
        tuple(names[row] for row in rows),
        job.arrays["values"],
        job.arrays["lengths"],
    )


def _read_result(message: ChildMessage, inputs: FleetInput, manifest: FleetManifest) -> FleetResult:
    """The forecast of a result message, checked against the job's inputs. Raises InvalidResult."""
    try:
        quantiles, sizes, encoded = (message.arrays[name] for name in ("quantiles", "sizes", "encoded"))
        tick, sha256 = message.number("tick"), message.text("bundle_sha256")
    except (KeyError, InvalidMessage) as error:
        raise InvalidResult(f"a field is missing or invalid: {error}") from error
    shape = len(inputs.servers), len(manifest.metrics), len(manifest.levels), manifest.horizon
    if quantiles.dtype != np.float32 or quantiles.shape != shape:
        raise InvalidResult(
            f"the quantiles are {quantiles.dtype}{list(quantiles.shape)}, expected float32{list(shape)}"
        )
    if not np.isfinite(quantiles).all():
        raise InvalidResult("the quantiles are not finite")
    if tick != inputs.tick or sizes.shape != shape[:1] or sizes.dtype.kind != "i" or (sizes < 0).any():
        raise InvalidResult("the forecast is for other inputs")
    ends = np.cumsum(sizes)
    if encoded.dtype != np.uint8 or encoded.ndim != 1 or len(encoded) != (ends[-1] if len(ends) else 0):
        raise InvalidResult("the JSON has the wrong length")
    text = encoded.data
    parts = tuple(bytes(text[end - size : end]) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True))
    return FleetResult(quantiles, parts, sha256)
