"""The layers of a Temporal Fusion Transformer in numpy, with the library's weights folded.

Each class reads its weights by their names in pytorch_forecasting's `state_dict`, in float64, and stores what a
forecast needs in float32. The folded arrays are public: `models.tft.onnx_graph` builds its graphs from them. A
context is a vector for the static properties of a series; contexts are rows of a table, and a series has the index of
its row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.tft.config import TftConfig

Array = NDArray[Any]
Weights = Mapping[str, Array]
ContextIndex = NDArray[np.int64] | None  # which context each series has

EPSILON = 1e-5  # of torch's LayerNorm
MASKED = -1e9  # the library's mask_bias


def elu(x: Array) -> Array:
    """torch's ELU. `exp(x) - 1` is exact enough for float32 and many times faster than `expm1`."""
    return np.asarray(np.maximum(x, 0) + (np.exp(np.minimum(x, 0)) - 1))


def layer_norm(x: Array, weight: Array, bias: Array) -> Array:
    x = x - x.mean(axis=-1, keepdims=True)
    variance = np.einsum("...h,...h->...", x, x) / x.shape[-1]
    x *= (1 / np.sqrt(variance + EPSILON))[..., None]
    x *= weight
    x += bias
    return np.asarray(x)


def softmax(x: Array) -> Array:
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    x /= x.sum(axis=-1, keepdims=True)
    return x


def fold_glu(weight: Array, bias: Array) -> tuple[Array, Array]:
    """The layer of a gated linear unit, halved: `a * sigmoid(b) == a/2 * (1 + tanh(b/2))`, and tanh cannot overflow."""
    return (weight / 2).T.astype(np.float32), (bias / 2).astype(np.float32)


def glu(x: Array) -> Array:
    half = x.shape[-1] // 2
    gate = np.tanh(x[..., half:])
    gate += 1
    gate *= x[..., :half]
    return np.asarray(gate)


def interpolation_matrix(inputs: int, outputs: int) -> Array:
    """`[outputs, inputs]`: torch's linear interpolation with aligned corners, as a matrix."""
    grid = np.linspace(0, inputs - 1, outputs) if outputs > 1 else np.zeros(1)
    return np.asarray(np.maximum(0, 1 - np.abs(grid[:, None] - np.arange(inputs))))


def skip_resampling(w: Weights, name: str, inputs: int, outputs: int) -> Array:
    """`[outputs, inputs]`: the matrix that fits the input of a skip connection to its output size, before the norm."""
    return np.eye(inputs) if inputs == outputs else resample_matrix(w, f"{name}.resample_norm", inputs, outputs)


def resample_matrix(w: Weights, name: str, inputs: int, outputs: int) -> Array:
    """`[outputs, inputs]`: the library's `ResampleNorm` before its norm."""
    return interpolation_matrix(inputs, outputs) * (2 / (1 + np.exp(-w[f"{name}.mask"])))[:, None]


def fold_output_layers(w: Weights, name: str) -> tuple[Array, Array]:
    """fc2 and the gate's layer as one layer: nothing is between them, since dropout is off."""
    gate, bias = w[f"{name}.gate_norm.glu.fc.weight"], w[f"{name}.gate_norm.glu.fc.bias"]
    return fold_glu(gate @ w[f"{name}.fc2.weight"], gate @ w[f"{name}.fc2.bias"] + bias)


def norm_weights(w: Weights, name: str) -> tuple[Array, Array]:
    return w[f"{name}.weight"].astype(np.float32), w[f"{name}.bias"].astype(np.float32)


def select_bias(table: Array, context_index: ContextIndex) -> Array:
    """Rows `[B, 1, inner]` of a table of biases `[P, inner]`; the first row for all series if `context_index` is None."""
    return np.asarray(table[0] if context_index is None else table[context_index][:, None])


class GateAddNorm:
    """Gated linear unit, skip connection, layer norm."""

    def __init__(self, w: Weights, linear: str, add_norm: str) -> None:
        self.weight, self.bias = fold_glu(w[f"{linear}.weight"], w[f"{linear}.bias"])
        self.norm = norm_weights(w, add_norm)

    def __call__(self, x: Array, skip: Array) -> Array:
        return layer_norm(glu(x @ self.weight + self.bias) + skip, *self.norm)


class GatedResidualNetwork:
    """Gated residual network with equal input and output sizes. `contexts` `[P, hidden]`: optional second input."""

    def __init__(self, w: Weights, name: str, contexts: Array | None = None) -> None:
        bias = w[f"{name}.fc1.bias"][None]
        if contexts is not None:
            bias = bias + contexts @ w[f"{name}.context.weight"].T
        self.first, self.first_bias = w[f"{name}.fc1.weight"].T.astype(np.float32), bias.astype(np.float32)
        self.second, self.second_bias = fold_output_layers(w, name)
        self.norm = norm_weights(w, f"{name}.gate_norm.add_norm.norm")

    def __call__(self, x: Array, context_index: ContextIndex = None) -> Array:
        """`[B, ..., hidden]` -> the same shape. `context_index` `[B]`: row of each series' context; None: the only row."""
        inner = elu(x @ self.first + select_bias(self.first_bias, context_index))
        return layer_norm(glu(inner @ self.second + self.second_bias) + x, *self.norm)


LstmState = tuple[Array, Array]


def run_lstm_stack(layers: list[LstmLayer], x: Array, states: list[LstmState]) -> tuple[Array, list[LstmState]]:
    """Run a stack of LSTM layers over `[B, T, hidden]`; returns the outputs and the final state of each layer."""
    final_states = []
    for layer, state in zip(layers, states, strict=True):
        x, state = layer(x, state)  # noqa: PLW2901  # the output of a layer is the input of the next
        final_states.append(state)
    return x, final_states


