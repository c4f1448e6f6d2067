"""The folded network as two ONNX graphs: what ONNX Runtime runs instead of numpy.

They are built from the very arrays of `models.tft` when a model is loaded, so that a bundle holds its weights once. The
first graph is the variable selection of past steps, row by row; the second is everything after it. Rows are steps times
series, time first, as an LSTM wants them, until the attention. Equal to the numpy engine up to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.layers import EPSILON, Array, Attention, Gate, Lstm, Residual
from models.selection import Selection, Skip
from models.tft import Tft

OPSET, IR = 18, 9  # of ONNX; old enough for every runtime that is asked for


class _Graph:
    """Collects nodes and constants; a node's output is known by a name of its own."""

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def constant(self, value: Array) -> str:
        """A float32 or int64 array."""
        name = f"c{len(self._constants)}"
        kind = np.int64 if value.dtype.kind == "i" else np.float32
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value, dtype=kind), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """One node; gives its output's name, or the names of several."""
        names = [f"n{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def reshape(self, x: str, *shape: int) -> str:
        return str(self.op("Reshape", x, self.integers(*shape)))

    def linear(self, rows: str, weight: Array, bias: Array) -> str:
        """`rows @ weight + bias`, of rows in two dimensions."""
        return str(self.op("Gemm", rows, self.constant(weight), self.constant(bias.reshape(-1))))

    def norm(self, x: str, weight: Array, bias: Array) -> str:
        constants = self.constant(weight), self.constant(bias)
        return str(self.op("LayerNormalization", x, *constants, axis=-1, epsilon=EPSILON))

    def opened(self, x: str) -> str:
        """What a gate lets through of `[..., 2 * hidden]`, the value and its gate."""
        value, gate = self.op("Split", x, outputs=2, axis=-1, num_outputs=2)
        return str(self.op("Mul", value, self.op("Sigmoid", gate)))

    def glu(self, rows: str, weight: Array, bias: Array) -> str:
        """A gated linear unit on rows in two dimensions, of a layer that `models.layers.glu_parts` has halved.

        As two layers, for taking one's rows apart would take as long as half of it.
        """
        half = weight.shape[1] // 2
        value, gate = (
            self.linear(rows, weight[:, part] * 2, bias.reshape(-1)[part] * 2)
            for part in (slice(half), slice(half, None))
        )
        return str(self.op("Mul", value, self.op("Sigmoid", gate)))

    def elu(self, x: str) -> str:
        """`Elu`, in operations that the runtime has for many numbers at a time."""
        below = self.op(
            "Sub", self.op("Exp", self.op("Min", x, self.constant(np.zeros(())))), self.constant(np.ones(()))
        )
        return str(self.op("Add", self.op("Relu", x), below))

    def gate(self, gate: Gate, rows: str, skip: str) -> str:
        return self.norm(self.op("Add", self.glu(rows, gate.weight, gate.bias), skip), *gate.norm)

    def residual(self, layer: Residual, rows: str, first: str) -> str:
        """A residual network of which `first` has been through the first linear layer."""
        gated = self.glu(self.elu(first), layer.second, layer.second_bias)
        return self.norm(self.op("Add", gated, rows), *layer.norm)

    def model(self, inputs: dict[str, tuple[int, list[str | int]]], output: str) -> bytes:
        """The graph, serialised, with its one output `y`."""
        self._nodes.append(helper.make_node("Identity", [output], ["y"]))
        graph = helper.make_graph(
            self._nodes,
            "tft",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR
        return bytes(model.SerializeToString())


def selection_graph(tft: Tft) -> bytes:
    """`x` `[N, V]`, scaled variables of past steps, and `which` `[N]`, their series' profiles -> `y` `[N, hidden]`."""
    graph, selection = _Graph(), tft.select_past
    count, hidden = selection.norm_weight.shape
    columns = graph.op("Unsqueeze", graph.op("Transpose", "x", perm=[1, 0]), graph.integers(2))  # [V, N, 1]
    # A one beside each value and a last inner unit that stays one: products with a bias in them need no further pass.
    ones = graph.op(
        "ConstantOfShape", graph.op("Shape", columns), value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    pairs = graph.op("Concat", columns, ones, axis=2)  # [V, N, 2]
    unit = np.zeros((count, 1, 1)), np.ones((count, 1, 1))
    first = _affine([selection.slope, unit[0]], [selection.offset, unit[1]])
    inner = graph.op("Elu", graph.op("MatMul", pairs, graph.constant(first)))
    second = np.concatenate([selection.second, selection.second_bias], axis=1) * 2
    gated = graph.opened(graph.op("MatMul", inner, graph.constant(second)))
    normed = graph.norm(graph.op("Add", gated, _skip(graph, selection.skip, pairs)), np.ones(hidden), np.zeros(hidden))
    # The norms' own weights come after the selection weights: a pass over [V, N, hidden] less.
    bias = graph.constant(selection.norm_bias)
    if count > 1:
        weights = _weights(graph, selection)
        normed = graph.op(
            "Mul", normed, graph.op("Unsqueeze", graph.op("Transpose", weights, perm=[1, 0]), graph.integers(2))
        )
        bias = graph.op("MatMul", weights, bias)
    chosen = graph.op("Mul", normed, graph.constant(selection.norm_weight[:, None]))
    y = graph.op("Add", graph.op("ReduceSum", chosen, graph.integers(0), keepdims=0), bias)
    variables: list[str | int] = ["N", count]
    return graph.model({"x": (TensorProto.FLOAT, variables), "which": (TensorProto.INT64, ["N"])}, y)


def _affine(slopes: list[Array], offsets: list[Array]) -> Array:
    """`[V, 2, units]`: what takes a value and a one to `slope * value + offset`."""
    return np.concatenate([np.concatenate(slopes, axis=-1), np.concatenate(offsets, axis=-1)], axis=1)


def _skip(graph: _Graph, skip: Skip, pairs: str) -> str:
    if skip.plain is None:
        return str(graph.op("MatMul", pairs, graph.constant(_affine([skip.slope], [skip.offset]))))
    slope, offset, weight, bias = skip.plain
    size = slope.shape[-1]
    before = graph.op("MatMul", pairs, graph.constant(_affine([slope], [offset])))
    normed = graph.norm(before, np.ones(size), np.zeros(size))
    return str(graph.op("Add", graph.op("Mul", normed, graph.constant(weight)), graph.constant(bias)))


def _weights(graph: _Graph, selection: Selection) -> str:
    """`[N, V]`"""
    weighing = selection.weighing
    assert weighing is not None  # noqa: S101  # there is one wherever there is more than one variable
    skip = graph.linear("x", weighing.skip, weighing.skip_bias)
    if weighing.skip_norm is not None:
        skip = graph.norm(skip, *weighing.skip_norm)
    bias = graph.op("Gather", graph.constant(weighing.first_bias), "which", axis=0)
    first = graph.op("Add", graph.op("MatMul", "x", graph.constant(weighing.first)), bias)
    gated = graph.glu(graph.op("Elu", first), weighing.second, weighing.second_bias)
    return str(graph.op("Softmax", graph.norm(graph.op("Add", gated, skip), *weighing.norm), axis=-1))


def rest_graph(tft: Tft, horizon: int, *, safe: bool) -> bytes:
    """Everything after the selections.

    `past` `[B, L, hidden]` and `future` `[P, H, hidden]` are what was chosen, `which` `[B]` the series' rows in all that
    goes by profile -> `y` `[B, outputs, H]`. `safe`: whatever the scores of the attention are.
    """
    graph = _Graph()
    hidden = tft.initial[0].shape[-1]
    past = graph.op("Transpose", "past", perm=[1, 0, 2])
    future = graph.op("Transpose", graph.op("Gather", "future", "which", axis=0), perm=[1, 0, 2])
    state = [
        graph.op("Unsqueeze", graph.op("Gather", graph.constant(one), "which", axis=0), graph.integers(0))
        for one in tft.initial
    ]
    encoded, states = past, []
    for layer in tft.encoder:
        encoded, *last = _lstm(graph, layer, encoded, *state)
        states.append(last)
    decoded = future
    for layer, last in zip(tft.decoder, states, strict=True):
        decoded, *_ = _lstm(graph, layer, decoded, *last)
    rows = graph.reshape(graph.op("Concat", encoded, decoded, axis=0), -1, hidden)  # [(L + H) * B, hidden]
    chosen = graph.reshape(graph.op("Concat", past, future, axis=0), -1, hidden)
    local = graph.gate(tft.after_lstm, rows, chosen)
    enriched = _enrich(graph, tft.enrich, local)
    series = graph.op("Transpose", _timed(graph, enriched, hidden), perm=[1, 0, 2])  # [B, L + H, hidden]
    ahead = graph.reshape(_last(graph, series, horizon), -1, hidden)  # [B * H, hidden]
    local_ahead = graph.op("Transpose", _timed(graph, local, hidden), perm=[1, 0, 2])
    local_ahead = graph.reshape(_last(graph, local_ahead, horizon), -1, hidden)
    attended = graph.gate(tft.after_attention, _attend(graph, tft.attention, series, ahead, safe=safe), ahead)
    first = graph.linear(attended, tft.feed_forward.first, tft.feed_forward.first_bias)
    fused = graph.gate(tft.before_output, graph.residual(tft.feed_forward, attended, first), local_ahead)
    outputs = graph.linear(fused, tft.output, tft.output_bias)
    y = graph.op("Transpose", graph.reshape(outputs, -1, horizon, tft.output.shape[1]), perm=[0, 2, 1])
    return graph.model(
        {
            "past": (TensorProto.FLOAT, ["B", "L", hidden]),
            "future": (TensorProto.FLOAT, ["P", horizon, hidden]),
            "which": (TensorProto.INT64, ["B"]),
        },
        y,
    )


def _timed(graph: _Graph, rows: str, hidden: int) -> str:
    """Rows `[T * B, hidden]` as `[T, B, hidden]`: B is read off `which`."""
    shape = graph.op("Concat", graph.integers(-1), graph.op("Shape", "which"), graph.integers(hidden), axis=0)
    return str(graph.op("Reshape", rows, shape))


def _last(graph: _Graph, series: str, horizon: int) -> str:
    """The decoder's steps of `[B, L + H, hidden]`."""
    return str(graph.op("Slice", series, graph.integers(-horizon), graph.integers(2**31), graph.integers(1)))


def _enrich(graph: _Graph, layer: Residual, rows: str) -> str:
    """The static enrichment of rows `[T * B, hidden]`: its bias goes by series."""
    hidden = layer.first.shape[0]
    bias = graph.op("Gather", graph.constant(layer.first_bias), "which", axis=0)
    first = graph.op("MatMul", rows, graph.constant(layer.first))
    first = graph.reshape(graph.op("Add", _timed(graph, first, hidden), bias), -1, hidden)
    return graph.residual(layer, rows, first)


def _lstm(graph: _Graph, layer: Lstm, x: str, state: str, cell: str) -> list[str]:
    """`[T, B, hidden]`, the last state and the last cell."""
    weight, recurrent, bias = layer.plain
    hidden = recurrent.shape[1]
    constants = (graph.constant(np.stack([part])) for part in (weight, recurrent, bias))
    outputs, *last = graph.op("LSTM", x, *constants, "", state, cell, outputs=3, hidden_size=hidden)
    return [graph.op("Squeeze", outputs, graph.integers(1)), *last]


def _attend(graph: _Graph, attention: Attention, series: str, ahead: str, *, safe: bool) -> str:
    """`[B * H, hidden]`

    A step's weights are exponentials over their sum. A one beside each value makes the sum by the way, past and future apart:
    that takes half the passes of a softmax over both. Without the largest score taken off first an exponential may be out of
    float32's range, and the outcome not finite; `safe` takes it off.
    """
    heads, horizon = attention.heads, len(attention.mask)
    size, (narrow, out) = attention.query[0].shape[1] // heads, attention.narrow
    everything = graph.reshape(series, -1, attention.query[0].shape[0])
    steps = graph.op("Slice", graph.op("Shape", series), graph.integers(1), graph.integers(2))

    def split(rows: str, layer: tuple[Array, Array], steps: str, order: list[int]) -> str:
        shape = graph.op("Concat", graph.integers(-1), steps, graph.integers(heads, size), axis=0)
        return str(graph.op("Transpose", graph.op("Reshape", graph.linear(rows, *layer), shape), perm=order))

    def apart(x: str, axis: int) -> tuple[str, str]:
        """The past and the future of an axis of steps."""
        ends = (0, -horizon), (-horizon, 2**31)
        past, future = (
            graph.op("Slice", x, graph.integers(start), graph.integers(end), graph.integers(axis))
            for start, end in ends
        )
        return str(past), str(future)

    width = narrow.shape[1]
    ones = np.concatenate([np.zeros(width), [1.0]])
    shape = graph.op("Concat", graph.integers(-1, 1), steps, graph.integers(width + 1), axis=0)
    values = graph.linear(everything, np.concatenate([narrow, np.zeros((len(narrow), 1))], axis=1), ones)
    values = graph.op("Reshape", values, shape)  # [B, 1, L + H, width + 1]
    before, after = apart(values, 2)
    mask = graph.constant(attention.mask)

    def seen(query: str, past: str, future: str) -> str:
        """What one head sees, `[B, 1, H, width + 1]`."""
        scores = graph.op("MatMul", query, past), graph.op("Add", graph.op("MatMul", query, future), mask)
        if safe:
            weights = graph.op("Softmax", graph.op("Concat", *scores, axis=3), axis=-1)
            return str(graph.op("MatMul", weights, values))
        sums = (
            graph.op("MatMul", graph.op("Exp", some), those)
            for some, those in zip(scores, (before, after), strict=True)
        )
        return str(graph.op("Add", *sums))

    def by_head(x: str) -> list[str]:
        found = graph.op("Split", x, outputs=heads, axis=1, num_outputs=heads)
        return list(found) if heads > 1 else [found]

    query = split(ahead, attention.query, graph.integers(horizon), [0, 2, 1, 3])
    keys = apart(split(everything, attention.key, steps, [0, 2, 3, 1]), 3)
    # One head after the other: the scores of all of them leave the cache.
    every = [seen(*one) for one in zip(*(by_head(x) for x in (query, *keys)), strict=True)]
    total, sums = graph.op("Split", graph.op("Concat", *every, axis=1), graph.integers(width, 1), outputs=2, axis=-1)
    mean = graph.op("ReduceMean", graph.op("Div", total, sums), graph.integers(1), keepdims=0)  # over the heads
    return graph.linear(graph.reshape(mean, -1, width), out, attention.value_bias)
