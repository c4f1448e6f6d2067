"""The Temporal Fusion Transformer's forward pass in numpy: the small engine that predictions run.

It must equal `TemporalFusionTransformer.forward` of pytorch_forecasting 1.8 in eval mode, with its defaults (causal
attention, no static variables, no categoricals, full encoder and decoder), on the weights of its own `state_dict`; a
test compares the two on random networks and guards an upgrade of the library. The network is that of Lim et al. 2019
(https://arxiv.org/abs/1912.09363) with the library's changes. What makes it small and fast: every linear layer that
follows another one is folded into it, all variables go through one batched product, and of the LSTM only the recurrent
product is left inside the loop over time.

Floating-point flags are ignored: OpenBLAS's vector kernels compute on padding too, and now and then raise one though
every result is right. Whether a result is finite is seen by looking at it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.manifest import Network

Array = NDArray[Any]
Weights = Mapping[str, Array]

EPSILON = 1e-5  # of torch's LayerNorm
MASKED = -1e9  # the library's mask_bias
STEPS = 7  # how often a call says that it got on


class Tft:
    """A network with its weights folded and ready. Calls do not change it, so threads may share it."""

    @np.errstate(all="ignore")
    def __init__(self, network: Network, weights: Weights, encoder_length: int, horizon: int) -> None:
        """Fold the weights, which must have the names and shapes of `expected_shapes`."""
        w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        hidden = network.hidden_size
        # Without static variables the library feeds zeros to the static encoders: their outputs are constants.
        nothing = np.zeros((1, hidden), dtype=np.float32)
        selection, state, cell, enrichment = (
            _Residual(w, f"static_context_{name}")(nothing)[0].astype(np.float64)
            for name in ("variable_selection", "initial_hidden_lstm", "initial_cell_lstm", "enrichment")
        )
        self._hidden = hidden
        self._initial = state.astype(np.float32), cell.astype(np.float32)
        self._select_past = _Selection(w, "encoder_variable_selection", network.encoder_reals, selection)
        self._select_future = _Selection(w, "decoder_variable_selection", network.decoder_reals, selection)
        self._encoder = [_Lstm(w, "lstm_encoder", layer) for layer in range(network.lstm_layers)]
        self._decoder = [_Lstm(w, "lstm_decoder", layer) for layer in range(network.lstm_layers)]
        self._after_lstm = _Gate(w, "post_lstm_gate_encoder.fc", "post_lstm_add_norm_encoder.norm")
        self._enrich = _Residual(w, "static_enrichment", context=enrichment)
        self._attention = _Attention(w, network, encoder_length, horizon)
        self._after_attention = _Gate(w, "post_attn_gate_norm.glu.fc", "post_attn_gate_norm.add_norm.norm")
        self._feed_forward = _Residual(w, "pos_wise_ff")
        self._before_output = _Gate(w, "pre_output_gate_norm.glu.fc", "pre_output_gate_norm.add_norm.norm")
        self._output = w["output_layer.weight"].T.astype(np.float32), w["output_layer.bias"].astype(np.float32)

    @np.errstate(all="ignore")
    def __call__(self, past: Array, future: Array, advance: Callable[[], None] = lambda: None) -> NDArray[np.float32]:
        """The network's outputs `[B, H, Q]`, in units of the normalised target, which the caller checks to be finite.

        `past` is `[B, L, encoder variables]`, `future` is `[B, H, decoder variables]`, both scaled. `advance` is called
        `STEPS` times on the way, each time that a part of the work is done.
        """
        past, future = past.astype(np.float32), future.astype(np.float32)
        length = past.shape[1]
        chosen_past = self._select_past(past)
        advance()
        chosen_future = self._select_future(future)
        advance()
        states = [self._initial] * len(self._encoder)
        encoded, states = _run(self._encoder, chosen_past, states)
        advance()
        decoded, _ = _run(self._decoder, chosen_future, states)
        advance()
        local = self._after_lstm(
            np.concatenate([encoded, decoded], axis=1), np.concatenate([chosen_past, chosen_future], axis=1)
        )
        enriched = self._enrich(local)
        advance()
        attended = self._after_attention(self._attention(enriched), enriched[:, length:])
        advance()
        fused = self._before_output(self._feed_forward(attended), local[:, length:])
        weight, bias = self._output
        outputs = np.asarray(fused @ weight + bias)
        advance()
        return outputs


def _elu(x: Array) -> Array:
    """torch's ELU. `exp(x) - 1` rather than `expm1`: as exact as float32 needs, and many times faster."""
    return np.asarray(np.maximum(x, 0) + (np.exp(np.minimum(x, 0)) - 1))


