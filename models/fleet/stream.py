"""The engine that keeps what it has computed of the past, and computes in the pause between two ticks what it can.

With fixed scales, what the variable selection makes of a tick depends on that tick alone, so it is computed once. And all but
the newest tick of a window is known before that one comes, so the network goes through it in advance. What is kept is held
against the very values it was made from at every forecast: a row that came late, a corrected one, another profile or another
server under an old name cost their own ticks and are never wrong. Not to be shared by threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    """The last forecast's windows `[S, L, M]`, and what was chosen `[S, L, hidden]` of the L ticks up to `end`.

    That is `tick`, or, after a look ahead, the tick after it: what is chosen of that one is still to come.
    """

    tick: int
    servers: tuple[str, ...]
    groups: Indices
    which: Indices
    values: Floats
    chosen: Floats
    end: int


class Stream(Onnx):
    """The folded network in ONNX Runtime, the selections of past ticks kept."""

    name = "stream"

    def __init__(self, bundle: FleetBundle, threads: int) -> None:
        super().__init__(bundle, threads)
        self._kept: _Kept | None = None
        self._steady = False  # whether the last forecast was of the tick after that of the one before
        self._carried = dict[tuple[int, int], Carried]()  # pieces of the next windows, by where they are
        self._as_foreseen: Mask = np.zeros(0, dtype=bool)  # servers of which nothing but the newest tick is new

    def look_ahead(self, tick: int) -> None:
        """All but the newest tick of the next windows is known: the network is taken through it, where ticks are not
        skipped anyway because there is no time for them. On one thread: the others have to take the forecast in.
        """
        super().look_ahead(tick)
        kept, self._carried = self._kept, {}
        if kept is None or not self._steady or not kept.tick == kept.end == tick - 1:
            return
        self._kept = None  # until what was chosen has moved as a whole
        for part in pieces(len(kept.chosen)):
            past = np.ascontiguousarray(kept.chosen[part, 1:])
            kept.chosen[part, :-1] = past
            self._carried[part.start, part.stop] = self.sessions.carried(past, kept.which[part])
        self._kept = replace(kept, end=tick)

    def rest(self, past: Floats, future: Floats, which: Indices, part: slice) -> Floats:
        """As `Onnx.rest`."""
        carried = self._carried.pop((part.start, part.stop), None) if self._as_foreseen[part].all() else None
        if carried is None:
            return super().rest(past, future, which, part)
        return self.sessions.rest(past[:, -1:], future, which, carried)

    def chosen_past(self, inputs: FleetInput, groups: Indices, which: Indices, advance: Callable[[], None]) -> Floats:
        """As `Onnx.chosen_past`."""
        self._as_foreseen = np.zeros(len(which), dtype=bool)
        if inputs.values.shape[1] < self.manifest.encoder_length:
            return super().chosen_past(inputs, groups, which, advance)
        kept, self._kept = self._kept, None  # until what is chosen is whole again
        rows = None if kept is None else _rows(kept, inputs, groups, which)
        foreseen = kept is not None and rows is not None and _goes_on(kept, inputs.tick, rows)
        if kept is not None and foreseen:
            chosen = kept.chosen
        else:
            chosen = np.empty((*inputs.values.shape[:2], self.manifest.network.hidden_size), dtype=np.float32)
        now = _Kept(inputs.tick, inputs.servers, groups, which, inputs.values, chosen, inputs.tick)
        fresh = np.ones(chosen.shape[:2], dtype=bool)
        if kept is not None and rows is not None:
            for part in pieces(len(chosen)):
                _take_over(kept, now, rows, fresh, part)
        self._choose(now, fresh, advance)
        if foreseen:
            self._as_foreseen = np.asarray(~fresh[:, :-1].any(axis=1))
        self._steady = kept is not None and inputs.tick == kept.tick + 1
        self._kept = now
        return chosen

    def _choose(self, now: _Kept, fresh: Mask, advance: Callable[[], None]) -> None:
        """Fill in what is fresh `[S, L]`."""
        servers, steps = np.nonzero(fresh)
        most = len(pieces(len(fresh)))
        parts = self.sessions.shares(len(servers), most)

        def run(part: slice) -> None:
            at, when = servers[part], steps[part]
            scaled = self.scaling.scale(now.values[at, when][:, None], now.groups[at])[:, 0]
            known = self.known(now.tick - now.values.shape[1] + 1 + when)
            variables = np.concatenate([known, scaled], axis=-1)
            now.chosen[at, when] = self.sessions.select(variables, now.which[at])

        for _ in self.sessions.each(run, parts):
            advance()
        for _ in range(most - len(parts)):
            advance()


def _goes_on(kept: _Kept, tick: int, rows: Indices) -> bool:
    """Whether the windows up to `tick`, of which `rows` are kept, are those that were looked ahead to."""
    return kept.tick + 1 == kept.end == tick and np.array_equal(rows, np.arange(len(kept.servers)))


def _rows(kept: _Kept, inputs: FleetInput, groups: Indices, which: Indices) -> Indices | None:
    """Where each server is in what is kept, -1 where it is not or is another; None when nothing kept is of use."""
    if not 0 <= inputs.tick - kept.tick < inputs.values.shape[1]:
        return None
    places = {server: row for row, server in enumerate(kept.servers)}
    at = np.array([places.get(server, -1) for server in inputs.servers], dtype=np.int64)
    return np.where((kept.groups[at] == groups) & (kept.which[at] == which), at, -1)


def _take_over(kept: _Kept, now: _Kept, rows: Indices, fresh: Mask, part: slice) -> None:
    """Put what is kept of some servers into its place, and strike it from `fresh` `[S, L]`."""
    in_place, at = now.chosen is kept.chosen, rows[part]
    moved = now.tick - kept.end
    start, stop = max(0, -moved), fresh.shape[1] - (now.tick - kept.tick)
    before = kept.values[part if in_place else at, start + now.tick - kept.tick :]
    after = now.values[part, start:stop]
    if np.array_equal(before, after) and (at >= 0).all():
        fresh[part, start:stop] = False
    else:
        fresh[part, start:stop] = ~((before == after).all(axis=-1) & (at >= 0)[:, None])
    if not in_place:
        now.chosen[part, start:stop] = kept.chosen[at, start + moved : stop + moved]
