"""The forecast of a fleet as a job for a child: messages of both sides.

Every job carries the whole windows, so that a standby has all that it needs to take the job over; an engine that caches
decoder states detects by itself which ticks are new. The result also carries each server's forecast as JSON bytes, so that
the child encodes the JSON of a large fleet, not the process that serves requests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.inference.quantile_json import QuantileJsonWriter
from forecastd.supervise.jobs import InvalidResult, Job
from forecastd.supervise.protocol import ChildMessage, InvalidMessage
from models.fleet.base import FleetEngine, FleetInput, ProgressCallback
from models.fleet.bundle import load_fleet_bundle
from models.fleet.engines import load_fleet_engine, verify_fleet_canary
from models.fleet.malloc import keep_freed_memory
from models.fleet.manifest import FleetManifest

CanaryCheck = Callable[[ProgressCallback], float]


@dataclass(frozen=True, eq=False)
class FleetResult:
    """Quantiles float32 `[S, M, Q, H]`, and the JSON of each server's metrics at the served levels."""

    quantiles: NDArray[np.float32]
    encoded: tuple[bytes, ...]
    bundle_sha256: str


def load_fleet_model(path: Path, engine_name: str, threads: int) -> tuple[FleetEngine, CanaryCheck, str]:
    """Load a bundle in the child: the engine, its canary check, and the bundle's sha256. Raises BundleError."""
    keep_freed_memory()
    bundle = load_fleet_bundle(path)
    loaded_engine = load_fleet_engine(bundle, engine_name, threads)
    return loaded_engine, lambda report: verify_fleet_canary(bundle, loaded_engine, report), bundle.sha256


def fleet_job(
    inputs: FleetInput, manifest: FleetManifest, *, served: tuple[float, ...], deadline: float, attempts: int
) -> Job:
    """The forecast of these windows. `served`: the levels to encode as JSON. The job's value is a `FleetResult`."""
    return Job(
        kind="fleet",
        name=f"forecast of {len(inputs.servers)} servers at tick {inputs.tick}",
        deadline=deadline,
        attempts=attempts,
        read=lambda message: _read_result(message, inputs, manifest),
        fields={
            "tick": inputs.tick,
            "step": inputs.step,
            "profiles": _deduplicate(inputs.profiles),
            "served": list(served),
        },
        # Bytes come last, so that the numeric arrays are aligned in memory.
        arrays={"lengths": inputs.lengths, "values": inputs.values, "servers": _encode_names(inputs.servers)},
    )


def run_forecast(
    message: ChildMessage, engine: FleetEngine, progress: ProgressCallback
) -> tuple[NDArray[np.float32], list[bytes]]:
    """Run a `fleet` job in the child: quantiles `[S, M, Q, H]` and the JSON of each server.

    Each engine thread encodes the servers that it has finished. Raises DataError, BundleError.
    """
    names, rows = message.fields["profiles"]
    arrays = message.arrays
    inputs = FleetInput(
        int(message.number("tick")),
        int(message.number("step")),
        _decode_names(arrays["servers"]),
        tuple(names[row] for row in rows),
        arrays["values"],
        arrays["lengths"],
    )
    encoded = [b""] * len(inputs.servers)
    write = QuantileJsonWriter(engine.manifest.metrics, engine.manifest.levels, message.fields["served"])

    def encode_rows(rows: NDArray[np.int64], quantiles: NDArray[np.float32]) -> None:
        for row, text in zip(rows.tolist(), write(quantiles), strict=True):
            encoded[row] = text

    return engine.forecast(inputs, progress, encode_rows), encoded


def result_message(
    message: ChildMessage, quantiles: NDArray[np.float32], encoded: list[bytes], launch_id: str, sha256: str
) -> ChildMessage:
    """The result message of a `fleet` job."""
    fields: dict[str, Any] = {"job": message.text("job"), "tick": message.fields["tick"], "bundle_sha256": sha256}
    arrays: dict[str, NDArray[Any]] = {
        "quantiles": quantiles,
        "sizes": np.array([len(part) for part in encoded], dtype=np.int64),
        "encoded": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    return ChildMessage("result", launch_id, fields, arrays)


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


def _deduplicate(names: tuple[str, ...]) -> list[Any]:
    """Repeated names as a list of unique names and an index for each position."""
    index = {name: row for row, name in enumerate(dict.fromkeys(names))}
    return [list(index), [index[name] for name in names]]


def _encode_names(names: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def _decode_names(text: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(text.tobytes().decode().split("\n")) if text.size else ()
