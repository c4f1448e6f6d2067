"""Other libraries on the same windows: neuralforecast's and darts' Temporal Fusion Transformers, of the same sizes.

They are not the same network, so nothing is said of what they forecast, only of what it takes. They live in the interpreter
that runs this, or in another that is named (`--others`); where they are not, that is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.figures import Count, Figure
from benchmarks.fleet.scene import MODEL_M, STEP, THREADS, Servers
from benchmarks.processes import measure

PEERS = ("neuralforecast", "darts")
CHILD = Path(__file__).with_name("peer.py")


def run(ours: Mapping[int, float], *, seed: int, turns: int, interpreter: str | None) -> Iterator[Figure | Count]:
    """Both, at each number of servers that `ours` has seconds of."""
    command = interpreter or sys.executable
    for peer in PEERS:
        version = installed(command, peer)
        if version is None:
            yield Count(
                f"{peer}: absent", {"looked for in": "the interpreter of --others" if interpreter else "this interpreter"},
                "nothing is compared; `pip install -e '.[peers]'` installs it, or --others names an interpreter that has it",
            )  # fmt: skip
            continue
        for count, seconds in ours.items():
            for what, theirs in predict(command, peer, count, seed, turns).items():
                name = f"{count} servers, all {len(MODEL_M.metrics)} metrics"
                yield Figure(name, seconds, theirs, "s", f"{peer} {version}, {what}", "ratio >= 1")


def installed(command: str, peer: str) -> str | None:
    """Its version there; None where it is not."""
    ask = f"import importlib.metadata as m; print(m.version({peer!r}))"
    found = subprocess.run([command, "-c", ask], capture_output=True, text=True, check=False)
    return found.stdout.strip() if found.returncode == 0 else None


def predict(command: str, peer: str, count: int, seed: int, turns: int) -> dict[str, float]:
    """The best seconds of each way to predict with it, by what that way predicts."""
    servers = Servers(count, seed=seed)
    with tempfile.TemporaryDirectory() as place:
        np.save(Path(place) / "values.npy", servers.past(MODEL_M.encoder))
        spec = {
            "hidden": MODEL_M.hidden, "continuous": MODEL_M.continuous, "heads": MODEL_M.heads, "layers": MODEL_M.layers,
            "encoder": MODEL_M.encoder, "horizon": MODEL_M.horizon, "levels": MODEL_M.levels, "threads": THREADS,
            "step": STEP, "tick": servers.tick, "names": servers.names, "metrics": MODEL_M.names, "turns": turns,
        }  # fmt: skip
        (Path(place) / "spec.json").write_text(json.dumps(spec))
        told = measure([command, str(CHILD), peer, place]).stdout
    found: dict[str, float] = json.loads(told.strip().splitlines()[-1])
    return found
