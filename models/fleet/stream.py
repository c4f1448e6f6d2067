"""The engine that keeps what it has computed of the past, and computes in the pause between two ticks what it can.

With fixed scales, what the variable selection makes of a tick depends on that tick alone, so it is computed once. And all but
the newest tick of a window is known before that one comes, so the network goes through it in advance. What is kept is held
against the very values it was made from at every forecast: a row that came late, a corrected one, another profile or another
server under an old name cost their own ticks and are never wrong. Not to be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import FleetInput, Floats, Indices
from models.fleet.batched import pieces
from models.fleet.bundle import FleetBundle
from models.fleet.folded import Onnx
from models.fleet.sessions import Carried

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class _Kept:
    """The last forecast's windows `[S, L, M]` and what was chosen of them `[S, L, hidden]`."""

    tick: int
    servers: tuple[str, ...]
    groups: Indices
    which: Indices
    values: Floats
    chosen: Floats


class Stream(Onnx):
    """The folded network in ONNX Runtime, the selections of past ticks kept."""

    name = "stream"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self._kept: _Kept | None = None
        self._steady = False  # whether the last forecast was of the tick after that of the one before
        self._carried = dict[tuple[int, int], Carried]()  # pieces of the next windows, by where they are
        self._carried_from: _Kept | None = None  # what they follow from
        self._as_foreseen: Mask = np.zeros(0, dtype=bool)  # servers of which nothing but the newest tick is new

    def look_ahead(self, tick: int) -> None:
        """All but the newest tick of the next windows is known: the network is taken through it, where ticks are not
        skipped anyway because there is no time for them. On one thread: the others have to take the forecast in.
        """
        super().look_ahead(tick)
        kept = self._kept
        self._carried_from, self._carried = kept, {}
        if kept is None or not self._steady or kept.tick != tick - 1:
            return
        for part in pieces(len(kept.chosen)):
            past = np.ascontiguousarray(kept.chosen[part, 1:])
            self._carried[part.start, part.stop] = self.sessions.carried(past, kept.which[part])

    def rest(self, past: Floats, future: Floats, which: Indices, part: slice) -> Floats:
        """As `Onnx.rest`."""
        carried = self._carried.get((part.start, part.stop))
        if carried is None or not self._as_foreseen[part].all():
            return super().rest(past, future, which, part)
        return self.sessions.rest(past[:, -1:], future, which, carried)

    def chosen_past(self, inputs: FleetInput, groups: Indices, which: Indices, advance: Callable[[], None]) -> Floats:
        """As `Onnx.chosen_past`."""
        self._as_foreseen = np.zeros(len(which), dtype=bool)
        if inputs.values.shape[1] < self.manifest.encoder_length:
            return super().chosen_past(inputs, groups, which, advance)
        shape = *inputs.values.shape[:2], self.manifest.network.hidden_size
        chosen, fresh = np.empty(shape, dtype=np.float32), np.ones(shape[:2], dtype=bool)
        now = _Kept(inputs.tick, inputs.servers, groups, which, inputs.values, chosen)
        rows = self._rows(now)

        def run(part: slice) -> None:
            self._take_over(now, rows, fresh, part)
            self._choose(now, fresh[part], part.start)

        for _ in self.sessions.each(run, pieces(len(chosen))):
            advance()
        self._steady = self._kept is not None and now.tick == self._kept.tick + 1
        if rows is not None and self._steady and self._carried_from is self._kept:
            self._as_foreseen = (rows == np.arange(len(rows))) & ~fresh[:, :-1].any(axis=1)
        self._kept = now
        return chosen

    def _rows(self, now: _Kept) -> Indices | None:
        """Where each server is in what is kept, -1 where it is not or is another; None when nothing kept is of use."""
        kept = self._kept
        if kept is None or not 0 <= now.tick - kept.tick < now.values.shape[1]:
            return None
        places = {server: row for row, server in enumerate(kept.servers)}
        at = np.array([places.get(server, -1) for server in now.servers], dtype=np.int64)
        return np.where((kept.groups[at] == now.groups) & (kept.which[at] == now.which), at, -1)

    def _take_over(self, now: _Kept, rows: Indices | None, fresh: Mask, part: slice) -> None:
        """Put what is kept of some servers into its place, and strike it from `fresh` `[S, L]`."""
        kept = self._kept
        if kept is None or rows is None:
            return
        shift, at = now.tick - kept.tick, rows[part]
        upto = fresh.shape[1] - shift
        alike = (kept.values[at, shift:] == now.values[part, :upto]).all(axis=-1)
        fresh[part, :upto] = ~(alike & (at >= 0)[:, None])
        now.chosen[part, :upto] = kept.chosen[at, shift:]

    def _choose(self, now: _Kept, fresh: Mask, start: int) -> None:
        """Fill in what is fresh `[servers, L]` of the servers from `start` on."""
        servers, steps = np.nonzero(fresh)
        if not len(servers):
            return
        servers += start
        scaled = self.scaling.scale(now.values[servers, steps][:, None], now.groups[servers])[:, 0]
        known = self.known(now.tick - now.values.shape[1] + 1 + steps)
        variables = np.concatenate([known, scaled], axis=-1)
        now.chosen[servers, steps] = self.sessions.select(variables, now.which[servers])
