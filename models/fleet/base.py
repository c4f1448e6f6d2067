"""The contract of a fleet engine: its input, its output, its callbacks.

It is independent of the source of the data and of the use of the forecast.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from models.fleet.manifest import FleetManifest

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


class FleetEngine(Protocol):
    """Runs one bundle. `name` is that in `models.fleet.engines.ENGINES`; `manifest` is the bundle's."""

    name: str
    manifest: FleetManifest

    def forecast(self, inputs: FleetInput, progress: ProgressCallback = ..., on_result: ResultCallback = ...) -> Floats:
        """Quantiles float32 `[S, M, Q, H]` in the metrics' units, non-decreasing along Q, within the metrics' bounds.

        Column `h` is the forecast for tick `inputs.tick + 1 + h`. `progress` is called after each part of the work;
        `on_result`, from any engine thread, once per server when its quantiles are final.

        Raises:
            DataError: the input does not fit the bundle.
            BundleError: (check "finite") the network gave a number that is not finite.
        """
        ...

    def look_ahead(self, tick: int) -> None:
        """Compute in advance what is known of the inputs of the forecast at `tick`. Called when the engine is idle."""
        ...
