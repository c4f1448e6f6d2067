"""The forecast contract, stated once: what every model gets and what it must give.

Nothing here knows where the data came from or what is done with the forecast.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ModelInput:
    """What a model sees of one series: `L` observed steps and the calendar of the `H` steps to come.

    end:    unix seconds at which the last observed step closed: the origin of the forecast
    step:   seconds
    target: float64 `[L]`, natural logarithm of the closing price
    past:   float64 `[L, P]`, features known up to the origin only, in the bundle's order
    known:  float64 `[L + H, K]`, features known for the future too (calendar), in the bundle's order
    """

    end: int
    step: int
    target: FloatArray
    past: FloatArray
    known: FloatArray

    def sha256(self) -> str:
        """Hex digest over the shapes and the little-endian bytes of everything the model sees."""
        digest = hashlib.sha256(f"{self.end} {self.step}".encode())
        for array in (self.target, self.past, self.known):
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f8").tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Forecast:
    """Quantiles of the cumulative log-return from the origin.

    end, step: as in the input; row `k` speaks of the time `end + (k + 1) * step`
    levels:    `[Q]` increasing probabilities, 0.5 among them
    quantiles: float64 `[H, Q]`, `log(close at row's time / close at the origin)`, not decreasing along Q
    value:     the point forecast a topic asks for: the median of the last row (a log-return, no unit)
    input_sha256, bundle_sha256: hashes of the input and of the bundle that made it
    """

    end: int
    step: int
    levels: tuple[float, ...]
    quantiles: FloatArray
    value: float
    input_sha256: str
    bundle_sha256: str
