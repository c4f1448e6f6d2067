"""The engines that run a fleet's bundle, all with the same outputs: the library's own forward, and three faster ones.

- `library`: pytorch_forecasting's network itself; slow to start and to run, the measure of the others
- `fused`: the folded network in numpy (`models.tft`)
- `onnx`: the folded network in ONNX Runtime
- `stream`: as `onnx`, and what the variable selection made of past ticks is kept: of a window that moves on by one tick
  only that tick is new. That needs a full encoder; servers with a shorter one are run as by `onnx`
- `auto`: `stream`, since the scales of a bundle are always fixed
"""

from __future__ import annotations

import numpy as np

from models.fleet.base import FleetEngine, Floats, Progress
from models.fleet.batched import silent
from models.fleet.bundle import FleetBundle, canary_input
from models.proof import prove

ENGINES = ("auto", "library", "fused", "stream", "onnx")
TOLERANCE = 1e-3  # of the quantile range: how far an engine may be from the network it was made of


def load_fleet_engine(bundle: FleetBundle, name: str = "auto", threads: int = 1) -> FleetEngine:
    """The engine `name` of `ENGINES` for a bundle, with so many threads of its own.

    Raises:
        ValueError: there is no such engine.
    """
    if name == "library":
        from models.fleet.reference import Library

        return Library(bundle, threads)
    if name == "fused":
        from models.fleet.folded import Fused

        return Fused(bundle)
    if name == "onnx":
        from models.fleet.folded import Onnx

        return Onnx(bundle, threads)
    if name in {"stream", "auto"}:
        from models.fleet.stream import Stream

        return Stream(bundle, threads)
    raise ValueError(f"There is no engine {name!r}; there are {', '.join(ENGINES)}.")


def verify_fleet_canary(bundle: FleetBundle, engine: FleetEngine, progress: Progress = silent) -> float:
    """Run the bundle's canary; gives its largest difference from what the trained network gave, of the quantile range.

    Raises:
        BundleError: (check "canary") the difference is above the tolerance, or the canary does not run at all.
    """

    def difference() -> float:
        return range_difference(engine.forecast(canary_input(bundle), progress), bundle.canary.quantiles)

    return prove(bundle.path, difference, TOLERANCE)


def range_difference(got: Floats, wanted: Floats) -> float:
    """The largest difference between quantiles `[S, M, Q, H]`, relative to their series' widest quantile range."""
    width = (wanted[:, :, -1] - wanted[:, :, 0]).max(axis=-1)
    difference = np.abs(got.astype(np.float64) - wanted).max(axis=(2, 3))
    return float((difference / np.where(width > 0, width, 1.0)).max(initial=0.0))
