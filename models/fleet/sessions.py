"""ONNX Runtime's sessions for one network, and the threads that run them.

A piece of the servers is run by one thread: small pieces at the same time are faster than a large batch on all threads,
because a piece's arrays stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from models.fleet.base import Floats, Indices
from models.fleet.batched import pieces
from models.fleet.graph import past_graph, rest_graph, selection_graph
from models.tft import Tft

_ROWS = 1024  # of the selection at a time


@dataclass(frozen=True, eq=False)
class Carried:
    """What the network keeps of steps that are over: `states` `[2 * layers, B, hidden]` of its LSTMs, `keys`
    `[B, heads, size, L]` and `values` `[B, 1, L, width + 1]` of its attention."""

    states: Floats
    keys: Floats
    values: Floats


class Sessions:
    """The graphs of a network, ready to be run by `threads` threads."""

    def __init__(self, tft: Tft, horizon: int, threads: int) -> None:
        self._select, self._past = _session(selection_graph(tft)), _session(past_graph(tft))
        self._rest, self._safe = (_session(rest_graph(tft, horizon, safe=safe)) for safe in (False, True))
        attention = tft.attention
        self._initial, self._layers = tft.initial, len(tft.encoder)
        self._heads = attention.heads, attention.query[0].shape[1] // attention.heads
        self._width = attention.narrow[0].shape[1] + 1
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine") if threads > 1 else None

    def select(self, variables: Floats, which: Indices) -> Floats:
        """What is chosen of steps `[N, V]` of series with the profiles `which` `[N]`: `[N, hidden]`."""
        found = []
        for at in range(0, len(variables), _ROWS):
            part = slice(at, at + _ROWS)
            found.append(self._select.run(None, {"x": variables[part], "which": which[part]})[0])
        return np.concatenate(found)

    def carried(self, past: Floats, which: Indices) -> Carried:
        """What the network makes of the selections `[B, L, hidden]` before more is known."""
        inputs = {"past": past, "which": which, "states": self._nothing(which).states}
        return Carried(*self._past.run(["after", "keys", "values"], inputs))

    def rest(self, past: Floats, future: Floats, which: Indices, carried: Carried | None = None) -> Floats:
        """The outputs `[B, outputs, H]` from the selections `[B, L, hidden]`, `[P, H, hidden]`, and of the steps before."""
        before = self._nothing(which) if carried is None else carried
        inputs = {"past": past, "future": future, "which": which, **vars(before)}
        outputs: Floats = self._rest.run(None, inputs)[0]
        if not np.isfinite(outputs).all():
            outputs = self._safe.run(None, inputs)[0]
        return outputs

    def _nothing(self, which: Indices) -> Carried:
        """Where a window begins: states that go by profile, and nothing to attend to."""
        states = np.stack([one[which] for one in self._initial] * self._layers)
        shape, width = self._heads, self._width
        return Carried(
            states.astype(np.float32),
            np.zeros((len(which), *shape, 0), dtype=np.float32),
            np.zeros((len(which), 1, 0, width), dtype=np.float32),
        )

    def shares(self, rows: int, most: int) -> list[slice]:
        """The parts in which so many rows of the selection are run: one a thread, or more where that is too much for one,
        but no more than `most`."""
        count = min(most, max(self._threads, -(-rows // _ROWS)))
        return pieces(rows, max(1, -(-rows // max(1, count))))

    def each(self, run: Callable[[slice], None], parts: list[slice]) -> Iterator[None]:
        """Run the parts on all threads, in no order; yields as they are done. Nothing runs any more when it has ended."""
        if self._pool is None:
            yield from map(run, parts)
            return
        futures = [self._pool.submit(run, part) for part in parts]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            wait(futures)


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
