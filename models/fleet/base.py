"""The contract of a fleet engine (`models.fleet.engine.FleetEngine`): its input and its callbacks.

It is independent of the source of the data and of the use of the forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
ProgressCallback = Callable[[int, int], None]  # steps done, total steps
ResultCallback = Callable[[Indices, Floats], None]  # rows of some servers, and their quantiles `[n, M, Q, H]`


@dataclass(frozen=True, eq=False)
class FleetInput:
    """The windows of `S` servers, all of which end with the same tick.

    tick:     of the last observed step; its time is `tick * step` in unix seconds
    step:     seconds
    servers:  names, each once
    profiles: of each server
    values:   float32 `[S, L, M]`, the bundle's metrics in their units, without missing values, the newest step last;
              an engine may store them, so they must not change afterwards
    lengths:  int64 `[S]`, number of the last steps that a server has; values before them are not read
    """

    tick: int
    step: int
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    values: Floats
    lengths: Indices