def _layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...h,...h->...", x, x) / x.shape[-1]
    x *= (1 / np.sqrt(variance + EPSILON))[..., None]
    x *= weight
    x += bias
    return np.asarray(x)


def _softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    x /= x.sum(axis=-1, keepdims=True)
    return x


def _glu_parts(weight: Array, bias: Array) -> tuple[Array, Array]:
    """A gated linear unit's layer, halved: `a * sigmoid(b) == a/2 * (1 + tanh(b/2))`, and tanh cannot overflow."""
    return (weight / 2).T.astype(np.float32), (bias / 2).astype(np.float32)


def _glu(x: Array) -> Array:
    half = x.shape[-1] // 2
    gate = np.tanh(x[..., half:])
    gate += 1
    gate *= x[..., :half]
    return np.asarray(gate)


def _interpolation(inputs: int, outputs: int) -> Array:
    """`[outputs, inputs]`: torch's linear interpolation with aligned corners, as a matrix."""
    grid = np.linspace(0, inputs - 1, outputs) if outputs > 1 else np.zeros(1)
    return np.asarray(np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(inputs))))


def _resampling(w: Weights, name: str, inputs: int, outputs: int) -> Array:
    """`[outputs, inputs]`: how a residual connection fits its input to its output, before its norm."""
    if inputs == outputs:
        return np.eye(inputs)
    return _interpolation(inputs, outputs) * (2 / (1 + np.exp(-w[f"{name}.resample_norm.mask"])))[:, None]


def _fold_second(w: Weights, name: str) -> tuple[Array, Array]:
    """fc2 and the gate's layer have nothing between them (dropout is off): one layer."""
    gate, bias = w[f"{name}.gate_norm.glu.fc.weight"], w[f"{name}.gate_norm.glu.fc.bias"]
    return _glu_parts(gate @ w[f"{name}.fc2.weight"], gate @ w[f"{name}.fc2.bias"] + bias)


def _norm(w: Weights, name: str) -> tuple[Array, Array]:
    return w[f"{name}.weight"].astype(np.float32), w[f"{name}.bias"].astype(np.float32)


class _Gate:
    """Gated linear unit, skip connection, norm."""

    def __init__(self, w: Weights, linear: str, norm: str) -> None:
        self._weight, self._bias = _glu_parts(w[f"{linear}.weight"], w[f"{linear}.bias"])
        self._norm = _norm(w, norm)

    def __call__(self, x: Array, skip: Array) -> Array:
        return _layer_norm(_glu(x @ self._weight + self._bias) + skip, *self._norm)


class _Residual:
    """Gated residual network of equal input and output size; its context, if any, is a constant."""

    def __init__(self, w: Weights, name: str, context: Array | None = None) -> None:
        bias = w[f"{name}.fc1.bias"]
        if context is not None:
            bias = bias + w[f"{name}.context.weight"] @ context
        self._first = w[f"{name}.fc1.weight"].T.astype(np.float32), bias.astype(np.float32)
        self._second = _fold_second(w, name)
        self._norm = _norm(w, f"{name}.gate_norm.add_norm.norm")

    def __call__(self, x: Array) -> Array:
        inner = _elu(x @ self._first[0] + self._first[1])
        return _layer_norm(_glu(inner @ self._second[0] + self._second[1]) + x, *self._norm)


