"""One side of a comparison in a process of its own: `python -m benchmarks.fleet.side ROLE ...`; prints JSON.

`product` and `library` report their peak memory after some forecasts, `engines` the seconds of each engine, `restart`
the seconds of the reference from its imports to the response to its first request.

Modules are imported inside the functions, because each role must load only what it measures.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.fleet.scene import MODEL_M, STEP, THREADS, SimulatedServers

FORECASTS = 3


def main() -> int:
    role, bundle, count, seed, *extra = sys.argv[1:]
    servers = SimulatedServers(int(count), seed=int(seed), ahead=64)
    if role == "product":
        result = {"megabytes": product_memory(Path(bundle), servers)}
    elif role == "library":
        result = {"megabytes": library_memory(servers)}
    elif role == "restart":
        result = restart_seconds(servers)
    else:
        result = engine_seconds(Path(bundle), servers, int(extra[0]))
    print(json.dumps(result))
    return 0


def product_memory(bundle: Path, servers: SimulatedServers) -> float:
    """The peaks of this process and of the child that runs the bundle."""
    from benchmarks.fleet.forecast import forecaster, time_forecast

    with forecaster(bundle) as product:
        for _ in range(FORECASTS):
            servers.advance()
            time_forecast(product, servers)
        pids = [0, *(child.pid for child in psutil.Process().children(recursive=True))]
        return sum(map(peak_memory, pids))


def library_memory(servers: SimulatedServers) -> float:
    """The peak of a process that predicts from a frame."""
    from benchmarks.fleet.library import BaselineLibrary, frame

    peer = BaselineLibrary(MODEL_M, servers.names)
    rows = frame(MODEL_M, servers.names, servers.profiles, servers.history(MODEL_M.encoder), servers.tick)
    peer.predict(rows)
    return peak_memory()


def engine_seconds(bundle: Path, servers: SimulatedServers, turns: int) -> dict[str, float]:
    """For each engine the seconds of the first forecast and of the best one after it, JSON included."""
    from forecastd.fleet.forecast.fleet_forecast import STORED_LEVELS
    from forecastd.fleet.window.readiness import prepare_input
    from forecastd.inference.quantile_json import QuantileJsonWriter
    from models.fleet.base import FleetInput
    from models.fleet.bundle import load_fleet_bundle
    from models.fleet.engines import load_fleet_engine
    from models.fleet.malloc import keep_freed_memory

    keep_freed_memory()
    best_seconds: dict[str, float] = {}
    for name in ("fused", "onnx", "stream", "library"):
        engine = load_fleet_engine(load_fleet_bundle(bundle), name, THREADS)
        seconds = []
        for _ in range(1 + turns):
            servers.advance()
            started = time.perf_counter()
            block = servers.block(MODEL_M.encoder)
            ready = prepare_input(block.values, MODEL_M.minimum)
            quantiles = engine.forecast(
                FleetInput(block.tick, STEP, block.servers, block.profiles, ready.filled, ready.lengths)
            )
            QuantileJsonWriter(MODEL_M.metrics, MODEL_M.levels, STORED_LEVELS)(quantiles)
            seconds.append(time.perf_counter() - started)
            engine.look_ahead(block.tick + 1)  # in the pause, as in the service
        best_seconds |= {f"{name}, first": seconds[0], name: min(seconds[1:])}
    return best_seconds


def restart_seconds(servers: SimulatedServers) -> dict[str, float]:
    """Seconds of the reference. Simulating the servers and saving their window is done before the clock starts."""
    with tempfile.TemporaryFile() as file:
        pickle.dump(servers.records(MODEL_M), file, protocol=pickle.HIGHEST_PROTOCOL)
        file.seek(0)
        started = time.perf_counter()
        from benchmarks.fleet import request
        from benchmarks.fleet.library import BaselineLibrary

        window = pickle.load(file)  # noqa: S301 - the file was written above
        request.answer_request(BaselineLibrary(MODEL_M, servers.names), window)
        return {"seconds": time.perf_counter() - started}


def peak_memory(pid: int = 0) -> float:
    """Peak resident memory of a process in MB; 0 for this process."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    sys.exit(main())