class LstmLayer:
    """One LSTM layer. The gates are in the order input, forget, output, cell, so that one call computes three sigmoids.

    Inside the loop a sigmoid is `(1 + tanh(z / 2)) / 2`. The inner half is folded into the weights; the outer half is
    folded into the recurrent weights, where the hidden state is doubled, and into one product of the cell state.
    """

    def __init__(self, w: Weights, name: str, layer: int) -> None:
        hidden = w[f"{name}.weight_hh_l{layer}"].shape[1]
        order = np.concatenate(
            [np.arange(2 * hidden), np.arange(3 * hidden, 4 * hidden), np.arange(2 * hidden, 3 * hidden)]
        )
        halve_factors = np.where(np.arange(4 * hidden) < 3 * hidden, 0.5, 1.0)
        bias = w[f"{name}.bias_ih_l{layer}"] + w[f"{name}.bias_hh_l{layer}"]
        self.input = (w[f"{name}.weight_ih_l{layer}"][order].T * halve_factors).astype(np.float32)
        self.recurrent = (w[f"{name}.weight_hh_l{layer}"][order].T * halve_factors / 2).astype(np.float32)
        self.bias = (bias[order] * halve_factors).astype(np.float32)

    @property
    def onnx_weights(self) -> tuple[Array, Array, Array]:
        """Weights `[4 * hidden, inputs]` and `[4 * hidden, hidden]` and bias `[8 * hidden]` in the order of ONNX's LSTM."""
        hidden = self.recurrent.shape[0]
        gates = np.arange(4 * hidden).reshape(4, hidden)
        order = gates[[0, 2, 1, 3]].reshape(-1)  # input, output, forget, cell
        restore_factors = np.where(np.arange(4 * hidden) < 3 * hidden, 2.0, 1.0)
        weight, recurrent = (self.input * restore_factors).T[order], (self.recurrent * restore_factors * 2).T[order]
        return weight, recurrent, np.concatenate([(self.bias * restore_factors)[order], np.zeros(4 * hidden)])

    def __call__(self, x: Array, state: LstmState) -> tuple[Array, LstmState]:
        batch, steps, hidden = x.shape
        projected = np.ascontiguousarray((x @ self.input + self.bias).swapaxes(0, 1))  # [T, B, 4 * hidden]
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
        added, retained = products[:, :hidden], products[:, hidden:]
        doubled = np.broadcast_to(state[0] * 2, (batch, hidden))
        cell[:] = state[1]
        unit, half, weight = np.float32(1), np.float32(0.5), self.recurrent
        matmul, add, multiply, tanh = np.matmul, np.add, np.multiply, np.tanh
        for inputs, output in zip(projected, outputs, strict=True):
            matmul(doubled, weight, out=recurrent)
            add(recurrent, inputs, out=gates)
            tanh(gates, out=gates)
            add(sigmoids, unit, out=sigmoids)
            multiply(input_forget, candidate_cell, out=products)
            add(added, retained, out=cell)
            multiply(cell, half, out=cell)
            tanh(cell, out=cell_tanh)
            multiply(output_gate, cell_tanh, out=output)
            doubled = output
        outputs *= half
        return outputs.swapaxes(0, 1), (outputs[-1], cell.copy())


class InterpretableMultiHeadAttention:
    """Interpretable multi-head attention: heads share their values, so their attention weights are averaged first."""

    def __init__(self, w: Weights, network: TftConfig, horizon: int) -> None:
        self.heads, head_size = network.attention_heads, network.hidden_size // network.attention_heads
        scale = 1 / np.sqrt(head_size)

        def heads(kind: str, factor: float) -> tuple[Array, Array]:
            names = [f"multihead_attn.{kind}_layers.{index}" for index in range(self.heads)]
            weight = np.concatenate([w[f"{name}.weight"] for name in names]).T * factor
            return weight.astype(np.float32), (np.concatenate([w[f"{name}.bias"] for name in names]) * factor).astype(
                np.float32
            )

        self.query, self.key = heads("q", scale), heads("k", 1.0)
        # Between the value layer and the output layer is only an average over heads: they are one layer. Its bias does
        # not change, since the attention weights sum to one.
        out = w["multihead_attn.w_h.weight"]
        self.value = (out @ w["multihead_attn.v_layer.weight"]).T.astype(np.float32)
        self.value_bias = (out @ w["multihead_attn.v_layer.bias"]).astype(np.float32)
        self.value_layers = (
            w["multihead_attn.v_layer.weight"].T.astype(np.float32),
            out.T.astype(np.float32),
        )  # as two layers
        steps = np.arange(horizon)
        # A step attends to the whole past and to the future steps before it, not to itself.
        self.mask = np.where(steps[None, :] >= steps[:, None], MASKED, 0.0).astype(np.float32)

    def __call__(self, x: Array) -> Array:
        """`[B, L + H, hidden]` -> `[B, H, hidden]`."""
        batch, past = x.shape[0], x.shape[1] - len(self.mask)

        def split(rows: Array, layer: tuple[Array, Array]) -> Array:
            return (rows @ layer[0] + layer[1]).reshape(batch, rows.shape[1], self.heads, -1).transpose(0, 2, 1, 3)

        query, key = split(x[:, past:], self.query), split(x, self.key)
        scores = query @ key.transpose(0, 1, 3, 2)
        scores[..., past:] += self.mask
        attention = softmax(scores).mean(axis=1)
        return np.asarray(attention @ (x @ self.value) + self.value_bias)
