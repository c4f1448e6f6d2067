"""The numbers of a rolling window: for each slot a ring of ticks, float32, NaN where a value is missing.

It knows slots and ticks, but neither servers nor time.

Invariant: a tick is at its number modulo the size of the ring, so the caller (`FleetWindow`) must clear the cells of
new ticks before they are used. Within one tick the newer row of a slot wins, value by value: values that it lacks
stay.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRIC_COUNT

INITIAL_CAPACITY = 64  # slots; doubled when all are used
NO_TICK = np.iinfo(np.int64).min // 2
EMPTY_CELLS = {"values": np.nan, "offsets": np.nan, "status_codes": 0, "unsaved": False, "last_ticks": NO_TICK}
MAX_ROWS_PER_TICK = 16  # of one slot in one batch: only the newest are merged


class TickRing:
    """Arrays of `[capacity, size]` ticks that grow by doubling. Not thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = np.empty((0, size, METRIC_COUNT), np.float32)
        self.offsets = np.empty((0, size), np.float32)  # seconds into the tick; NaN for no row
        self.status_codes = np.empty((0, size), np.uint8)
        self.unsaved = np.empty((0, size), np.bool_)
        self.last_ticks = np.empty(0, np.int64)  # [capacity], the tick of each slot's newest row

    def reserve(self, slots: int, max_slots: int) -> None:
        """Make room for `slots` slots, of at most `max_slots` ever. Existing cells keep their place."""
        capacity = len(self.values)
        if slots <= capacity:
            return
        extra = max(min(max(INITIAL_CAPACITY, 2 * capacity, slots), max_slots), slots) - capacity
        for name, empty in EMPTY_CELLS.items():
            array = getattr(self, name)
            setattr(self, name, np.concatenate([array, np.full((extra, *array.shape[1:]), empty, array.dtype)]))

    def clear(self, slots: slice, ticks: NDArray[np.int64]) -> None:
        """Clear these ticks of these slots."""
        cells = (slots, ticks % self.size)
        self.values[cells] = np.nan
        self.offsets[cells] = np.nan
        self.unsaved[cells] = False

    def read(self, slots: NDArray[np.int64], tick: int, length: int) -> NDArray[np.float32]:
        """A copy of the `length` ticks up to `tick` of these slots: `[slots, length, M]`."""
        values = np.empty((len(slots), length, METRIC_COUNT), np.float32)
        first, last = (tick - length + 1) % self.size, tick % self.size
        spans = [(first, last + 1)] if first <= last else [(first, self.size), (0, last + 1)]
        is_prefix = bool((slots == np.arange(len(slots))).all())
        offset = 0
        for begin, end in spans:
            columns = self.values[:, begin:end]
            values[:, offset : offset + end - begin] = columns[: len(slots)] if is_prefix else columns[slots]
            offset += end - begin
        return values

    def merge(
        self,
        slots: NDArray[np.int64],
        ticks: NDArray[np.int64],
        offsets: NDArray[np.float32],
        status_codes: NDArray[np.uint8],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Merge rows into their ticks; returns masks of the rows that changed something, and of the repeated rows."""
        updated, repeated = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        cols = ticks % self.size
        for part in _merge_rounds(slots * self.size + cols, offsets):
            cells = (slots[part], cols[part])
            old_offset, offset, new, status = self.offsets[cells], offsets[part], values[part], status_codes[part]
            is_empty = np.isnan(old_offset)
            if is_empty.all():
                updated[part] = True
            else:
                is_newer = is_empty | (offset > old_offset)
                old, has_value = self.values[cells], ~np.isnan(new)
                is_update = is_newer | (np.isnan(old) & has_value).any(axis=1)
                updated[part], repeated[part] = is_update, ~is_update & (offset == old_offset)
                new = np.where((is_newer[:, None] & has_value) | np.isnan(old), new, old)
                offset = np.where(is_newer, offset, old_offset)
                status = np.where(is_newer, status, self.status_codes[cells])
            self.values[cells], self.offsets[cells], self.status_codes[cells] = new, offset, status
        return updated, repeated


def _merge_rounds(keys: NDArray[np.int64], offsets: NDArray[np.float32]) -> Iterator[NDArray[np.int64] | slice]:
    """Indices in rounds that have each key once, older rows first; of each key at most the newest
    `MAX_ROWS_PER_TICK`."""
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        yield slice(None)  # one round for all rows, without a copy
        return
    order = np.lexsort((offsets, keys))
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    rank_from_newest = np.repeat(starts + counts, counts) - np.arange(len(keys))  # 1 is the newest row of a key
    for rank in range(min(int(counts.max()), MAX_ROWS_PER_TICK), 0, -1):
        yield order[rank_from_newest == rank]