class _Selection:
    """Variable selection network over real variables.

    A variable enters as one number, so its prescaler, the first layer of its residual network and the interpolated skip
    connection are all of the form `slope * x + offset`. The arrays below stack that over the variables, axis 0.
    """

    def __init__(self, w: Weights, name: str, reals: tuple[str, ...], context: Array) -> None:
        each = [f"{name}.single_variable_grns.{variable}" for variable in reals]
        slopes = np.stack([w[f"prescalers.{variable}.weight"][:, 0] for variable in reals])
        offsets = np.stack([w[f"prescalers.{variable}.bias"] for variable in reals])
        count, small = slopes.shape
        first = np.stack([w[f"{grn}.fc1.weight"] for grn in each])
        first_bias = np.stack([w[f"{grn}.fc1.bias"] for grn in each])
        self._slope = np.einsum("voi,vi->vo", first, slopes)[:, None].astype(np.float32)
        self._offset = (np.einsum("voi,vi->vo", first, offsets) + first_bias)[:, None].astype(np.float32)
        seconds = [_fold_second(w, grn) for grn in each]
        self._second = np.stack([weight for weight, _ in seconds])
        self._second_bias = np.stack([bias for _, bias in seconds])[:, None]
        norms = [_norm(w, f"{grn}.gate_norm.add_norm.norm") for grn in each]
        self._norm_weight = np.stack([weight for weight, _ in norms])
        self._norm_bias = np.stack([bias for _, bias in norms])
        hidden = self._norm_weight.shape[-1]
        skips = [_resampling(w, grn, small, hidden) for grn in each]
        skip_norms = [f"{grn}.resample_norm.norm" for grn in each] if small != hidden else None
        self._skip = _Skip(
            w,
            np.stack([skip @ slope for skip, slope in zip(skips, slopes, strict=True)]),
            np.stack([skip @ offset for skip, offset in zip(skips, offsets, strict=True)]),
            skip_norms,
        )
        self._weighing = _Weighing(w, f"{name}.flattened_grn", slopes, offsets, context) if count > 1 else None

    def __call__(self, x: Array) -> Array:
        """`[B, T, V]` -> `[B, T, hidden]`."""
        rows = x.reshape(-1, x.shape[-1])
        columns = np.ascontiguousarray(rows.T)[:, :, None]  # [V, N, 1]
        inner = _elu(columns * self._slope + self._offset)
        y = _glu(inner @ self._second + self._second_bias)
        y += self._skip(columns)
        y -= y.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt(np.einsum("vnh,vnh->vn", y, y) / y.shape[-1] + EPSILON)
        if self._weighing is None:
            chosen = y[0] * scale[0][:, None] * self._norm_weight[0] + self._norm_bias[0]
        else:
            weights = self._weighing(rows)  # [N, V]
            # The norms' own weights come after the selection weights: one pass over [V, N, hidden] less.
            chosen = np.einsum("vnh,vn,vh->nh", y, scale * weights.T, self._norm_weight, optimize=False)
            chosen += weights @ self._norm_bias
        return np.asarray(chosen.reshape(*x.shape[:-1], -1))


class _Skip:
    """The normed skip connections of the variables, `norm(slope * x + offset)`; mean and variance in closed form."""

    def __init__(self, w: Weights, slope: Array, offset: Array, norms: list[str] | None) -> None:
        self._variance: tuple[Array, ...] | None = None
        self._bias: Array | None = None
        if norms is not None:
            slope = slope - slope.mean(axis=-1, keepdims=True)
            offset = offset - offset.mean(axis=-1, keepdims=True)
            terms = (slope * slope).mean(-1), 2 * (slope * offset).mean(-1), (offset * offset).mean(-1)
            self._variance = tuple(term[:, None, None] for term in terms)
            weight = np.stack([w[f"{norm}.weight"] for norm in norms])
            slope, offset = slope * weight, offset * weight
            self._bias = np.stack([w[f"{norm}.bias"] for norm in norms])[:, None].astype(np.float32)
        self._slope, self._offset = slope[:, None].astype(np.float32), offset[:, None].astype(np.float32)

    def __call__(self, x: Array) -> Array:
        """`[V, N, 1]` -> `[V, N, hidden]`."""
        if self._variance is None or self._bias is None:
            return np.asarray(x * self._slope + self._offset)
        square, cross, constant = self._variance
        wide = x.astype(np.float64)  # the closed form subtracts large numbers for inputs far from zero
        scale = 1 / np.sqrt(np.maximum((square * wide + cross) * wide + constant, 0) + EPSILON)
        scaled = (wide * scale).astype(np.float32)
        return np.asarray(scaled * self._slope + scale.astype(np.float32) * self._offset + self._bias)


