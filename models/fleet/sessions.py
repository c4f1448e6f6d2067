"""ONNX Runtime's sessions for one network, and the threads that run them.

A piece of the servers is run by one thread: small pieces at the same time are faster than a large batch on all threads,
because a piece's arrays stay in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnxruntime

from models.fleet.base import Floats, Indices
from models.fleet.graph import rest_graph, selection_graph
from models.tft import Tft

_ROWS = 1024  # of the selection at a time


class Sessions:
    """The two graphs of a network, ready to be run by `threads` threads."""

    def __init__(self, tft: Tft, horizon: int, threads: int) -> None:
        self._select = _session(selection_graph(tft))
        self._rest, self._safe = (_session(rest_graph(tft, horizon, safe=safe)) for safe in (False, True))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine") if threads > 1 else None

    def select(self, variables: Floats, which: Indices) -> Floats:
        """What is chosen of steps `[N, V]` of series with the profiles `which` `[N]`: `[N, hidden]`."""
        found = []
        for at in range(0, len(variables), _ROWS):
            part = slice(at, at + _ROWS)
            found.append(self._select.run(None, {"x": variables[part], "which": which[part]})[0])
        return np.concatenate(found)

    def rest(self, past: Floats, future: Floats, which: Indices) -> Floats:
        """The outputs `[B, outputs, H]` from the selections `[B, L, hidden]`, `[P, H, hidden]`."""
        inputs = {"past": past, "future": future, "which": which}
        outputs: Floats = self._rest.run(None, inputs)[0]
        if not np.isfinite(outputs).all():
            outputs = self._safe.run(None, inputs)[0]
        return outputs

    def each(self, run: Callable[[slice], None], parts: list[slice]) -> Iterator[None]:
        """Run the parts on all threads, in no order; yields as they are done."""
        return (self._pool.map if self._pool else map)(run, parts)


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
