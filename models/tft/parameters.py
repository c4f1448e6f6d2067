"""Names and shapes of the parameters of a Temporal Fusion Transformer, as in pytorch_forecasting's `state_dict`.

Invariant: they are exactly those that the network needs. A bundle's weights are checked against them before they are
used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.errors import TrainingDiverged
from models.tft.config import TftConfig


def parameter_shapes(network: TftConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the network's parameters, by their names in `state_dict`; a shared parameter appears once."""
    hidden, small = network.hidden_size, network.hidden_continuous_size
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = (outputs, inputs)
        if bias:
            shapes[f"{name}.bias"] = (outputs,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def gate(name: str, inputs: int, outputs: int) -> None:
        linear(f"{name}.glu.fc", inputs, 2 * outputs)
        norm(f"{name}.add_norm.norm", outputs)

    def residual(name: str, inputs: int, inner: int, outputs: int, *, context: bool = False) -> None:
        linear(f"{name}.fc1", inputs, inner)
        linear(f"{name}.fc2", inner, inner)
        gate(f"{name}.gate_norm", inner, outputs)
        if context:
            linear(f"{name}.context", hidden, inner, bias=False)
        if inputs != outputs:
            shapes[f"{name}.resample_norm.mask"] = (outputs,)
            norm(f"{name}.resample_norm.norm", outputs)

    for variable in dict.fromkeys((*network.encoder_reals, *network.decoder_reals)):
        linear(f"prescalers.{variable}", 1, small)
    if network.profiles:
        shapes["input_embeddings.embeddings.profile.weight"] = (network.profiles, network.embedding_size)
        profile = "static_variable_selection.single_variable_grns.profile"
        shapes[f"{profile}.mask"] = (hidden,)
        norm(f"{profile}.norm", hidden)
    for side, reals in (("encoder", network.encoder_reals), ("decoder", network.decoder_reals)):
        selection = f"{side}_variable_selection"
        if len(reals) > 1:
            inner = min(hidden, len(reals))
            residual(f"{selection}.flattened_grn", small * len(reals), inner, len(reals), context=True)
        for variable in reals:
            residual(f"{selection}.single_variable_grns.{variable}", small, min(small, hidden), hidden)
        for layer in range(network.lstm_layers):
            for kind in ("ih", "hh"):
                shapes[f"lstm_{side}.weight_{kind}_l{layer}"] = (4 * hidden, hidden)
                shapes[f"lstm_{side}.bias_{kind}_l{layer}"] = (4 * hidden,)
    for context in ("variable_selection", "initial_hidden_lstm", "initial_cell_lstm", "enrichment"):
        residual(f"static_context_{context}", hidden, hidden, hidden)
    linear("post_lstm_gate_encoder.fc", hidden, 2 * hidden)
    norm("post_lstm_add_norm_encoder.norm", hidden)
    residual("static_enrichment", hidden, hidden, hidden, context=True)
    head = hidden // network.attention_heads
    linear("multihead_attn.v_layer", hidden, head)
    for index in range(network.attention_heads):
        linear(f"multihead_attn.q_layers.{index}", hidden, head)
        linear(f"multihead_attn.k_layers.{index}", hidden, head)
    linear("multihead_attn.w_h", head, hidden, bias=False)
    gate("post_attn_gate_norm", hidden, hidden)
    residual("pos_wise_ff", hidden, hidden, hidden)
    gate("pre_output_gate_norm", hidden, hidden)
    targets = [""] if network.targets == 1 else [f".{index}" for index in range(network.targets)]
    for target in targets:
        linear(f"output_layer{target}", hidden, network.outputs)
    return shapes


def export_parameters(model: Any, network: TftConfig) -> dict[str, NDArray[np.float32]]:
    """The parameters of the library's network, as a bundle stores them. Raises TrainingDiverged if one is not finite."""
    state = model.state_dict()
    weights = {name: np.asarray(state[name].numpy(), dtype=np.float32) for name in parameter_shapes(network)}
    if not all(np.isfinite(value).all() for value in weights.values()):
        raise TrainingDiverged
    return weights
