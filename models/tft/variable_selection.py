"""The variable selection network over real variables, folded.

A variable is one number, so its prescaler, the first layer of its residual network and the interpolated skip
connection all have the form `slope * x + offset`. The arrays of these classes stack these over the variables, on axis
0.
"""

from __future__ import annotations

import numpy as np

from models.tft.layers import (
    EPSILON,
    Array,
    ContextIndex,
    Weights,
    elu,
    fold_output_layers,
    glu,
    layer_norm,
    norm_weights,
    select_bias,
    skip_resampling,
    softmax,
)


class VariableSelectionNetwork:
    """Variable selection network over the variables `reals`. `contexts` `[P, hidden]`: static input."""

    def __init__(self, w: Weights, name: str, reals: tuple[str, ...], contexts: Array) -> None:
        each = [f"{name}.single_variable_grns.{variable}" for variable in reals]
        slopes = np.stack([w[f"prescalers.{variable}.weight"][:, 0] for variable in reals])
        offsets = np.stack([w[f"prescalers.{variable}.bias"] for variable in reals])
        count, small = slopes.shape
        first = np.stack([w[f"{grn}.fc1.weight"] for grn in each])
        first_bias = np.stack([w[f"{grn}.fc1.bias"] for grn in each])
        self.slope = np.einsum("voi,vi->vo", first, slopes)[:, None].astype(np.float32)
        self.offset = (np.einsum("voi,vi->vo", first, offsets) + first_bias)[:, None].astype(np.float32)
        output_layers = [fold_output_layers(w, grn) for grn in each]
        self.second = np.stack([weight for weight, _ in output_layers])
        self.second_bias = np.stack([bias for _, bias in output_layers])[:, None]
        norms = [norm_weights(w, f"{grn}.gate_norm.add_norm.norm") for grn in each]
        self.norm_weight = np.stack([weight for weight, _ in norms])
        self.norm_bias = np.stack([bias for _, bias in norms])
        hidden = self.norm_weight.shape[-1]
        skips = [skip_resampling(w, grn, small, hidden) for grn in each]
        skip_norms = [f"{grn}.resample_norm.norm" for grn in each] if small != hidden else None
        self.skip = SkipConnections(
            w,
            np.stack([skip @ slope for skip, slope in zip(skips, slopes, strict=True)]),
            np.stack([skip @ offset for skip, offset in zip(skips, offsets, strict=True)]),
            skip_norms,
        )
        self.weights = SelectionWeights(w, f"{name}.flattened_grn", slopes, offsets, contexts) if count > 1 else None

    def __call__(self, x: Array, context_index: ContextIndex = None) -> Array:
        """`[B, T, V]` -> `[B, T, hidden]`. `context_index` `[B]`: row of each series' context; None: the only row."""
        rows = x.reshape(-1, x.shape[-1])
        columns = np.ascontiguousarray(rows.T)[:, :, None]  # [V, N, 1]
        inner = elu(columns * self.slope + self.offset)
        y = glu(inner @ self.second + self.second_bias)
        y += self.skip(columns)
        y -= y.mean(axis=-1, keepdims=True)
        scale = 1 / np.sqrt(np.einsum("vnh,vnh->vn", y, y) / y.shape[-1] + EPSILON)
        if self.weights is None:
            selection = y[0] * scale[0][:, None] * self.norm_weight[0] + self.norm_bias[0]
        else:
            weights = self.weights(x, context_index).reshape(rows.shape)
            # The weights of the norms are applied after the selection weights: that saves a pass over [V, N, hidden].
            selection = np.einsum("vnh,vn,vh->nh", y, scale * weights.T, self.norm_weight, optimize=False)
            selection += weights @ self.norm_bias
        return np.asarray(selection.reshape(*x.shape[:-1], -1))


class SkipConnections:
    """The normalized skip connections of the variables, `norm(slope * x + offset)`, with mean and variance in closed form."""

    def __init__(self, w: Weights, slope: Array, offset: Array, norms: list[str] | None) -> None:
        self.variance: tuple[Array, ...] | None = None
        self.bias: Array | None = None
        self.unfolded: tuple[Array, ...] | None = None  # slope, offset, norm weight, norm bias; [V, 1, hidden] each
        if norms is not None:
            before = slope, offset
            slope = slope - slope.mean(axis=-1, keepdims=True)
            offset = offset - offset.mean(axis=-1, keepdims=True)
            terms = (slope * slope).mean(-1), 2 * (slope * offset).mean(-1), (offset * offset).mean(-1)
            self.variance = tuple(term[:, None, None] for term in terms)
            weight = np.stack([w[f"{name}.weight"] for name in norms])
            slope, offset = slope * weight, offset * weight
            bias = np.stack([w[f"{name}.bias"] for name in norms])
            self.unfolded = tuple(part[:, None] for part in (*before, weight, bias))
            self.bias = bias[:, None].astype(np.float32)
        self.slope, self.offset = slope[:, None].astype(np.float32), offset[:, None].astype(np.float32)

    def __call__(self, x: Array) -> Array:
        """`[V, N, 1]` -> `[V, N, hidden]`."""
        if self.variance is None or self.bias is None:
            return np.asarray(x * self.slope + self.offset)
        square, cross, constant = self.variance
        wide = x.astype(np.float64)  # the closed form subtracts large numbers for inputs far from zero
        scale = 1 / np.sqrt(np.maximum((square * wide + cross) * wide + constant, 0) + EPSILON)
        scaled = (wide * scale).astype(np.float32)
        return np.asarray(scaled * self.slope + scale.astype(np.float32) * self.offset + self.bias)


class SelectionWeights:
    """The selection weights: the softmax of a residual network over all variables together."""

    def __init__(self, w: Weights, name: str, slopes: Array, offsets: Array, contexts: Array) -> None:
        count, small = slopes.shape
        first = w[f"{name}.fc1.weight"].reshape(-1, count, small)
        first_bias = w[f"{name}.fc1.bias"] + contexts @ w[f"{name}.context.weight"].T
        self.first = np.einsum("ovs,vs->vo", first, slopes).astype(np.float32)
        self.first_bias = (first_bias + np.einsum("ovs,vs->o", first, offsets)).astype(np.float32)  # [P, inner]
        self.second, self.second_bias = fold_output_layers(w, name)
        skip = skip_resampling(w, name, count * small, count).reshape(count, count, small)
        self.skip = np.einsum("ovs,vs->vo", skip, slopes).astype(np.float32)
        self.skip_bias = np.einsum("ovs,vs->o", skip, offsets).astype(np.float32)
        self.skip_norm = norm_weights(w, f"{name}.resample_norm.norm") if small > 1 else None
        self.norm = norm_weights(w, f"{name}.gate_norm.add_norm.norm")

    def __call__(self, x: Array, context_index: ContextIndex) -> Array:
        """`[B, T, V]` -> weights `[B, T, V]` that sum to one."""
        skip = x @ self.skip + self.skip_bias
        if self.skip_norm is not None:
            skip = layer_norm(skip, *self.skip_norm)
        inner = elu(x @ self.first + select_bias(self.first_bias, context_index))
        return softmax(layer_norm(glu(inner @ self.second + self.second_bias) + skip, *self.norm))
