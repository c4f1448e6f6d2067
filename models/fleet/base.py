"""What an engine of the fleet gets and what it must give, stated once.

Nothing here knows where the numbers came from or what is done with the forecast.
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
ProgressCallback = Callable[[int, int], None]  # steps done, steps in all
ResultCallback = Callable[[Indices, Floats], None]  # some servers' rows, and their quantiles `[n, M, Q, H]`


@dataclass(frozen=True, eq=False)
class FleetInput:
    """The windows of `S` servers that end with the same tick.

    tick:     of the last observed step; its time is `tick * step`, in unix seconds
    step:     seconds
    servers:  names, each once
    profiles: of each server
    values:   float32 `[S, L, M]`, the bundle's metrics in their units, without holes, the newest step last; they do not
              change afterwards, for an engine may keep them
    lengths:  int64 `[S]`, how many of the last steps of a server are there; what lies before them is not read
    """

    tick: int
    step: int
    servers: tuple[str, ...]
    profiles: tuple[str, ...]
    values: Floats
    lengths: Indices


class FleetEngine(Protocol):
    """Runs one bundle. `name` is the one it is chosen by; `manifest` is the bundle's."""

    name: str
    manifest: FleetManifest

    def forecast(self, inputs: FleetInput, progress: ProgressCallback = ..., on_result: ResultCallback = ...) -> Floats:
        """Quantiles float32 `[S, M, Q, H]` in the metrics' units, not decreasing along Q, within the metrics' bounds.

        Column `h` speaks of the tick `inputs.tick + 1 + h`. `progress` hears of every part of the work that is done, and
        `done`, from any of the engine's threads, of every server once, as soon as its quantiles are what they will be.

        Raises:
            DataError: the input does not fit the bundle.
            BundleError: (check "finite") the network gave a number that is not finite.
        """
        ...

    def look_ahead(self, tick: int) -> None:
        """Nobody waits now: do what a forecast from this tick on will need and is known already."""
        ...
