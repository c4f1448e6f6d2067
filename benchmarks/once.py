"""A whole `--once` in a fresh process with warm state and a local node, next to the usual forecast and the SDK's import.

The peer only imports the SDK and forecasts; it checks, signs and submits nothing, so the comparison favors it.
"""

from __future__ import annotations

import itertools
import json
import tempfile

from benchmarks.figures import Figure
from benchmarks.forecast import BUNDLE
from benchmarks.processes import MeasuredRun, alternate, measure, python
from forecastd.clock import from_iso, to_iso

USUAL = (
    "import sys, warnings; warnings.simplefilter('ignore')\n"
    "import allora_sdk\n"
    "from benchmarks.forecast_usual import predict\n"
    "predict(sys.argv[1])"
)


def run(*, quick: bool) -> list[Figure]:
    """Wall time and peak memory; each `--once` replays another hour, so each makes a submission."""
    start = from_iso("2026-03-01T00:30:00Z")
    hours = itertools.count()
    with tempfile.TemporaryDirectory() as directory:
        state = {"STATE_DIR": f"{directory}/state", "LOG_DIR": f"{directory}/logs"}

        def once() -> MeasuredRun:
            as_of = to_iso(start + 3600 * next(hours))
            measured = measure(python("submit_prediction.py", "--once", "--json", "--as-of", as_of), state)
            assert json.loads(measured.stdout)["outcome"] == "submitted", measured.stdout
            return measured

        measure(python("-m", "benchmarks.forecast_usual", "prepare", str(BUNDLE), directory))
        once()
        ours, usual = alternate(once, lambda: measure(python("-c", USUAL, directory)), runs=1 if quick else 7)
    peer = "SDK import and the usual forecast"
    return [
        Figure("--once, whole", ours.seconds, usual.seconds, "s", peer, "ratio >= 8"),
        Figure(
            "--once, whole, peak memory of all its processes", ours.megabytes, usual.megabytes, "MB", peer, "ratio >= 2"
        ),
    ]
