"""ONNX Runtime sessions for one network, and the threads that run them.

Each chunk of servers is run by one thread: small chunks in parallel are faster than a large batch on all threads,
because the arrays of a chunk fit the cache of a core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from models.fleet.base import Floats, Indices
from models.fleet.engine import chunk_slices
from models.tft.forward import Tft
from models.tft.onnx_graph import build_decoder_graph, build_past_graph, build_selection_graph

_CHUNK_ROWS = 1024  # rows of the selection at a time


@dataclass(frozen=True, eq=False)
class EncoderState:
    """The network's state after past steps.

    states: `[2 * layers, B, hidden]`, of its LSTMs
    keys, values: `[B, heads, size, L]`, `[B, 1, L, width + 1]`, of its attention
    """

    states: Floats
    keys: Floats
    values: Floats


class OnnxSessions:
    """The graphs of a network, run by `threads` threads."""

    def __init__(self, tft: Tft, horizon: int, threads: int) -> None:
        self._selection_session, self._past_session = (
            _make_session(build_selection_graph(tft)),
            _make_session(build_past_graph(tft)),
        )
        self._decoder_session, self._safe_decoder_session = (
            _make_session(build_decoder_graph(tft, horizon, safe=safe)) for safe in (False, True)
        )
        attention = tft.attention
        self._initial_states, self._layers = tft.initial_state, len(tft.encoder)
        self._heads = attention.heads, attention.query[0].shape[1] // attention.heads
        self._width = attention.value_layers[0].shape[1] + 1
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="engine") if threads > 1 else None

    def select(self, variables: Floats, profile_index: Indices) -> Floats:
        """Variable selection of past steps `[N, V]` of series with profiles `[N]`: `[N, hidden]`."""
        outputs = []
        for start in range(0, len(variables), _CHUNK_ROWS):
            part = slice(start, start + _CHUNK_ROWS)
            outputs.append(
                self._selection_session.run(None, {"x": variables[part], "profile_index": profile_index[part]})[0]
            )
        return np.concatenate(outputs)

    def run_past(self, past: Floats, profile_index: Indices) -> EncoderState:
        """The encoder state after past steps with the selected variables `[B, L, hidden]`."""
        inputs = {"past": past, "profile_index": profile_index, "states": self._initial_state(profile_index).states}
        return EncoderState(*self._past_session.run(["after", "keys", "values"], inputs))

    def decode(self, past: Floats, future: Floats, profile_index: Indices, state: EncoderState | None = None) -> Floats:
        """The outputs `[B, outputs, H]` from selected variables `[B, L, hidden]` and `[P, H, hidden]`, after `state`."""
        previous = self._initial_state(profile_index) if state is None else state
        inputs = {"past": past, "future": future, "profile_index": profile_index, **vars(previous)}
        outputs: Floats = self._decoder_session.run(None, inputs)[0]
        if not np.isfinite(outputs).all():
            outputs = self._safe_decoder_session.run(None, inputs)[0]
        return outputs

    def _initial_state(self, profile_index: Indices) -> EncoderState:
        """The state at the start of a window: LSTM states by profile, no keys and no values."""
        states = np.stack([layer_state[profile_index] for layer_state in self._initial_states] * self._layers)
        shape, width = self._heads, self._width
        return EncoderState(
            states.astype(np.float32),
            np.zeros((len(profile_index), *shape, 0), dtype=np.float32),
            np.zeros((len(profile_index), 1, 0, width), dtype=np.float32),
        )

    def plan_chunks(self, rows: int, max_chunks: int) -> list[slice]:
        """Split `rows` into chunks: one for each thread, more if these are too large, at most `max_chunks`."""
        count = min(max_chunks, max(self._threads, -(-rows // _CHUNK_ROWS)))
        return chunk_slices(rows, max(1, -(-rows // max(1, count))))

    def run_chunks(self, run: Callable[[slice], None], parts: list[slice]) -> Iterator[None]:
        """Run the chunks on all threads, in any order; yields after each one. When it ends, no thread runs one."""
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


def _make_session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
