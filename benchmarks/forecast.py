"""One forecast of one series in a fresh process: ours, and the usual way with pytorch_forecasting and Lightning.

Both have the same weights and the same input, the canary of the embedded demo bundle, and begin at `python`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.processes import Measured, alternate, measure, python

BUNDLE = Path(__file__).resolve().parent.parent / "models" / "demo"


def run(*, quick: bool) -> list[Figure]:
    """Wall time, peak memory, and how far the numbers differ."""
    with tempfile.TemporaryDirectory() as place:
        measure(python("-m", "benchmarks.forecast_usual", "prepare", str(BUNDLE), place))
        ours, usual = alternate(
            lambda: measure(python("-m", "benchmarks.forecast_ours", str(BUNDLE))),
            lambda: measure(python("-m", "benchmarks.forecast_usual", "predict", place)),
            runs=2 if quick else 7,
        )
    name = f"forecast alone, {shape(ours)}"
    return [
        Figure(name, ours.seconds, usual.seconds, "s", "the usual way", "ratio >= 20"),
        Figure(f"{name}, peak memory", ours.megabytes, usual.megabytes, "MB", "the usual way", "ratio >= 4"),
        Figure("largest difference", difference(ours, usual), 1e-4, "of the quantile range", "allowed", "ratio >= 1"),
    ]


def shape(measured: Measured) -> str:
    """The size of a forecast, in words."""
    steps, levels = np.array(json.loads(measured.stdout)["quantiles"]).shape
    return f"{steps} steps, {levels} quantiles"


def difference(ours: Measured, usual: Measured) -> float:
    """The largest difference between the two forecasts, relative to the widest quantile range."""
    got, wanted = (np.array(json.loads(one.stdout)["quantiles"]) for one in (ours, usual))
    return float(np.abs(got - wanted).max() / np.ptp(wanted, axis=1).max())
