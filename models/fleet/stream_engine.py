"""The engine that caches the selected variables of past ticks, and computes in advance between two ticks.

With fixed scales, the variable selection of a tick depends on that tick alone, so it is computed once. All ticks of a
window except the newest are known before the newest arrives, so the network is run over them in advance.

Invariant: at every forecast, the cache is compared with the values that it was computed from. A late or corrected
row, another profile, or a new server that reuses a name only forces recomputation; the forecast stays correct. An
engine must not be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.bundle import FleetBundle
from models.fleet.engine import chunk_slices
from models.fleet.folded_engines import OnnxEngine
from models.fleet.onnx_sessions import EncoderState

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class SelectionCache:
    """The windows `[S, L, M]` of the last forecast, and the selected variables `[S, L, hidden]` of the L ticks up to `end`.

    `end` is `tick`, or after `look_ahead` the next tick, whose selection is not computed yet.
    `selection` is updated in place.
    """

    tick: int
    servers: tuple[str, ...]
    groups: Indices
    profile_index: Indices
    values: Floats
    selection: Floats
    end: int


class StreamEngine(OnnxEngine):
    """The folded network in ONNX Runtime, with a cache of the selected variables of past ticks."""

    name = "stream"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self._cache: SelectionCache | None = None
        self._consecutive = False  # whether the last two forecasts were of consecutive ticks
        # encoder states of the next windows, by (start, stop) of the chunk
        self._prepared_states: dict[tuple[int, int], EncoderState] = {}
        self._prepared_rows: Mask = np.zeros(0, dtype=bool)  # servers for which only the newest tick is new

    def look_ahead(self, tick: int) -> None:
        """Run the network over the known ticks of the next windows, unless the last forecast skipped a tick (too little time
        to gain from it).

        This uses one thread: the others are busy with the results of the last forecast.
        """
        super().look_ahead(tick)
        cache, self._prepared_states = self._cache, {}
        if cache is None or not self._consecutive or not cache.tick == cache.end == tick - 1:
            return
        self._cache = None  # until the whole selection has moved
        for part in chunk_slices(len(cache.selection)):
            past = np.ascontiguousarray(cache.selection[part, 1:])
            cache.selection[part, :-1] = past
            self._prepared_states[part.start, part.stop] = self.sessions.run_past(past, cache.profile_index[part])
        self._cache = replace(cache, end=tick)

    def decode(self, past: Floats, future: Floats, profile_index: Indices, part: slice) -> Floats:
        """See `OnnxEngine.decode`."""
        state = self._prepared_states.pop((part.start, part.stop), None) if self._prepared_rows[part].all() else None
        if state is None:
            return super().decode(past, future, profile_index, part)
        return self.sessions.decode(past[:, -1:], future, profile_index, state)

    def select_past(
        self, inputs: FleetInput, groups: Indices, profile_index: Indices, advance: Callable[[], None]
    ) -> Floats:
        """See `OnnxEngine.select_past`."""
        self._prepared_rows = np.zeros(len(profile_index), dtype=bool)
        if inputs.values.shape[1] < self.manifest.encoder_length:
            return super().select_past(inputs, groups, profile_index, advance)
        cache, self._cache = self._cache, None  # until the selection is complete again
        rows = None if cache is None else _find_rows(cache, inputs, groups, profile_index)
        is_next = cache is not None and rows is not None and _matches_next(cache, inputs.tick, rows)
        if cache is not None and is_next:
            selection = cache.selection
        else:
            selection = np.empty((*inputs.values.shape[:2], self.manifest.network.hidden_size), dtype=np.float32)
        current = SelectionCache(
            inputs.tick, inputs.servers, groups, profile_index, inputs.values, selection, inputs.tick
        )
        stale = np.ones(selection.shape[:2], dtype=bool)
        if cache is not None and rows is not None:
            for part in chunk_slices(len(selection)):
                _copy_cached(cache, current, rows, stale, part)
        self._fill_selection(current, stale, advance)
        if is_next:
            self._prepared_rows = np.asarray(~stale[:, :-1].any(axis=1))
        self._consecutive = cache is not None and inputs.tick == cache.tick + 1
        self._cache = current
        return selection

    def _fill_selection(self, current: SelectionCache, stale: Mask, advance: Callable[[], None]) -> None:
        """Compute the selection of the stale ticks `[S, L]`."""
        servers, steps = np.nonzero(stale)
        max_chunks = len(chunk_slices(len(stale)))
        parts = self.sessions.plan_chunks(len(servers), max_chunks)

        def run(part: slice) -> None:
            server_rows, step_rows = servers[part], steps[part]
            values = current.values[server_rows, step_rows][:, None]
            scaled = self.scaling.scale(values, current.groups[server_rows])[:, 0]
            calendar_values = self.calendar_variables(current.tick - current.values.shape[1] + 1 + step_rows)
            variables = np.concatenate([calendar_values, scaled], axis=-1)
            current.selection[server_rows, step_rows] = self.sessions.select(
                variables, current.profile_index[server_rows]
            )

        for _ in self.sessions.run_chunks(run, parts):
            advance()
        for _ in range(max_chunks - len(parts)):
            advance()


def _matches_next(cache: SelectionCache, tick: int, rows: Indices) -> bool:
    """Whether the windows up to `tick`, with cached `rows`, are those that `look_ahead` prepared."""
    return cache.tick + 1 == cache.end == tick and np.array_equal(rows, np.arange(len(cache.servers)))


def _find_rows(cache: SelectionCache, inputs: FleetInput, groups: Indices, profile_index: Indices) -> Indices | None:
    """The row of each server in the cache, -1 if it is not there or has changed; None if the cache is of no use."""
    if not 0 <= inputs.tick - cache.tick < inputs.values.shape[1]:
        return None
    row_by_server = {server: row for row, server in enumerate(cache.servers)}
    rows = np.array([row_by_server.get(server, -1) for server in inputs.servers], dtype=np.int64)
    return np.where((cache.groups[rows] == groups) & (cache.profile_index[rows] == profile_index), rows, -1)


def _copy_cached(cache: SelectionCache, current: SelectionCache, rows: Indices, stale: Mask, part: slice) -> None:
    """Copy the cached selection of some servers to `current`, and clear it in `stale` `[S, L]`."""
    in_place, source_rows = current.selection is cache.selection, rows[part]
    # A tick at step `i` of the new window is at step `i + value_offset` of `cache.values` and at step
    # `i + selection_offset` of `cache.selection`. The new steps `start:stop` are those that the cache has.
    value_offset, selection_offset = current.tick - cache.tick, current.tick - cache.end
    start, stop = max(0, -selection_offset), stale.shape[1] - value_offset
    cached_values = cache.values[part if in_place else source_rows, start + value_offset :]
    new_values = current.values[part, start:stop]
    if np.array_equal(cached_values, new_values) and (source_rows >= 0).all():
        stale[part, start:stop] = False
    else:
        stale[part, start:stop] = ~((cached_values == new_values).all(axis=-1) & (source_rows >= 0)[:, None])
    if not in_place:
        current.selection[part, start:stop] = cache.selection[
            source_rows, start + selection_offset : stop + selection_offset
        ]
