"""The numbers of a rolling window: per slot a ring of ticks, float32, NaN where nothing came.

The one thing to know before changing it: it knows slots and ticks, and neither servers nor time. A tick stands at itself
modulo the ring's size, so whoever moves on (`FleetWindow`) empties the places of new ticks before they are used. Within one
tick the newer row of a slot wins, value by value: what it does not have stays as the older one had it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRIC_COUNT

INITIAL_CAPACITY = 64  # slots; doubled when they are used up
MAX_ROWS_PER_TICK = 16  # rows of one slot and tick that a batch is looked through for, the newest


class TickRing:
    """Arrays of `[capacity, size]` ticks that grow by doubling; not thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = np.empty((0, size, METRIC_COUNT), np.float32)
        self.offsets = np.empty((0, size), np.float32)  # seconds into the tick; NaN where there is no row
        self.status_codes = np.empty((0, size), np.uint8)
        self.unsaved = np.empty((0, size), np.bool_)

    def reserve(self, slots: int, max_slots: int) -> None:
        """Room for `slots` slots, of at most `most` that will ever be; what is there stays where it is."""
        capacity = len(self.values)
        if slots <= capacity:
            return
        extra = max(min(max(INITIAL_CAPACITY, 2 * capacity, slots), max_slots), slots) - capacity
        self.values = np.concatenate([self.values, np.full((extra, self.size, METRIC_COUNT), np.nan, np.float32)])
        self.offsets = np.concatenate([self.offsets, np.full((extra, self.size), np.nan, np.float32)])
        self.status_codes = np.concatenate([self.status_codes, np.zeros((extra, self.size), np.uint8)])
        self.unsaved = np.concatenate([self.unsaved, np.zeros((extra, self.size), np.bool_)])

    def clear(self, slots: slice, ticks: NDArray[np.int64]) -> None:
        """Forget these ticks of these slots."""
        cells = (slots, ticks % self.size)
        self.values[cells] = np.nan
        self.offsets[cells] = np.nan
        self.unsaved[cells] = False

    def read(self, slots: NDArray[np.int64], tick: int, length: int) -> NDArray[np.float32]:
        """A copy of the `length` ticks up to `tick` of some slots: `[slots, length, M]`."""
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
        """Lay rows over what their ticks have; which of them brought something new, and which were there already."""
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
                offset, status = (
                    np.where(is_newer, offset, old_offset),
                    np.where(is_newer, status, self.status_codes[cells]),
                )
            self.values[cells], self.offsets[cells], self.status_codes[cells] = new, offset, status
        return updated, repeated


def _merge_rounds(keys: NDArray[np.int64], offsets: NDArray[np.float32]) -> Iterator[NDArray[np.int64] | slice]:
    """Indices in rounds that have each key once, the older rows first; of each key at most the newest `MOST_A_TICK`."""
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        yield slice(None)  # one round of all: nothing has to be copied for it
        return
    order = np.lexsort((offsets, keys))
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    rank_from_newest = np.repeat(starts + counts, counts) - np.arange(len(keys))  # 1 is a key's newest
    for rank in range(min(int(counts.max()), MAX_ROWS_PER_TICK), 0, -1):
        yield order[rank_from_newest == rank]
