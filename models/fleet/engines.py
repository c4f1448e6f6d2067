"""The engines that run a fleet bundle, all with the same outputs: the library's own network, and three faster ones.

- `library`: the network of pytorch_forecasting; slow to start and to run, the reference for the others
- `fused`: the folded network in numpy (`models.tft.forward`)
- `onnx`: the folded network in ONNX Runtime
- `stream`: as `onnx`, but it caches the variable selection of past ticks, so that only the new tick of a window is
  computed. This needs a full encoder; servers with a shorter one are run as by `onnx`
- `auto`: `stream`, or `fused` where ONNX Runtime is not installed
"""

from __future__ import annotations

from importlib.util import find_spec
from pkgutil import resolve_name

import numpy as np

from models.bundle.canary import check_canary, range_difference
from models.fleet.base import ProgressCallback
from models.fleet.bundle import FleetBundle, fleet_canary_input
from models.fleet.engine import FleetEngine, ignore_progress

ENGINES = {  # name -> class; its module is imported on first use, because it may need torch or ONNX Runtime
    "library": "models.fleet.library_engine:LibraryEngine",
    "fused": "models.fleet.folded_engines:FusedEngine",
    "stream": "models.fleet.stream_engine:StreamEngine",
    "onnx": "models.fleet.folded_engines:OnnxEngine",
}
TOLERANCE = 1e-3  # of the quantile range: the largest difference between an engine and its network


def load_fleet_engine(bundle: FleetBundle, name: str = "auto", threads: int = 1) -> FleetEngine:
    """The engine `name`, "auto" or one of `ENGINES`, for a bundle, with this number of threads.

    Raises:
        ValueError: there is no such engine.
    """
    if name == "auto":
        name = "stream" if find_spec("onnx") and find_spec("onnxruntime") else "fused"
    if name not in ENGINES:
        raise ValueError(f"There is no engine {name!r}; the engines are auto, {', '.join(ENGINES)}.")
    engine: FleetEngine = resolve_name(ENGINES[name])(bundle, threads)
    return engine


def canary_difference(bundle: FleetBundle, engine: FleetEngine, progress: ProgressCallback = ignore_progress) -> float:
    """Run the bundle's canary; returns the largest difference from the trained network, as a share of the quantile range."""
    quantiles = bundle.canary["quantiles"].astype(np.float32)
    return range_difference(engine.forecast(fleet_canary_input(bundle), progress), quantiles)


def verify_fleet_canary(
    bundle: FleetBundle, engine: FleetEngine, progress: ProgressCallback = ignore_progress
) -> float:
    """Check that the engine reproduces the bundle's canary; returns the difference.

    Raises:
        BundleError: (check "canary") the difference is above the tolerance, or the canary does not run at all.
    """
    return check_canary(bundle.path, lambda: canary_difference(bundle, engine, progress), TOLERANCE)
