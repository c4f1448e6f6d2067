"""Which servers a model can forecast: the usable run of ticks at the end of each server's window.

Invariant: readiness is what the model's encoder needs on the time grid, and nothing else. A metric that is missing
for up to `MAX_GAP` ticks keeps its last value; a longer gap ends the run, and only ticks after it count. A server is
ready when every metric of the model has such a run of at least `minimum` ticks that reaches (within `MAX_GAP`) the
last tick of the block. So a server stops being ready when its data stops.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRIC_NAMES
from forecastd.runtime.formatting import format_count

MAX_GAP = 6  # ticks for which a value is carried forward; half a minute at 5 s
CHUNK_SERVERS = 64  # servers per pass: the arrays fit into the CPU cache
READY, TOO_SHORT, SILENT, METRIC_MISSING = range(4)
STATE_NAMES = ("ready", "too_short", "silent", "metric_missing")


@dataclass(frozen=True)
class PreparedInput:
    """The input of a model, and for the other servers why they have none."""

    filled: NDArray[np.float32]  # [S, L, M], right-aligned; 0 before each server's usable run, never NaN
    lengths: NDArray[np.int64]  # [S], usable encoder length; 0 = not ready
    missing_ticks: NDArray[np.int64]  # [S], ticks missing until the server is ready; 0 = ready
    codes: NDArray[np.int8]  # [S], an index into STATE_NAMES
    missing_metrics: NDArray[np.bool_]  # [S, M], metrics without a value within MAX_GAP of the block's end
    names: tuple[str, ...] = METRIC_NAMES  # of the metrics

    def reason(self, server: int) -> str:
        """Why the server in this row is ready or not, in words for the user."""
        code = int(self.codes[server])
        if code == SILENT:
            return f"silent: no row for more than {MAX_GAP} ticks"
        if code == METRIC_MISSING:
            return f"not reported: {', '.join(np.array(self.names)[self.missing_metrics[server]].tolist())}"
        if code == READY:
            return "ready"
        return f"needs {format_count(int(self.missing_ticks[server]), 'more tick')} of history"


def prepare_input(values: NDArray[np.float32], minimum: int, names: tuple[str, ...] = METRIC_NAMES) -> PreparedInput:
    """Fill gaps, cut runs and count missing ticks for the servers of a block.

    Args:
        values: `[S, L, M]` on the time grid, NaN where a value is missing.
        minimum: ticks that the model's encoder needs at least.
        names: the metrics, which are those of the model.
    """
    length, metrics = values.shape[1:]
    filled = np.array(
        values, dtype=np.float32, order="C"
    )  # selected columns may have another memory order; see `_fill`
    run = np.full(len(filled), length, dtype=np.int64)
    missing_metrics = np.full((len(filled), metrics), length == 0)
    # The sum of a row is NaN if one of its values is: faster than checking each value.
    row_sums = (filled.reshape(-1, metrics) @ np.ones(metrics, np.float32)).reshape(len(filled), length)
    incomplete = np.flatnonzero(np.isnan(row_sums).any(axis=1))
    for start in range(0, len(incomplete), CHUNK_SERVERS):
        chunk = incomplete[start : start + CHUNK_SERVERS]
        chunk_values = filled[chunk]
        run[chunk], missing_metrics[chunk] = _fill(chunk_values)
        filled[chunk] = chunk_values
    ready = (run >= minimum) & (run > 0)
    codes = np.where(ready, READY, TOO_SHORT)
    codes[missing_metrics.any(axis=1)] = METRIC_MISSING
    codes[missing_metrics.all(axis=1)] = SILENT
    missing_ticks = np.where(ready, 0, np.maximum(minimum - run, 1))
    return PreparedInput(filled, np.where(ready, run, 0), missing_ticks, codes.astype(np.int8), missing_metrics, names)


def _fill(values: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Carry values forward and zero what is before each run, in place; returns runs `[S]` and missing metrics `[S,
    M]`."""
    servers, length, metrics = values.shape
    size = length * metrics
    flat = values.reshape(servers, size)
    empty = np.isnan(flat)
    # For each cell the last tick, from 1, with a value within MAX_GAP, 0 for none: a running maximum of shifted copies.
    ticks = np.repeat(np.arange(1, length + 1, dtype=np.int16 if length < 2**15 - 1 else np.int32), metrics)
    last_tick = ticks * ~empty
    covered = 1
    while covered <= MAX_GAP:
        shift = min(covered, MAX_GAP + 1 - covered)
        shifted = last_tick.copy()
        np.maximum(last_tick[:, shift * metrics :], last_tick[:, : -shift * metrics], out=shifted[:, shift * metrics :])
        last_tick, covered = shifted, covered + shift
    # The run of a server begins after the last tick where any metric has no value.
    cuts = np.append(-1, np.flatnonzero(last_tick == 0))
    last_gap = cuts[np.searchsorted(cuts, np.arange(1, servers + 1) * size) - 1] - np.arange(servers) * size
    run_start = np.where(last_gap < 0, 0, last_gap // metrics + 1)
    for server, start in enumerate(run_start.tolist()):
        empty[server, : start * metrics] = False
    holes = np.flatnonzero(empty)
    source = holes - holes % size + (last_tick.reshape(-1)[holes].astype(np.int64) - 1) * metrics + holes % metrics
    values.reshape(-1)[holes] = values.reshape(-1)[source]
    for server, start in enumerate(run_start.tolist()):
        flat[server, : start * metrics] = 0.0  # last, because a value from before the run may have been carried into it
    return length - run_start, last_tick[:, -metrics:] == 0
