"""The folded network as ONNX graphs, for ONNX Runtime instead of numpy.

The graphs are built from the arrays of `models.tft.forward` when a model is loaded, so that a bundle stores its
weights once. The first graph selects the variables of past steps, row by row. The second computes the encoder state
of past steps before the newest step is known. The third computes everything after the selection, with or without such
a state. Until the attention, rows are steps times series, time first, as an LSTM needs them. Invariant: equal to
numpy up to rounding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from models.tft.forward import Tft
from models.tft.layers import (
    EPSILON,
    Array,
    GateAddNorm,
    GatedResidualNetwork,
    InterpretableMultiHeadAttention,
    LstmLayer,
)
from models.tft.variable_selection import SkipConnections, VariableSelectionNetwork

_CHUNK_STEPS = 48  # future steps at a time, in the attention
_AXIS_END = 2**31  # the end of any axis, for Slice
OPSET, IR = 18, 9  # of ONNX; supported by every runtime version that is allowed


class _GraphBuilder:
    """Collects nodes and constants. Each output of a node has a unique name."""

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
        """Add a node; returns the name of its output, or a list of names for several outputs."""
        names = [f"n{len(self._nodes)}_{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def reshape(self, x: str, *shape: int) -> str:
        return str(self.op("Reshape", x, self.integers(*shape)))

    def slice_axis(self, x: str, axis: int, start: int, end: int) -> str:
        return str(self.op("Slice", x, *(self.integers(value) for value in (start, end, axis))))

    def linear(self, rows: str, weight: Array, bias: Array) -> str:
        """`rows @ weight + bias`, for rows in two dimensions."""
        return str(self.op("Gemm", rows, self.constant(weight), self.constant(bias.reshape(-1))))

    def norm(self, x: str, weight: Array, bias: Array) -> str:
        constants = self.constant(weight), self.constant(bias)
        return str(self.op("LayerNormalization", x, *constants, axis=-1, epsilon=EPSILON))

    def apply_gate(self, x: str) -> str:
        """Value times sigmoid of the gate, from `[..., 2 * hidden]`: the values, then the gates."""
        value, gate = self.op("Split", x, outputs=2, axis=-1, num_outputs=2)
        return str(self.op("Mul", value, self.op("Sigmoid", gate)))

    def glu(self, rows: str, weight: Array, bias: Array) -> str:
        """A gated linear unit on rows in two dimensions, with a layer that `models.tft.layers.fold_glu` has halved.

        It is computed as two layers: splitting the output of one would take half as long as the layer itself.
        """
        half = weight.shape[1] // 2
        value, gate = (
            self.linear(rows, weight[:, part] * 2, bias.reshape(-1)[part] * 2)
            for part in (slice(half), slice(half, None))
        )
        return str(self.op("Mul", value, self.op("Sigmoid", gate)))

    def elu(self, x: str) -> str:
        """`Elu`, in operations that the runtime has vectorized."""
        below = self.op(
            "Sub", self.op("Exp", self.op("Min", x, self.constant(np.zeros(())))), self.constant(np.ones(()))
        )
        return str(self.op("Add", self.op("Relu", x), below))

    def gate(self, gate: GateAddNorm, rows: str, skip: str) -> str:
        return self.norm(self.op("Add", self.glu(rows, gate.weight, gate.bias), skip), *gate.norm)

    def residual(self, layer: GatedResidualNetwork, rows: str, first: str) -> str:
        """A residual network; `first` is the output of its first linear layer for `rows`."""
        gated = self.glu(self.elu(first), layer.second, layer.second_bias)
        return self.norm(self.op("Add", gated, rows), *layer.norm)

    def model(self, inputs: dict[str, tuple[int, list[str | int]]], **outputs: str) -> bytes:
        """The graph, serialized, with these outputs."""
        self._nodes += [helper.make_node("Identity", [source], [name]) for name, source in outputs.items()]
        graph = helper.make_graph(
            self._nodes,
            "tft",
            [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
        model.ir_version = IR
        return bytes(model.SerializeToString())


def build_selection_graph(tft: Tft) -> bytes:
    """The variable selection of past steps.

    Inputs: `x` `[N, V]`, scaled variables; `profile_index` `[N]`, the profile of each series. Output: `y` `[N, hidden]`.
    """
    graph, selection = _GraphBuilder(), tft.encoder_selection
    count, hidden = selection.norm_weight.shape
    columns = graph.op("Unsqueeze", graph.op("Transpose", "x", perm=[1, 0]), graph.integers(2))  # [V, N, 1]
    # A one next to each value, and a last inner unit that stays one: the products then include the biases.
    ones = graph.op(
        "ConstantOfShape", graph.op("Shape", columns), value=numpy_helper.from_array(np.ones(1, np.float32))
    )
    pairs = graph.op("Concat", columns, ones, axis=2)  # [V, N, 2]
    unit = np.zeros((count, 1, 1)), np.ones((count, 1, 1))
    first = _affine([selection.slope, unit[0]], [selection.offset, unit[1]])
    inner = graph.op("Elu", graph.op("MatMul", pairs, graph.constant(first)))
    second = np.concatenate([selection.second, selection.second_bias], axis=1) * 2
    gated = graph.apply_gate(graph.op("MatMul", inner, graph.constant(second)))
    normed = graph.norm(graph.op("Add", gated, _skip(graph, selection.skip, pairs)), np.ones(hidden), np.zeros(hidden))
    # The weights of the norms are applied after the selection weights: that saves a pass over [V, N, hidden].
    bias = graph.constant(selection.norm_bias)
    if count > 1:
        weights = _selection_weights(graph, selection)
        normed = graph.op(
            "Mul", normed, graph.op("Unsqueeze", graph.op("Transpose", weights, perm=[1, 0]), graph.integers(2))
        )
        bias = graph.op("MatMul", weights, bias)
    scaled = graph.op("Mul", normed, graph.constant(selection.norm_weight[:, None]))
    y = graph.op("Add", graph.op("ReduceSum", scaled, graph.integers(0), keepdims=0), bias)
    variables: list[str | int] = ["N", count]
    return graph.model({"x": (TensorProto.FLOAT, variables), "profile_index": (TensorProto.INT64, ["N"])}, y=y)


def _affine(slopes: list[Array], offsets: list[Array]) -> Array:
    """`[V, 2, units]`: the matrix that maps a value and a one to `slope * value + offset`."""
    return np.concatenate([np.concatenate(slopes, axis=-1), np.concatenate(offsets, axis=-1)], axis=1)


def _skip(graph: _GraphBuilder, skip: SkipConnections, pairs: str) -> str:
    if skip.unfolded is None:
        return str(graph.op("MatMul", pairs, graph.constant(_affine([skip.slope], [skip.offset]))))
    slope, offset, weight, bias = skip.unfolded
    size = slope.shape[-1]
    before = graph.op("MatMul", pairs, graph.constant(_affine([slope], [offset])))
    normed = graph.norm(before, np.ones(size), np.zeros(size))
    return str(graph.op("Add", graph.op("Mul", normed, graph.constant(weight)), graph.constant(bias)))


def _selection_weights(graph: _GraphBuilder, selection: VariableSelectionNetwork) -> str:
    """`[N, V]`"""
    layer = selection.weights
    assert layer is not None  # noqa: S101  # it is None for a single variable only
    skip = graph.linear("x", layer.skip, layer.skip_bias)
    if layer.skip_norm is not None:
        skip = graph.norm(skip, *layer.skip_norm)
    bias = graph.op("Gather", graph.constant(layer.first_bias), "profile_index", axis=0)
    first = graph.op("Add", graph.op("MatMul", "x", graph.constant(layer.first)), bias)
    gated = graph.glu(graph.op("Elu", first), layer.second, layer.second_bias)
    return str(graph.op("Softmax", graph.norm(graph.op("Add", gated, skip), *layer.norm), axis=-1))


def build_past_graph(tft: Tft) -> bytes:
    """The encoder state of past steps, before the newest step is known.

    Inputs: `past` `[B, L, hidden]`, the selected variables of the steps; `profile_index` `[B]`, the row of each
    series in all tables by profile; `states` `[2 * layers, B, hidden]`, the LSTM states before the first step.
    Outputs: `after`, the LSTM states after the last step; `keys` `[B, heads, size, L]` and `values` `[B, 1, L, width
    + 1]` of the attention.
    """
    graph = _GraphBuilder()
    past = graph.op("Transpose", "past", perm=[1, 0, 2])
    encoded, states = _lstm_stack(graph, tft.encoder, past, _split_states(graph, "states", len(tft.encoder)))
    series, _ = _position_features(graph, tft, encoded, past)
    keys, values = _keys(graph, tft.attention, series), _values(graph, tft.attention, series)
    after = graph.op("Concat", *(state for layer in states for state in layer), axis=0)
    hidden = tft.initial_state[0].shape[-1]
    return graph.model(_inputs(tft, {"past": ["B", "L", hidden]}), after=after, keys=keys, values=values)


def build_decoder_graph(tft: Tft, horizon: int, *, safe: bool) -> bytes:
    """Everything after the variable selection.

    Inputs: `past` `[B, L, hidden]` and `future` `[P, H, hidden]`, the selected variables; `profile_index` `[B]`, the
    row of each series in all tables by profile; `states`, `keys` and `values`, the outputs of `build_past_graph` for
    the steps before `past`, or empty. Output: `y` `[B, outputs, H]`. `safe`: valid for attention scores of any size.
    """
    graph = _GraphBuilder()
    attention, hidden = tft.attention, tft.initial_state[0].shape[-1]
    past = graph.op("Transpose", "past", perm=[1, 0, 2])
    future = graph.op("Transpose", graph.op("Gather", "future", "profile_index", axis=0), perm=[1, 0, 2])
    encoded, states = _lstm_stack(graph, tft.encoder, past, _split_states(graph, "states", len(tft.encoder)))
    decoded, _ = _lstm_stack(graph, tft.decoder, future, states)
    series, local = _position_features(
        graph, tft, graph.op("Concat", encoded, decoded, axis=0), graph.op("Concat", past, future, axis=0)
    )
    keys, values = _keys(graph, attention, series), _values(graph, attention, series)
    before, after = (
        (graph.slice_axis(keys, 3, *ends), graph.slice_axis(values, 2, *ends))
        for ends in ((0, -horizon), (-horizon, _AXIS_END))
    )
    before = graph.op("Concat", "keys", before[0], axis=3), graph.op("Concat", "values", before[1], axis=2)
    ahead = graph.reshape(graph.slice_axis(series, 1, -horizon, _AXIS_END), -1, hidden)  # [B * H, hidden]
    local_ahead = graph.reshape(graph.slice_axis(local, 1, -horizon, _AXIS_END), -1, hidden)
    attended = graph.gate(tft.attention_gate, _attention(graph, attention, ahead, before, after, safe=safe), ahead)
    first = graph.linear(attended, tft.feed_forward.first, tft.feed_forward.first_bias)
    fused = graph.gate(tft.output_gate, graph.residual(tft.feed_forward, attended, first), local_ahead)
    outputs = graph.linear(fused, tft.output, tft.output_bias)
    y = graph.op("Transpose", graph.reshape(outputs, -1, horizon, tft.output.shape[1]), perm=[0, 2, 1])
    size, width = attention.query[0].shape[1] // attention.heads, attention.value_layers[0].shape[1]
    shapes: dict[str, list[str | int]] = {
        "past": ["B", "L", hidden],
        "future": ["P", horizon, hidden],
        "keys": ["B", attention.heads, size, "K"],
        "values": ["B", 1, "K", width + 1],
    }
    return graph.model(_inputs(tft, shapes), y=y)


def _inputs(tft: Tft, shapes: dict[str, list[str | int]]) -> dict[str, tuple[int, list[str | int]]]:
    """The inputs that both graphs have, and `shapes`."""
    hidden = tft.initial_state[0].shape[-1]
    states: list[str | int] = [2 * len(tft.encoder), "B", hidden]
    floats = {"states": states, **shapes}
    return {
        "profile_index": (TensorProto.INT64, ["B"]),
        **{name: (TensorProto.FLOAT, shape) for name, shape in floats.items()},
    }


def _split_states(graph: _GraphBuilder, states: str, layers: int) -> list[list[str]]:
    """Hidden state and cell state `[1, B, hidden]` of each layer."""
    parts = graph.op("Split", states, outputs=2 * layers, axis=0, num_outputs=2 * layers)
    return [list(parts[start : start + 2]) for start in range(0, 2 * layers, 2)]


def _lstm_stack(
    graph: _GraphBuilder, layers: list[LstmLayer], x: str, states: list[list[str]]
) -> tuple[str, list[list[str]]]:
    """Outputs `[T, B, hidden]` of all layers, and their final states."""
    after = []
    for layer, state in zip(layers, states, strict=True):
        x, *last = _lstm_layer(graph, layer, x, *state)
        after.append(last)
    return x, after


def _position_features(graph: _GraphBuilder, tft: Tft, recurrent: str, selection: str) -> tuple[str, str]:
    """Features `[B, T, hidden]` of steps `[T, B, hidden]`: after the static enrichment, and before it."""
    hidden = tft.initial_state[0].shape[-1]
    local = graph.gate(
        tft.lstm_gate, graph.reshape(recurrent, -1, hidden), graph.reshape(selection, -1, hidden)
    )  # [T * B, hidden]
    series, before = (
        str(graph.op("Transpose", _timed(graph, rows, hidden), perm=[1, 0, 2]))
        for rows in (_enrich(graph, tft.enrichment, local), local)
    )
    return series, before


def _timed(graph: _GraphBuilder, rows: str, hidden: int) -> str:
    """Reshape rows `[T * B, hidden]` to `[T, B, hidden]`; B is the length of `profile_index`."""
    shape = graph.op("Concat", graph.integers(-1), graph.op("Shape", "profile_index"), graph.integers(hidden), axis=0)
    return str(graph.op("Reshape", rows, shape))


def _enrich(graph: _GraphBuilder, layer: GatedResidualNetwork, rows: str) -> str:
    """The static enrichment of rows `[T * B, hidden]`; its bias depends on the series."""
    hidden = layer.first.shape[0]
    bias = graph.op("Gather", graph.constant(layer.first_bias), "profile_index", axis=0)
    first = graph.op("MatMul", rows, graph.constant(layer.first))
    first = graph.reshape(graph.op("Add", _timed(graph, first, hidden), bias), -1, hidden)
    return graph.residual(layer, rows, first)


def _lstm_layer(graph: _GraphBuilder, layer: LstmLayer, x: str, state: str, cell: str) -> list[str]:
    """Outputs `[T, B, hidden]`, the final hidden state and the final cell state."""
    weight, recurrent, bias = layer.onnx_weights
    hidden = recurrent.shape[1]
    constants = (graph.constant(np.stack([part])) for part in (weight, recurrent, bias))
    outputs, *last = graph.op("LSTM", x, *constants, "", state, cell, outputs=3, hidden_size=hidden)
    return [graph.op("Squeeze", outputs, graph.integers(1)), *last]


def _split_heads(
    graph: _GraphBuilder,
    attention: InterpretableMultiHeadAttention,
    series: str,
    layer: tuple[Array, Array],
    order: list[int],
) -> str:
    """The outputs of a layer for `[B, T, hidden]`, split by heads: `[B, T, heads, size]` with axes permuted to `order`."""
    hidden, units = layer[0].shape
    steps = graph.op("Slice", graph.op("Shape", series), graph.integers(1), graph.integers(2))
    rows = graph.linear(graph.reshape(series, -1, hidden), *layer)
    shape = graph.op(
        "Concat", graph.integers(-1), steps, graph.integers(attention.heads, units // attention.heads), axis=0
    )
    return str(graph.op("Transpose", graph.op("Reshape", rows, shape), perm=order))


def _keys(graph: _GraphBuilder, attention: InterpretableMultiHeadAttention, series: str) -> str:
    """`[B, heads, size, T]`"""
    return _split_heads(graph, attention, series, attention.key, [0, 2, 3, 1])


def _values(graph: _GraphBuilder, attention: InterpretableMultiHeadAttention, series: str) -> str:
    """`[B, 1, T, width + 1]`: the value of each step, and a one."""
    narrow = attention.value_layers[0]
    hidden, width = narrow.shape
    weight = np.concatenate([narrow, np.zeros((hidden, 1))], axis=1)
    steps = graph.op("Slice", graph.op("Shape", series), graph.integers(1), graph.integers(2))
    shape = graph.op("Concat", graph.integers(-1, 1), steps, graph.integers(width + 1), axis=0)
    rows = graph.linear(graph.reshape(series, -1, hidden), weight, np.concatenate([np.zeros(width), [1.0]]))
    return str(graph.op("Reshape", rows, shape))


def _attention(
    graph: _GraphBuilder,
    attention: InterpretableMultiHeadAttention,
    ahead: str,
    past: tuple[str, str],
    future: tuple[str, str],
    *,
    safe: bool,
) -> str:
    """Attention outputs `[B * H, hidden]` of future steps `[B * H, hidden]`; `past` and `future` are keys and values.

    The weights of a step are exponentials divided by their sum. The ones next to the values add up to the sum,
    separately for past and future: that takes half the passes of a softmax over both. Unless the largest score is
    subtracted first, an exponential may be out of float32's range and the result not finite; `safe` subtracts it.
    """
    heads, horizon, (narrow, out) = attention.heads, len(attention.mask), attention.value_layers
    width = narrow.shape[1]

    def seen(query: str, past_keys: str, future_keys: str, mask: Array) -> str:
        """Attention of one head for queries `[B, 1, steps, size]`: `[B, 1, steps, width + 1]`."""
        visible = mask == 0
        count = int(np.flatnonzero(visible.any(axis=0)).max(initial=-1)) + 1  # without steps that no query attends to
        visible_future = graph.slice_axis(future_keys, 3, 0, count), graph.slice_axis(future[1], 2, 0, count)
        scores = graph.op("MatMul", query, past_keys), graph.op("MatMul", query, visible_future[0])
        if safe:
            masked = graph.op("Add", scores[1], graph.constant(mask[:, :count]))
            weights = graph.op("Softmax", graph.op("Concat", scores[0], masked, axis=3), axis=-1)
            return str(graph.op("MatMul", weights, graph.op("Concat", past[1], visible_future[1], axis=2)))
        # Masked after the exponential: exponentials of very small numbers take twenty times as long.
        near = graph.op("Mul", graph.op("Exp", scores[1]), graph.constant(visible[:, :count].astype(np.float32)))
        far = graph.op("MatMul", graph.op("Exp", scores[0]), past[1])
        return str(graph.op("Add", far, graph.op("MatMul", near, visible_future[1])))

    def by_head(x: str) -> list[str]:
        parts = graph.op("Split", x, outputs=heads, axis=1, num_outputs=heads)
        return list(parts) if heads > 1 else [parts]

    series = graph.reshape(ahead, -1, horizon, attention.query[0].shape[0])
    query = _split_heads(graph, attention, series, attention.query, [0, 2, 1, 3])
    # One head at a time and few steps at a time: more scores do not fit the cache.
    steps = range(0, horizon, _CHUNK_STEPS)
    per_head = []
    for head_query, past_keys, future_keys in zip(*map(by_head, (query, past[0], future[0])), strict=True):
        parts = [
            seen(
                graph.slice_axis(head_query, 2, start, start + _CHUNK_STEPS),
                past_keys,
                future_keys,
                attention.mask[start : start + _CHUNK_STEPS],
            )
            for start in steps
        ]
        per_head.append(graph.op("Concat", *parts, axis=2))
    total, sums = graph.op("Split", graph.op("Concat", *per_head, axis=1), graph.integers(width, 1), outputs=2, axis=-1)
    # Zero, but not finite where the sum cannot be a divisor.
    nan_guard = graph.op("Mul", graph.op("Add", sums, graph.op("Reciprocal", sums)), graph.constant(np.zeros(())))
    head_means = graph.op("Add", graph.op("Div", total, sums), nan_guard)
    mean = graph.op("ReduceMean", head_means, graph.integers(1), keepdims=0)  # over the heads
    return graph.linear(graph.reshape(mean, -1, width), out, attention.value_bias)
