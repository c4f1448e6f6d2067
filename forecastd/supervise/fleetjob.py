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

from forecastd.quantilejson import Writer
from forecastd.supervise.jobs import BadAnswer, Job
from forecastd.supervise.messages import GarbledMessage, Message
from models.fleet.base import FleetEngine, FleetInput, Progress
from models.fleet.manifest import FleetManifest

Prove = Callable[[Progress], float]


@dataclass(frozen=True, eq=False)
class FleetAnswer:
    """Quantiles float32 `[S, M, Q, H]`, and the JSON of each server's metrics at the levels that are served."""

    quantiles: NDArray[np.float32]
    encoded: tuple[bytes, ...]
    bundle_sha256: str


def prepare(path: Path, engine: str, threads: int) -> tuple[FleetEngine, Prove, str]:
    """The child's side of loading: the engine, what proves it, and the bundle's sha256. Raises BundleError."""
    from models.fleet.bundle import load_fleet_bundle
    from models.fleet.engines import load_fleet_engine, verify_fleet_canary
    from models.fleet.memory import keep_memory

    keep_memory()
    bundle = load_fleet_bundle(path)
    ready = load_fleet_engine(bundle, engine, threads)
    return ready, lambda tell: verify_fleet_canary(bundle, ready, tell), bundle.sha256


def fleet_job(
    inputs: FleetInput, manifest: FleetManifest, *, served: tuple[float, ...], deadline: float, attempts: int
) -> Job:
    """The forecast of these windows; `served`: the levels whose JSON is wanted. Gives a `FleetAnswer`."""
    return Job(
        kind="fleet",
        name=f"forecast of {len(inputs.servers)} servers at tick {inputs.tick}",
        deadline=deadline,
        attempts=attempts,
        read=lambda answer: _read(answer, inputs, manifest),
        fields={"tick": inputs.tick, "step": inputs.step, "profiles": _told(inputs.profiles), "served": list(served)},
        # The texts last, so that the numbers lie in memory as they should.
        arrays={"lengths": inputs.lengths, "values": inputs.values, "servers": _text(inputs.servers)},
    )


def forecast(message: Message, engine: FleetEngine, progress: Progress) -> tuple[NDArray[np.float32], list[bytes]]:
    """The child's side: of a `fleet` message's windows the quantiles `[S, M, Q, H]`, and the JSON of each server.

    That is written by whichever of the engine's threads has done a server. Raises DataError, BundleError.
    """
    names, rows = message.fields["profiles"]
    arrays = message.arrays
    inputs = FleetInput(
        int(message.number("tick")),
        int(message.number("step")),
        _names(arrays["servers"]),
        tuple(names[row] for row in rows),
        arrays["values"],
        arrays["lengths"],
    )
    encoded = [b""] * len(inputs.servers)
    write = Writer(engine.manifest.metrics, engine.manifest.levels, message.fields["served"])

    def done(rows: NDArray[np.int64], quantiles: NDArray[np.float32]) -> None:
        for row, text in zip(rows.tolist(), write(quantiles), strict=True):
            encoded[row] = text

    return engine.forecast(inputs, progress, done), encoded


def answer(message: Message, quantiles: NDArray[np.float32], encoded: list[bytes], launch: str, sha256: str) -> Message:
    """The answer that bears a forecast."""
    told: dict[str, Any] = {"job": message.text("job"), "tick": message.fields["tick"], "bundle_sha256": sha256}
    arrays: dict[str, NDArray[Any]] = {
        "quantiles": quantiles,
        "sizes": np.array([len(one) for one in encoded], dtype=np.int64),
        "encoded": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    return Message("result", launch, told, arrays)


def _read(answer: Message, inputs: FleetInput, manifest: FleetManifest) -> FleetAnswer:
    """The forecast in an answer, held against what was asked."""
    try:
        quantiles, sizes, encoded = (answer.arrays[name] for name in ("quantiles", "sizes", "encoded"))
        tick, sha256 = answer.number("tick"), answer.text("bundle_sha256")
    except (KeyError, GarbledMessage) as error:
        raise BadAnswer(f"its answer lacks or garbles {error}") from error
    wanted = len(inputs.servers), len(manifest.metrics), len(manifest.levels), manifest.horizon
    if quantiles.dtype != np.float32 or quantiles.shape != wanted:
        raise BadAnswer(f"its quantiles are {quantiles.dtype}{list(quantiles.shape)}, not float32{list(wanted)}")
    if not np.isfinite(quantiles).all():
        raise BadAnswer("its forecast holds a number that is not finite")
    if tick != inputs.tick or sizes.shape != wanted[:1] or sizes.dtype.kind != "i" or (sizes < 0).any():
        raise BadAnswer("its answer is to another question")
    ends = np.cumsum(sizes)
    if encoded.dtype != np.uint8 or encoded.ndim != 1 or len(encoded) != (ends[-1] if len(ends) else 0):
        raise BadAnswer("its JSON is not as long as it says")
    text = encoded.data
    parts = tuple(bytes(text[end - size : end]) for size, end in zip(sizes.tolist(), ends.tolist(), strict=True))
    return FleetAnswer(quantiles, parts, sha256)


def _told(names: tuple[str, ...]) -> list[Any]:
    """Names that repeat, as each once and the places of all."""
    once = {name: row for row, name in enumerate(dict.fromkeys(names))}
    return [list(once), [once[name] for name in names]]


def _text(names: tuple[str, ...]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(names).encode(), dtype=np.uint8)


def _names(text: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(text.tobytes().decode().split("\n")) if text.size else ()
