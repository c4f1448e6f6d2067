"""One forecast of one series in a fresh process: ours, and the usual way with pytorch_forecasting and Lightning.

Both use the same weights and the same input, the canary of the demo bundle, and are measured from the start of `python`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure
from benchmarks.processes import MeasuredRun, alternate, measure, python

BUNDLE = Path(__file__).resolve().parent.parent / "models" / "demo"


def run(*, quick: bool) -> list[Figure]:
    """Wall time, peak memory, and the largest difference of the numbers."""
    with tempfile.TemporaryDirectory() as directory:
        measure(python("-m", "benchmarks.forecast_usual", "prepare", str(BUNDLE), directory))
        ours, usual = alternate(
            lambda: measure(python("-m", "benchmarks.forecast_ours", str(BUNDLE))),
            lambda: measure(python("-m", "benchmarks.forecast_usual", "predict", directory)),
            runs=1 if quick else 7,
        )
    name = f"forecast alone, {describe_shape(ours)}"
    return [
        Figure(name, ours.seconds, usual.seconds, "s", "the usual way", "ratio >= 20"),
        Figure(f"{name}, peak memory", ours.megabytes, usual.megabytes, "MB", "the usual way", "ratio >= 4"),
        Figure(
            "largest difference",
            largest_difference(ours, usual),
            1e-4,
            "of the quantile range",
            "allowed",
            "ratio >= 1",
        ),
    ]


def describe_shape(measured: MeasuredRun) -> str:
    """The size of a forecast, in words."""
    steps, levels = np.array(json.loads(measured.stdout)["quantiles"]).shape
    return f"{steps} steps, {levels} quantiles"


def largest_difference(ours: MeasuredRun, usual: MeasuredRun) -> float:
    """The largest difference between the two forecasts, relative to the widest quantile range."""
    our_quantiles, usual_quantiles = (np.array(json.loads(measured.stdout)["quantiles"]) for measured in (ours, usual))
    return float(np.abs(our_quantiles - usual_quantiles).max() / np.ptp(usual_quantiles, axis=1).max())
