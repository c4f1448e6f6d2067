"""Other libraries on the same windows: the Temporal Fusion Transformers of neuralforecast and darts with the same
sizes.

Their networks differ, so only the time is compared, not the forecasts. They are imported by this interpreter, or by
another one (`--others`); a missing library is reported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet.scene import MODEL_M, STEP, THREADS, SimulatedServers
from benchmarks.processes import measure

PEER_LIBRARIES = ("neuralforecast", "darts")
CHILD_SCRIPT = Path(__file__).with_name("peer.py")


def run(
    product_seconds: Mapping[int, float], *, seed: int, turns: int, interpreter: str | None
) -> Iterator[Figure | PremiseCount]:
    """Both libraries, at each number of servers in `product_seconds`."""
    command = interpreter or sys.executable
    for peer in PEER_LIBRARIES:
        version = installed_version(command, peer)
        if version is None:
            yield PremiseCount(
                f"{peer}: absent", {"interpreter": "that of --others" if interpreter else "this interpreter"},
                "not compared; `pip install -e '.[peers]'` installs it, or use --others with an interpreter that has it",
            )  # fmt: skip
            continue
        for count, seconds in product_seconds.items():
            for label, peer_seconds in measure_predictions(command, peer, count, seed, turns).items():
                name = f"{count} servers, all {len(MODEL_M.metrics)} metrics"
                yield Figure(name, seconds, peer_seconds, "s", f"{peer} {version}, {label}", "ratio >= 1")


def installed_version(command: str, peer: str) -> str | None:
    """The version of the library; None if it is not installed."""
    code = f"import importlib.metadata as m; print(m.version({peer!r}))"
    process = subprocess.run([command, "-c", code], capture_output=True, text=True, check=False)
    return process.stdout.strip() if process.returncode == 0 else None


def measure_predictions(command: str, peer: str, count: int, seed: int, turns: int) -> dict[str, float]:
    """The best seconds of each way to predict, by its label."""
    servers = SimulatedServers(count, seed=seed)
    with tempfile.TemporaryDirectory() as directory:
        np.save(Path(directory) / "values.npy", servers.history(MODEL_M.encoder))
        spec = {
            "hidden": MODEL_M.hidden, "continuous": MODEL_M.continuous, "heads": MODEL_M.heads, "layers": MODEL_M.layers,
            "encoder": MODEL_M.encoder, "horizon": MODEL_M.horizon, "levels": MODEL_M.levels, "threads": THREADS,
            "step": STEP, "tick": servers.tick, "names": servers.names, "metrics": MODEL_M.names, "turns": turns,
        }  # fmt: skip
        (Path(directory) / "spec.json").write_text(json.dumps(spec))
        output = measure([command, str(CHILD_SCRIPT), peer, directory]).stdout
    seconds: dict[str, float] = json.loads(output.strip().splitlines()[-1])
    return seconds
