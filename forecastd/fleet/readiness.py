"""Which servers a model can forecast: the usable run of ticks at the end of each server's window.

The one thing to know before changing it: readiness is what the model's encoder needs on the time grid, nothing else. A metric
missing for up to `MAX_GAP` ticks carries its last value on; a longer gap cuts, and only what is after it counts. A server is
ready when every metric of the contract has such a run of at least `minimum` ticks that reaches (within `MAX_GAP`) to the
block's last tick; so a server counts down again when its data stops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import NAMES

MAX_GAP = 6  # ticks a value is carried on; at 5 s half a minute
READY, TOO_SHORT, SILENT, METRIC_MISSING = range(4)
WORDS = ("ready", "too_short", "silent", "metric_missing")


@dataclass(frozen=True)
class Prepared:
    """What a model is given, and for the others why it is not."""

    filled: NDArray[np.float32]  # [S, L, M], right-aligned; 0 before each server's usable run, never NaN
    lengths: NDArray[np.int64]  # [S], usable encoder length; 0 = not ready
    needs: NDArray[np.int64]  # [S], ticks that are still missing until it is ready; 0 = ready
    codes: NDArray[np.int8]  # [S], an index into WORDS
    missing: NDArray[np.bool_]  # [S, M], metrics without a value within MAX_GAP of the block's end

    def reason(self, server: int) -> str:
        """Why the server in this row is ready or not, in words for a person."""
        code = int(self.codes[server])
        if code == SILENT:
            return f"silent: nothing came for more than {MAX_GAP} ticks"
        if code == METRIC_MISSING:
            return f"never or no longer reported: {', '.join(np.array(NAMES)[self.missing[server]].tolist())}"
        return "ready" if code == READY else f"{int(self.needs[server])} ticks of history are still missing"


def prepare(values: NDArray[np.float32], minimum: int) -> Prepared:
    """Fill, cut and count the servers of a block.

    Args:
        values: `[S, L, M]` on the time grid, NaN where nothing came.
        minimum: ticks that the model's encoder needs at least.
    """
    length = values.shape[1]
    filled = np.array(values, dtype=np.float32)
    runs = np.full(filled.shape[::2], length, dtype=np.int64)  # per server and metric
    holed = np.flatnonzero(np.isnan(filled).any(axis=(1, 2)))
    if len(holed):
        part = filled[holed]
        runs[holed] = _fill(part)
        filled[holed] = part
    run = runs.min(axis=1, initial=length)
    missing = runs == 0
    for server in holed.tolist():
        filled[server, : length - run[server]] = 0.0
    ready = (run >= minimum) & (run > 0)
    codes = np.where(ready, READY, TOO_SHORT)
    codes[missing.any(axis=1)] = METRIC_MISSING
    codes[missing.all(axis=1)] = SILENT
    needs = np.where(ready, 0, np.maximum(minimum - run, 1))
    return Prepared(filled, np.where(ready, run, 0), needs, codes.astype(np.int8), missing)


def _fill(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Carry values on in place; the ticks of each server and metric after its last long gap, 0 when that has not ended."""
    servers, length, metrics = values.shape
    gap = np.full((servers, metrics), MAX_GAP + 1, dtype=np.int64)
    start = np.zeros((servers, metrics), dtype=np.int64)
    last = np.zeros((servers, metrics), dtype=np.float32)
    for tick in range(length):
        now = values[:, tick]
        empty = np.isnan(now)
        start[~empty & (gap > MAX_GAP)] = tick
        gap = np.where(empty, gap + 1, 0)
        last = np.where(empty, last, now)
        values[:, tick] = last
    return np.where(gap > MAX_GAP, 0, length - start)
