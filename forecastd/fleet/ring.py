"""The numbers of a rolling window: per slot a ring of ticks, float32, NaN where nothing came.

The one thing to know before changing it: it knows slots and ticks, and neither servers nor time. A tick stands at itself
modulo the ring's size, so whoever moves on (`FleetWindow`) empties the places of new ticks before they are used. Within one
tick the newer row of a slot wins, value by value: what it does not have stays as the older one had it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import M

FIRST_CAPACITY = 64  # slots; doubled when they are used up
MOST_A_TICK = 16  # rows of one slot and tick that a batch is looked through for, the newest


class Ring:
    """Arrays of `[capacity, size]` ticks that grow by doubling; not thread-safe."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.values = np.empty((0, size, M), np.float32)
        self.offsets = np.empty((0, size), np.float32)  # seconds into the tick; NaN where there is no row
        self.states = np.empty((0, size), np.uint8)
        self.unsaved = np.empty((0, size), np.bool_)

    def reserve(self, slots: int, most: int) -> None:
        """Room for `slots` slots, of at most `most` that will ever be; what is there stays where it is."""
        have = len(self.values)
        if slots <= have:
            return
        more = max(min(max(FIRST_CAPACITY, 2 * have, slots), most), slots) - have
        self.values = np.concatenate([self.values, np.full((more, self.size, M), np.nan, np.float32)])
        self.offsets = np.concatenate([self.offsets, np.full((more, self.size), np.nan, np.float32)])
        self.states = np.concatenate([self.states, np.zeros((more, self.size), np.uint8)])
        self.unsaved = np.concatenate([self.unsaved, np.zeros((more, self.size), np.bool_)])

    def empty(self, slots: slice, ticks: NDArray[np.int64]) -> None:
        """Forget these ticks of these slots."""
        at = (slots, ticks % self.size)
        self.values[at] = np.nan
        self.offsets[at] = np.nan
        self.unsaved[at] = False

    def span(self, slots: NDArray[np.int64], tick: int, length: int) -> NDArray[np.float32]:
        """A copy of the `length` ticks up to `tick` of some slots: `[slots, length, M]`."""
        values = np.empty((len(slots), length, M), np.float32)
        first, last = (tick - length + 1) % self.size, tick % self.size
        spans = [(first, last + 1)] if first <= last else [(first, self.size), (0, last + 1)]
        whole = bool((slots == np.arange(len(slots))).all())
        at = 0
        for begin, end in spans:
            part = self.values[:, begin:end]
            values[:, at : at + end - begin] = part[: len(slots)] if whole else part[slots]
            at += end - begin
        return values

    def merge(
        self,
        slots: NDArray[np.int64],
        ticks: NDArray[np.int64],
        offsets: NDArray[np.float32],
        states: NDArray[np.uint8],
        values: NDArray[np.float32],
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Lay rows over what their ticks have; which of them brought something new, and which were there already."""
        learnt, same = np.zeros(len(slots), np.bool_), np.zeros(len(slots), np.bool_)
        cols = ticks % self.size
        for part in _rounds(slots * self.size + cols, offsets):
            at = (slots[part], cols[part])
            old_offset, offset, new, state = self.offsets[at], offsets[part], values[part], states[part]
            first = np.isnan(old_offset)
            if first.all():
                learnt[part] = True
            else:
                newer = first | (offset > old_offset)
                old, has = self.values[at], ~np.isnan(new)
                learns = newer | (np.isnan(old) & has).any(axis=1)
                learnt[part], same[part] = learns, ~learns & (offset == old_offset)
                new = np.where((newer[:, None] & has) | np.isnan(old), new, old)
                offset, state = np.where(newer, offset, old_offset), np.where(newer, state, self.states[at])
            self.values[at], self.offsets[at], self.states[at] = new, offset, state
        return learnt, same


def _rounds(keys: NDArray[np.int64], offsets: NDArray[np.float32]) -> Iterator[NDArray[np.int64] | slice]:
    """Indices in rounds that have each key once, the older rows first; of each key at most the newest `MOST_A_TICK`."""
    ordered = np.sort(keys)
    if not (ordered[1:] == ordered[:-1]).any():
        yield slice(None)  # one round of all: nothing has to be copied for it
        return
    order = np.lexsort((offsets, keys))
    _, starts, counts = np.unique(keys[order], return_index=True, return_counts=True)
    from_end = np.repeat(starts + counts, counts) - np.arange(len(keys))  # 1 is a key's newest
    for place in range(min(int(counts.max()), MOST_A_TICK), 0, -1):
        yield order[from_end == place]