class _Weighing:
    """The selection weights: a residual network over all variables at once, softmax. Its context is a constant."""

    def __init__(self, w: Weights, name: str, slopes: Array, offsets: Array, context: Array) -> None:
        count, small = slopes.shape
        first = w[f"{name}.fc1.weight"].reshape(-1, count, small)
        first_bias = w[f"{name}.fc1.bias"] + w[f"{name}.context.weight"] @ context
        self._first = np.einsum("ovs,vs->vo", first, slopes).astype(np.float32)
        self._first_bias = (first_bias + np.einsum("ovs,vs->o", first, offsets)).astype(np.float32)
        self._second = _fold_second(w, name)
        skip = _resampling(w, name, count * small, count).reshape(count, count, small)
        self._skip = np.einsum("ovs,vs->vo", skip, slopes).astype(np.float32)
        self._skip_bias = np.einsum("ovs,vs->o", skip, offsets).astype(np.float32)
        self._skip_norm = _norm(w, f"{name}.resample_norm.norm") if small > 1 else None
        self._norm = _norm(w, f"{name}.gate_norm.add_norm.norm")

    def __call__(self, x: Array) -> Array:
        """`[N, V]` -> weights `[N, V]` that sum to one."""
        skip = x @ self._skip + self._skip_bias
        if self._skip_norm is not None:
            skip = _layer_norm(skip, *self._skip_norm)
        inner = _elu(x @ self._first + self._first_bias)
        return _softmax(_layer_norm(_glu(inner @ self._second[0] + self._second[1]) + skip, *self._norm))


State = tuple[Array, Array]


def _run(layers: list[_Lstm], x: Array, states: list[State]) -> tuple[Array, list[State]]:
    """A stack of LSTM layers over `[B, T, hidden]`, from and to one state a layer."""
    last = []
    for layer, state in zip(layers, states, strict=True):
        x, state = layer(x, state)  # noqa: PLW2901  # each layer reads the one before
        last.append(state)
    return x, last


