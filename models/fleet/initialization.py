"""Initial weights of a fleet network that pass its inputs through, which saves hours of training.

The network must carry many metrics through one narrow state with little loss. With pytorch's initial weights it does
not: an LSTM forgets within two steps, and each gate and norm on the way mixes the metrics. It then learns three times
as slowly. Only initial values are changed here; the network is the library's.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from models.fleet.base import Floats
from models.tft.config import TftConfig

_MAX_ENCODER_SPAN = 0.5  # encoder lengths: the longest memory of a unit of the encoder
_DECODER_SPAN = (20.0, 500.0)  # steps: the memory of units of the decoder, which must keep the encoder's state
_SMALL_FACTOR = 0.1  # for layers that mix the metrics; training makes them larger where that helps
_RECURRENT_FACTOR = 0.3
_GATE_BIAS = 2.0  # of the gate after the LSTM: open
_OUTPUT_FACTOR = 0.3


def initialize_weights(model: Any, network: TftConfig, initial_quantiles: Floats) -> None:
    """Change the initial weights of a `TemporalFusionTransformer`. Draws from torch's global generator.

    `initial_quantiles` `[M, Q]`: what the untrained network predicts.
    """
    hidden = network.hidden_size
    with torch.no_grad():
        _set_memory_span(model.lstm_encoder, 1.0, max(2.0, _MAX_ENCODER_SPAN * model.hparams.max_encoder_length))
        _set_memory_span(model.lstm_decoder, *_DECODER_SPAN)
        for selection in (model.encoder_variable_selection, model.decoder_variable_selection):
            if len(selection.single_variable_grns) > 1:  # start with equal selection weights
                selection.flattened_grn.gate_norm.add_norm.norm.weight.mul_(_SMALL_FACTOR)
        for embedding in model.input_embeddings.parameters():
            embedding.mul_(_SMALL_FACTOR)
        gate = model.post_lstm_gate_encoder.fc  # shared with the decoder
        torch.nn.init.orthogonal_(gate.weight[:hidden])
        gate.weight[hidden:].mul_(_SMALL_FACTOR)
        gate.bias[:hidden].zero_()
        gate.bias[hidden:].fill_(_GATE_BIAS)
        model.pre_output_gate_norm.glu.fc.weight.mul_(_SMALL_FACTOR)
        outputs = model.output_layer if network.targets > 1 else [model.output_layer]
        for layer, quantiles in zip(outputs, initial_quantiles, strict=True):
            layer.weight.mul_(_OUTPUT_FACTOR)
            layer.bias.copy_(torch.as_tensor(quantiles))


def _set_memory_span(lstm: Any, shortest: float, longest: float) -> None:
    """Make the units of an LSTM remember for `shortest` to `longest` steps, evenly spread in the logarithm.

    Tallec and Ollivier 2018, https://arxiv.org/abs/1804.11188.
    """
    hidden = lstm.hidden_size
    for layer in range(lstm.num_layers):
        steps = torch.empty(hidden).uniform_(math.log(shortest), math.log(longest)).exp()
        bias, hidden_bias = getattr(lstm, f"bias_ih_l{layer}"), getattr(lstm, f"bias_hh_l{layer}")
        hidden_bias.zero_()
        bias.zero_()
        bias[hidden : 2 * hidden] = steps.log()  # of the forget gate; that of the input gate is before it
        bias[:hidden] = -steps.log()
        getattr(lstm, f"weight_hh_l{layer}").mul_(_RECURRENT_FACTOR)
