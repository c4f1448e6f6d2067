"""The forecast of a fleet as a job: what the parent asks, and what the child makes of it.

The whole windows travel with every job, so that a child that takes over from another has all it needs; an engine that keeps
its past sees by itself what is new. Beside the numbers the answer bears each server's forecast as the bytes of JSON that will
be served, so that a large fleet's are written here and not where requests are answered.
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
from models.fleet.manifest import FleetManifest

CanaryCheck = Callable[[ProgressCallback], float]


@dataclass(frozen=True, eq=False)
class FleetResult:
    """Quantiles float32 `[S, M, Q, H]`, and the JSON of each server's metrics at the levels that are served."""

    quantiles: NDArray[np.float32]
    encoded: tuple[bytes, ...]
    bundle_sha256: str


def load_fleet_model(path: Path, engine_name: str, threads: int) -> tuple[FleetEngine, CanaryCheck, str]:
    """The child's side of loading: the engine, what proves it, and the bundle's sha256. Raises BundleError."""
    from models.fleet.bundle import load_fleet_bundle
    from models.fleet.engines import load_fleet_engine, verify_fleet_canary
    from models.fleet.malloc import keep_freed_memory

    keep_freed_memory()
    bundle = load_fleet_bundle(path)
    loaded_engine = load_fleet_engine(bundle, engine_name, threads)
    return loaded_engine, lambda report: verify_fleet_canary(bundle, loaded_engine, report), bundle.sha256


def fleet_job(
    inputs: FleetInput, manifest: FleetManifest, *, served: tuple[float, ...], deadline: float, attempts: int
) -> Job:
    """The forecast of these windows; `served`: the levels whose JSON is wanted. Gives a `FleetAnswer`."""
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
        # The texts last, so that the numbers lie in memory as they should.
        arrays={"lengths": inputs.lengths, "values": inputs.values, "servers": _encode_names(inputs.servers)},
    )


def run_forecast(
    message: ChildMessage, engine: FleetEngine, progress: ProgressCallback
) -> tuple[NDArray[np.float32], list[bytes]]:
    """The child's side: of a `fleet` message's windows the quantiles `[S, M, Q, H]`, and the JSON of each server.

    That is written by whichever of the engine's threads has done a server. Raises DataError, BundleError.
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

    def done(rows: NDArray[np.int64], quantiles: NDArray[np.float32]) -> None:
        for row, text in zip(rows.tolist(), write(quantiles), strict=True):
            encoded[row] = text

    return engine.forecast(inputs, progress, done), encoded


def result_message(
    message: ChildMessage, quantiles: NDArray[np.float32], encoded: list[bytes], launch: str, sha256: str
) -> ChildMessage:
    """The answer that bears a forecast."""
    fields: dict[str, Any] = {"job": message.text("job"), "tick": message.fields["tick"], "bundle_sha256": sha256}
    arrays: dict[str, NDArray[Any]] = {
        "quantiles": quantiles,
        "sizes": np.array([len(part) for part in encoded], dtype=np.int64),
        "encoded": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    return ChildMessage("result", launch, fields, arrays)


def _read_result(message: ChildMessage, inputs: FleetInput, manifest: FleetManifest) -> FleetResult:
    """The forecast in an answer, held against what was asked."""
    try:
        quantiles, sizes, encoded = (message.arrays[name] for name in ("quantiles", "sizes", "encoded"))
        tick, sha256 = message.number("tick"), message.text("bundle_sha256")
    except (KeyError, InvalidMessage) as error:
        raise InvalidResult(f"its answer lacks or garbles {error}") from error
    shape = len(inputs.servers), len(manifest.metrics), len(manifest.levels), manifest.horizon
    if quantiles.dtype != np.float32 or quantiles.shape != shape:
        raise InvalidResult(f"its quantiles are {quantiles.dtype}{list(quantiles.shape)}, not float32{list(shape)}")
    if not np.isfinite(quantiles).all():
        raise InvalidResult("its forecast holds a number that is not finite")
    if tick != inputs.tick or sizes.shape != shape[:1] or sizes.dtype.kind != "i" or (sizes < 0).any():
        raise InvalidResult("its answer is to another question")
    ends = np.cumsum(sizes)
    if encoded.dtype != np.uint8 or encoded.ndim != 1 or len(encoded) != (ends[-1] if len(ends) else 0):
        raise InvalidResult("its JSON is not as long as it says")
    text = encoded.data
    parts = tuple(bytes(text[end - size : end]) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True))
    return FleetResult(quantiles, parts, sha256)


def _deduplicate(names: tuple[str, ...]) -> list[Any]:
    """Names that repeat, as each once and the places of all."""
    index = {name: row for row, name in enumerate(dict.fromkeys(names))}
    return [list(index), [index[name] for name in names]]


def _encode_names(names: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def _decode_names(text: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(text.tobytes().decode().split("\n")) if text.size else ()