class _Lstm:
    """One LSTM layer. Gates are kept in the order input, forget, output, cell, so that one call serves three of them.

    Inside the loop a sigmoid is `(1 + tanh(z / 2)) / 2`: the inner half is folded into the weights, the outer one into
    the recurrent weights (the hidden state is carried doubled) and one product of the cell state.
    """

    def __init__(self, w: Weights, name: str, layer: int) -> None:
        hidden = w[f"{name}.weight_hh_l{layer}"].shape[1]
        order = np.concatenate(
            [np.arange(2 * hidden), np.arange(3 * hidden, 4 * hidden), np.arange(2 * hidden, 3 * hidden)]
        )
        halved = np.where(np.arange(4 * hidden) < 3 * hidden, 0.5, 1.0)
        bias = w[f"{name}.bias_ih_l{layer}"] + w[f"{name}.bias_hh_l{layer}"]
        self._input = (w[f"{name}.weight_ih_l{layer}"][order].T * halved).astype(np.float32)
        self._recurrent = (w[f"{name}.weight_hh_l{layer}"][order].T * halved / 2).astype(np.float32)
        self._bias = (bias[order] * halved).astype(np.float32)

    def __call__(self, x: Array, state: State) -> tuple[Array, State]:
        batch, steps, hidden = x.shape
        projected = np.ascontiguousarray((x @ self._input + self._bias).swapaxes(0, 1))  # [T, B, 4 * hidden]
        outputs = np.empty((steps, batch, hidden), dtype=np.float32)
        buffer = np.empty((batch, 5 * hidden), dtype=np.float32)  # the four gates, then the cell state
        recurrent, products = np.empty((batch, 4 * hidden), np.float32), np.empty((batch, 2 * hidden), np.float32)
        cell_tanh = np.empty((batch, hidden), np.float32)
        gates, sigmoids, output_gate = (
            buffer[:, : 4 * hidden],
            buffer[:, : 3 * hidden],
            buffer[:, 2 * hidden : 3 * hidden],
        )
        input_forget, candidate_cell, cell = buffer[:, : 2 * hidden], buffer[:, 3 * hidden :], buffer[:, 4 * hidden :]
        added, kept = products[:, :hidden], products[:, hidden:]
        doubled = np.broadcast_to(state[0] * 2, (batch, hidden))
        cell[:] = state[1]
        one, half, weight = np.float32(1), np.float32(0.5), self._recurrent
        matmul, add, multiply, tanh = np.matmul, np.add, np.multiply, np.tanh
        for inputs, output in zip(projected, outputs, strict=True):
            matmul(doubled, weight, out=recurrent)
            add(recurrent, inputs, out=gates)
            tanh(gates, out=gates)
            add(sigmoids, one, out=sigmoids)
            multiply(input_forget, candidate_cell, out=products)
            add(added, kept, out=cell)
            multiply(cell, half, out=cell)
            tanh(cell, out=cell_tanh)
            multiply(output_gate, cell_tanh, out=output)
            doubled = output
        outputs *= half
        return outputs.swapaxes(0, 1), (outputs[-1], cell.copy())


class _Attention:
    """Interpretable multi-head attention: heads share their values, so their attention weights are averaged first."""

    def __init__(self, w: Weights, network: Network, encoder_length: int, horizon: int) -> None:
        self._heads, head = network.attention_heads, network.hidden_size // network.attention_heads
        self._length, scale = encoder_length, 1 / np.sqrt(head)

        def heads(kind: str, factor: float) -> tuple[Array, Array]:
            names = [f"multihead_attn.{kind}_layers.{index}" for index in range(self._heads)]
            weight = np.concatenate([w[f"{name}.weight"] for name in names]).T * factor
            return weight.astype(np.float32), (np.concatenate([w[f"{name}.bias"] for name in names]) * factor).astype(
                np.float32
            )

        self._query, self._key = heads("q", scale), heads("k", 1.0)
        # The value and the output layer have only the averaging between them: one layer, and since the weights of
        # attention sum to one its bias stays what it is.
        out = w["multihead_attn.w_h.weight"]
        self._value = (out @ w["multihead_attn.v_layer.weight"]).T.astype(np.float32)
        self._value_bias = (out @ w["multihead_attn.v_layer.bias"]).astype(np.float32)
        steps = np.arange(horizon)
        future = np.where(steps[None, :] >= steps[:, None], MASKED, 0.0)  # a step sees those before it, not itself
        self._mask = np.concatenate([np.zeros((horizon, encoder_length)), future], axis=1).astype(np.float32)

    def __call__(self, x: Array) -> Array:
        """`[B, L + H, hidden]` -> `[B, H, hidden]`."""
        batch = x.shape[0]

        def split(rows: Array, layer: tuple[Array, Array]) -> Array:
            return (rows @ layer[0] + layer[1]).reshape(batch, rows.shape[1], self._heads, -1).transpose(0, 2, 1, 3)

        query, key = split(x[:, self._length :], self._query), split(x, self._key)
        attention = _softmax(query @ key.transpose(0, 1, 3, 2) + self._mask).mean(axis=1)
        return np.asarray(attention @ (x @ self._value) + self._value_bias)
