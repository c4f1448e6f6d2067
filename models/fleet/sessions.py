"""ONNX Runtime's sessions for one network, and how a batch of servers is cut into pieces for them.

A piece is run by one thread: many small pieces at once are faster than one large batch on many threads, because a piece's
arrays stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime

from models.fleet.base import Floats, Indices
from models.fleet.graph import attention_mask, rest_graph, selection_graph
from models.tft import Tft

PIECE = 10  # servers at a time; 8 to 12 are equally fast, 16 is slower by a third
_ROWS = 1024  # of the selection at a time


class Sessions:
    """The two graphs of a network, ready to be run by `threads` threads."""

    def __init__(self, tft: Tft, horizon: int, threads: int) -> None:
        self._attention, self._horizon = tft.attention, horizon
        self._select, self._rest = (_session(graph) for graph in (selection_graph(tft), rest_graph(tft, horizon)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine") if threads > 1 else None

    def select(self, variables: Floats, which: Indices) -> Floats:
        """What is chosen of steps `[N, V]` of series with the profiles `which` `[N]`: `[N, hidden]`."""
        parts = [slice(at, at + _ROWS) for at in range(0, len(variables), _ROWS)]

        def run(part: slice) -> Floats:
            chosen: Floats = self._select.run(None, {"x": variables[part], "which": which[part]})[0]
            return chosen

        return np.concatenate(list(self._each(run, parts)))

    def rest(self, past: Floats, future: Floats, which: Indices, advance: Callable[[], None]) -> Floats:
        """The outputs `[B, outputs, H]` from the selections `[B, L, hidden]`, `[P, H, hidden]`."""
        mask = attention_mask(self._attention, past.shape[1])
        found: list[Floats] = []

        def run(part: slice) -> Floats:
            given = {"past": past[part], "future": future, "which": which[part], "mask": mask}
            outputs: Floats = self._rest.run(None, given)[0]
            return outputs

        for outputs in self._each(run, pieces(len(past))):
            found.append(outputs)
            advance()
        return np.concatenate(found)

    def _each(self, run: Callable[[slice], Floats], parts: list[slice]) -> Iterator[Floats]:
        return (self._pool.map if self._pool else map)(run, parts)


def pieces(count: int) -> list[slice]:
    """The pieces of `count` servers, of nearly the same size."""
    number = -(-count // PIECE)
    bounds = np.linspace(0, count, number + 1).round().astype(int)
    return [slice(int(start), int(stop)) for start, stop in pairwise(bounds)]


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
