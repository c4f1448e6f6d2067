"""One side of a comparison in a process of its own, which tells what it took: `python -m benchmarks.fleet.side WHICH ...`.

`ours` and `library` tell their peak memory after some forecasts, `engines` the seconds of each engine, `restart` those that
the known way takes from its imports to the answer to its first request.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.fleet.scene import MODEL_M, STEP, THREADS, Servers

FORECASTS = 3


def main() -> int:
    which, bundle, count, seed, *more = sys.argv[1:]
    servers = Servers(int(count), seed=int(seed), ahead=64)
    if which == "ours":
        told = {"megabytes": ours(Path(bundle), servers)}
    elif which == "library":
        told = {"megabytes": library(servers)}
    elif which == "restart":
        told = restart(servers)
    else:
        told = engines(Path(bundle), servers, int(more[0]))
    print(json.dumps(told))
    return 0


def ours(bundle: Path, servers: Servers) -> float:
    """The peaks of this process and of the child that runs the bundle."""
    import psutil

    from benchmarks.fleet.forecast import forecaster, timed

    with forecaster(bundle) as running:
        for _ in range(FORECASTS):
            servers.move_on()
            timed(running, servers)
        pids = [0, *(child.pid for child in psutil.Process().children(recursive=True))]
        return sum(map(peak, pids))


def library(servers: Servers) -> float:
    """The peak of a process that predicts from a frame."""
    from benchmarks.fleet.library import Library, frame

    peer = Library(MODEL_M, servers.names)
    rows = frame(MODEL_M, servers.names, servers.profiles, servers.past(MODEL_M.encoder), servers.tick)
    peer.predict(rows)
    return peak()


def engines(bundle: Path, servers: Servers, turns: int) -> dict[str, float]:
    """Of each engine the seconds of the first forecast and of the best one after it, JSON included."""
    from forecastd.fleet.readiness import prepare
    from forecastd.fleet.snapshot import SERVED
    from forecastd.quantilejson import metrics_json
    from models.fleet.base import FleetInput
    from models.fleet.bundle import load_fleet_bundle
    from models.fleet.engines import load_fleet_engine
    from models.fleet.memory import keep_memory

    keep_memory()
    found: dict[str, float] = {}
    for name in ("fused", "onnx", "stream", "library"):
        running = load_fleet_engine(load_fleet_bundle(bundle), name, THREADS)
        seconds = []
        for _ in range(1 + turns):
            servers.move_on()
            began = time.perf_counter()
            block = servers.block(MODEL_M.encoder)
            ready = prepare(block.values, MODEL_M.minimum)
            quantiles = running.forecast(
                FleetInput(block.tick, STEP, block.servers, block.profiles, ready.filled, ready.lengths)
            )
            metrics_json(quantiles, MODEL_M.metrics, MODEL_M.levels, SERVED)
            seconds.append(time.perf_counter() - began)
            running.look_ahead(block.tick + 1)  # in the pause, as in service
        found |= {f"{name}, first": seconds[0], name: min(seconds[1:])}
    return found


def restart(servers: Servers) -> dict[str, float]:
    """What is not the service's is done before the clock starts: making the servers up, and saving their window."""
    with tempfile.TemporaryFile() as file:
        pickle.dump(servers.records(MODEL_M), file, protocol=pickle.HIGHEST_PROTOCOL)
        file.seek(0)
        began = time.perf_counter()
        from benchmarks.fleet import request
        from benchmarks.fleet.library import Library

        window = pickle.load(file)  # noqa: S301 - written three lines above
        request.answer(Library(MODEL_M, servers.names), window)
        return {"seconds": time.perf_counter() - began}


def peak(pid: int = 0) -> float:
    """Peak resident memory of a process, MB; 0 for this one."""
    status = Path(f"/proc/{pid or 'self'}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1000


if __name__ == "__main__":
    sys.exit(main())
