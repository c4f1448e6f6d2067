"""The forward pass of the Temporal Fusion Transformer in numpy, which runs every prediction of a market model.

Invariant: it equals `TemporalFusionTransformer.forward` of pytorch_forecasting 1.8 in eval mode with its defaults
(causal attention, full decoder, no categoricals except one static one, the profile), on the weights of its
`state_dict`. A test compares the two on random networks and so guards an upgrade of the library. The network is that
of Lim et al. 2019 (https://arxiv.org/abs/1912.09363) with the library's changes.

It is small and fast for three reasons: a linear layer that follows another one is folded into it, all variables go
through one batched product, and the loop over time of an LSTM contains the recurrent product only.

Floating-point flags are ignored: OpenBLAS's vector kernels compute on padding too, and sometimes raise a flag
although every result is right. The caller checks that results are finite.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from models.tft.config import PROFILE, TftConfig
from models.tft.layers import (
    Array,
    ContextIndex,
    GateAddNorm,
    GatedResidualNetwork,
    InterpretableMultiHeadAttention,
    LstmLayer,
    Weights,
    layer_norm,
    norm_weights,
    resample_matrix,
    run_lstm_stack,
)
from models.tft.variable_selection import VariableSelectionNetwork

PROGRESS_STEPS = 7  # how often a call reports progress


class Tft:
    """A network with folded weights. Calls do not change it, so threads may share it."""

    @np.errstate(all="ignore")
    def __init__(self, network: TftConfig, weights: Weights, horizon: int) -> None:
        """Fold `weights`, which must have the names and shapes that `parameter_shapes` gives."""
        w = {name: np.asarray(value, dtype=np.float64) for name, value in weights.items()}
        static = _static_embedding(network, w)
        selection, state, cell, enrichment = (
            GatedResidualNetwork(w, f"static_context_{name}")(static).astype(np.float64)
            for name in ("variable_selection", "initial_hidden_lstm", "initial_cell_lstm", "enrichment")
        )
        self.initial_state = state.astype(np.float32), cell.astype(np.float32)  # [P, hidden] each
        self.encoder_selection = VariableSelectionNetwork(
            w, "encoder_variable_selection", network.encoder_reals, selection
        )
        self.decoder_selection = VariableSelectionNetwork(
            w, "decoder_variable_selection", network.decoder_reals, selection
        )
        self.encoder = [LstmLayer(w, "lstm_encoder", layer) for layer in range(network.lstm_layers)]
        self.decoder = [LstmLayer(w, "lstm_decoder", layer) for layer in range(network.lstm_layers)]
        self.lstm_gate = GateAddNorm(w, "post_lstm_gate_encoder.fc", "post_lstm_add_norm_encoder.norm")
        self.enrichment = GatedResidualNetwork(w, "static_enrichment", contexts=enrichment)
        self.attention = InterpretableMultiHeadAttention(w, network, horizon)
        self.attention_gate = GateAddNorm(w, "post_attn_gate_norm.glu.fc", "post_attn_gate_norm.add_norm.norm")
        self.feed_forward = GatedResidualNetwork(w, "pos_wise_ff")
        self.output_gate = GateAddNorm(w, "pre_output_gate_norm.glu.fc", "pre_output_gate_norm.add_norm.norm")
        self.output, self.output_bias = _output_layer(network, w)

    def __call__(
        self, past: Array, future: Array, advance: Callable[[], None] = lambda: None, profile_index: ContextIndex = None
    ) -> NDArray[np.float32]:
        """The network's outputs `[B, H, outputs]` in units of the normalized target. They may be infinite or NaN.

        `past` is `[B, L, encoder variables]`, `future` is `[B, H, decoder variables]`, both scaled;
        `profile_index` `[B]` is the profile of each series. `advance` is called `PROGRESS_STEPS` times, after each
        part of the work.
        """
        selected_past = self.select(self.encoder_selection, past, profile_index)
        advance()
        selected_future = self.select(self.decoder_selection, future, profile_index)
        advance()
        return self.forward_selected(selected_past, selected_future, advance, profile_index)

    @staticmethod
    @np.errstate(all="ignore")
    def select(
        selection: VariableSelectionNetwork, variables: Array, profile_index: ContextIndex
    ) -> NDArray[np.float32]:
        """Variable selection of scaled variables `[B, T, V]`: `[B, T, hidden]`. Each step depends on itself only."""
        return np.asarray(selection(variables.astype(np.float32), profile_index))

    @np.errstate(all="ignore")
    def forward_selected(
        self, past: Array, future: Array, advance: Callable[[], None] = lambda: None, profile_index: ContextIndex = None
    ) -> NDArray[np.float32]:
        """The outputs for selected variables `[B, L, hidden]` and `[B, H, hidden]`; calls `advance` five times."""
        length, rows = past.shape[1], slice(None) if profile_index is None else profile_index
        initial = self.initial_state[0][rows], self.initial_state[1][rows]
        encoded, states = run_lstm_stack(self.encoder, past, [initial] * len(self.encoder))
        advance()
        decoded, _ = run_lstm_stack(self.decoder, future, states)
        advance()
        local = self.lstm_gate(np.concatenate([encoded, decoded], axis=1), np.concatenate([past, future], axis=1))
        enriched = self.enrichment(local, profile_index)
        advance()
        attended = self.attention_gate(self.attention(enriched), enriched[:, length:])
        advance()
        fused = self.output_gate(self.feed_forward(attended), local[:, length:])
        outputs = np.asarray(fused @ self.output + self.output_bias)
        advance()
        return outputs


def _static_embedding(network: TftConfig, w: Mapping[str, Array]) -> Array:
    """The input `[P, hidden]` of the static encoders, a row for each profile; zeros, as in the library, without profiles."""
    if not network.profiles:
        return np.zeros((1, network.hidden_size), dtype=np.float32)
    name = f"static_variable_selection.single_variable_grns.{PROFILE}"
    table = w[f"input_embeddings.embeddings.{PROFILE}.weight"]
    fitted = table @ resample_matrix(w, name, network.embedding_size, network.hidden_size).T
    return layer_norm(fitted, *norm_weights(w, f"{name}.norm")).astype(np.float32)


def _output_layer(network: TftConfig, w: Mapping[str, Array]) -> tuple[Array, Array]:
    """The output layers of all targets as one: ordered by target, then by level."""
    names = ["output_layer"] if network.targets == 1 else [f"output_layer.{index}" for index in range(network.targets)]
    weight = np.concatenate([w[f"{name}.weight"] for name in names])
    bias = np.concatenate([w[f"{name}.bias"] for name in names])
    return weight.T.astype(np.float32), bias.astype(np.float32)
