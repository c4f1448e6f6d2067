"""The forecast contract: the input and the output of every market model.

It is independent of the source of the data and of the use of the forecast.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelInput:
    """One series as a model sees it: `L` observed steps, and the calendar of the next `H` steps.

    end:    unix seconds at which the last observed step closed: the origin of the forecast
    step:   seconds
    target: float64 `[L]`, natural logarithm of the closing price
    past:   float64 `[L, P]`, features known up to the origin, in the bundle's order
    known:  float64 `[L + H, K]`, features known for the future too (calendar), in the bundle's order
    """

    end: int
    step: int
    target: FloatArray
    past: FloatArray
    known: FloatArray

    def sha256(self) -> str:
        """Hex digest of the shapes and the little-endian bytes of all fields."""
        digest = hashlib.sha256(f"{self.end} {self.step}".encode())
        for array in (self.target, self.past, self.known):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Forecast:
    """Quantiles of the cumulative log-return from the origin.

    end, step: as in the input; row `k` is for the time `end + (k + 1) * step`
    levels:    `[Q]` increasing probabilities that include 0.5
    quantiles: float64 `[H, Q]`, `log(close at row's time / close at the origin)`, non-decreasing along Q
    value:     the point forecast of a topic: the median of the last row (a log-return, no unit)
    input_sha256, bundle_sha256: hashes of the input and of the bundle
    """

    end: int
    step: int
    levels: tuple[float, ...]
    quantiles: FloatArray
    value: float
    input_sha256: str
    bundle_sha256: str
