"""The Temporal Fusion Transformer's forward pass in numpy: the small engine that predictions run.

It must equal `TemporalFusionTransformer.forward` of pytorch_forecasting 1.8 in eval mode, with its defaults (causal
attention; no categoricals but one static one, the profile; full decoder), on the weights of its own `state_dict`; a test
compares the two on random networks and guards an upgrade of the library. The network is that of Lim et al. 2019
(https://arxiv.org/abs/1912.09363) with the library's changes. What makes it small and fast: every linear layer that
follows another one is folded into it, all variables go through one batched product, and of the LSTM only the recurrent
product is left inside the loop over time.

Floating-point flags are ignored: OpenBLAS's vector kernels compute on padding too, and now and then raise one though
every result is right. Whether a result is finite is seen by looking at it.
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

PROGRESS_STEPS = 7  # how often a call says that it got on


class Tft:
    """A network with its weights folded and ready. Calls do not change it, so threads may share it."""

    @np.errstate(all="ignore")
    def __init__(self, network: TftConfig, weights: Weights, horizon: int) -> None:
        """Fold the weights, which must have the names and shapes of `expected_shapes`."""
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
        """The network's outputs `[B, H, outputs]`, in units of the normalised target, which the caller checks to be finite.

        `past` is `[B, L, encoder variables]`, `future` is `[B, H, decoder variables]`, both scaled; `which` `[B]` the
        profile of each series. `advance` is called `STEPS` times on the way, each time that a part of the work is done.
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
        """What a selection makes of scaled variables `[B, T, V]`: `[B, T, hidden]`. No step of it depends on another."""
        return np.asarray(selection(variables.astype(np.float32), profile_index))

    @np.errstate(all="ignore")
    def forward_selected(
        self, past: Array, future: Array, advance: Callable[[], None] = lambda: None, profile_index: ContextIndex = None
    ) -> NDArray[np.float32]:
        """The network's outputs from the selections `[B, L, hidden]` and `[B, H, hidden]`; five calls of `advance`."""
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
    """`[P, hidden]`, what the static encoders read: of each profile, or the zeros that the library feeds without any."""
    if not network.profiles:
        return np.zeros((1, network.hidden_size), dtype=np.float32)
    name = f"static_variable_selection.single_variable_grns.{PROFILE}"
    table = w[f"input_embeddings.embeddings.{PROFILE}.weight"]
    fitted = table @ resample_matrix(w, name, network.embedding_size, network.hidden_size).T
    return layer_norm(fitted, *norm_weights(w, f"{name}.norm")).astype(np.float32)


def _output_layer(network: TftConfig, w: Mapping[str, Array]) -> tuple[Array, Array]:
    """The output layers of all targets as one: target by target, its levels in a row."""
    names = ["output_layer"] if network.targets == 1 else [f"output_layer.{index}" for index in range(network.targets)]
    weight = np.concatenate([w[f"{name}.weight"] for name in names])
    bias = np.concatenate([w[f"{name}.bias"] for name in names])
    return weight.T.astype(np.float32), bias.astype(np.float32)
