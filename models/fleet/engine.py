"""The common part of all fleet engines: check the windows, scale them, group them by length, run chunks, restore units.

Shorter encoders are rounded down to one of a few lengths, so that servers share batches.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count, pairwise

import numpy as np

from models.errors import DataError
from models.fleet.base import FleetInput, Floats, Indices, ProgressCallback, ResultCallback
from models.fleet.bundle import FleetBundle
from models.fleet.scaling import FleetScaling, calendar

# Servers at a time. 8 to 12 are equally fast, 16 is slower by a third: the arrays do not fit the cache.
CHUNK_SERVERS = 10
_MAX_LENGTHS = 24  # number of different encoder lengths
ChunkCallback = Callable[[slice], None]  # called with the servers of a chunk that is done


def ignore_progress(done: int, total: int) -> None:
    """A progress callback that does nothing."""


def ignore_results(rows: Indices, quantiles: Floats) -> None:
    """A result callback that does nothing."""


class FleetEngine:
    """Runs one bundle; a subclass runs the scaled windows. `name` is that in `models.fleet.engines.ENGINES`."""

    name = ""

    def __init__(self, bundle: FleetBundle) -> None:
        self.manifest = bundle.manifest
        self.scaling = FleetScaling(bundle)

    def forecast(
        self,
        inputs: FleetInput,
        progress: ProgressCallback = ignore_progress,
        on_result: ResultCallback = ignore_results,
    ) -> Floats:
        """Quantiles float32 `[S, M, Q, H]` in the metrics' units, non-decreasing along Q, within the metrics' bounds.

        Column `h` is the forecast for tick `inputs.tick + 1 + h`. `progress` is called after each part of the work;
        `on_result`, from any engine thread, once per server when its quantiles are final.

        Raises:
            DataError: the input does not fit the bundle.
            BundleError: (check "finite") the network gave a number that is not finite.
        """
        self.scaling.check(inputs)
        manifest, total = self.manifest, len(inputs.servers)
        levels, horizon = len(manifest.levels), manifest.horizon
        outputs = np.empty((total, len(manifest.metrics), levels, horizon), dtype=np.float32)
        groups, lengths, steps = self.scaling.groups(inputs), self._round_lengths(inputs.lengths), count(1)
        total_steps = 2 * sum(len(chunk_slices(int((lengths == length).sum()))) for length in set(lengths.tolist())) + 1

        def advance() -> None:
            progress(min(next(steps), total_steps), total_steps)

        for length in sorted(set(lengths.tolist())):
            rows = np.flatnonzero(lengths == length)
            windows = _take_servers(inputs, rows, length)
            if not np.isfinite(windows.values).all():
                raise DataError(
                    "A window contains a number that is not finite. Fill its gaps, or leave the server out."
                )
            part = outputs if len(rows) == total else outputs[rows]
            self.run_batch(windows, groups[rows], part, advance, _chunk_callback(on_result, rows, part))
            if part is not outputs:
                outputs[rows] = part
        advance()
        return outputs

    def look_ahead(self, tick: int) -> None:
        """Compute in advance what is known of the inputs of the forecast at `tick`. Called when the engine is idle."""

    def run_batch(
        self, inputs: FleetInput, groups: Indices, outputs: Floats, advance: Callable[[], None], on_chunk: ChunkCallback
    ) -> None:
        """Write the quantiles of windows, all as long as `inputs.values`, to `outputs` `[S, M, Q, H]`.

        `advance` is called at most twice for each chunk, `on_chunk` once.
        """
        raise NotImplementedError

    def write_outputs(self, raw: Floats, values: Floats, groups: Indices, outputs: Floats) -> None:
        """Write the network's outputs `[S, M * Q, H]` for windows `values` to `outputs` in the metrics' units.

        This is done chunk by chunk, while the arrays are in the cache.
        """
        outputs[...] = self.scaling.restore(raw.reshape(outputs.shape), values, groups)

    def _round_lengths(self, lengths: Indices) -> Indices:
        """Lengths rounded down to one of a few, but not below the minimum."""
        manifest = self.manifest
        step = max(1, (manifest.encoder_length - manifest.encoder_minimum) // _MAX_LENGTHS)
        return np.where(
            lengths >= manifest.encoder_length,
            manifest.encoder_length,
            manifest.encoder_minimum + (lengths - manifest.encoder_minimum) // step * step,
        )

    def encoder_variables(self, values: Floats, tick: int, groups: Indices) -> Floats:
        """The encoder variables `[S, L, V]` of metrics `[S, L, M]` up to `tick`."""
        scaled = self.scaling.scale(values, groups)
        known = self.calendar_variables(np.arange(tick - scaled.shape[1] + 1, tick + 1))
        return np.concatenate([np.broadcast_to(known, (*scaled.shape[:2], known.shape[-1])), scaled], axis=-1)

    def decoder_variables(self, tick: int) -> Floats:
        """The decoder variables `[H, V]` after `tick`, equal for all servers."""
        manifest = self.manifest
        ahead = np.arange(manifest.horizon)
        relative = (ahead / manifest.encoder_length).astype(np.float32)
        return np.concatenate([self.calendar_variables(tick + 1 + ahead), relative[:, None]], axis=-1)

    def calendar_variables(self, ticks: Indices) -> Floats:
        """The calendar variables `[T, K]` of these ticks."""
        return calendar(self.manifest.cycles, self.manifest.step, ticks)


def chunk_slices(count: int, max_size: int = CHUNK_SERVERS) -> list[slice]:
    """Split `range(count)` into slices of nearly the same size, none longer than `max_size`."""
    bounds = np.linspace(0, count, -(-count // max_size) + 1).round().astype(int).tolist()
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _chunk_callback(on_result: ResultCallback, rows: Indices, outputs: Floats) -> ChunkCallback:
    return lambda part: on_result(rows[part], outputs[part])


def _take_servers(inputs: FleetInput, rows: Indices, length: int) -> FleetInput:
    """The servers `rows` with their last `length` steps."""
    if len(rows) == len(inputs.servers):
        return replace(inputs, values=inputs.values[:, -length:])
    return FleetInput(
        inputs.tick,
        inputs.step,
        tuple(inputs.servers[row] for row in rows),
        tuple(inputs.profiles[row] for row in rows),
        inputs.values[rows, -length:],
        inputs.lengths[rows],
    )
