"""Where the fit of a fleet's network sets out: a network that already passes on what it sees, for hours less of training.

The network must carry what it sees of many metrics through one narrow state, with little loss. As pytorch initialises it, it
does not: an LSTM forgets within two steps, and each gate and norm on the way mixes the metrics with one another. So it
learns three times as slowly. All that is changed here are first values; the network stays the library's.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from models.fleet.base import Floats
from models.tft.config import TftConfig

_MAX_ENCODER_SPAN = 0.5  # encoder lengths that the most patient unit of the encoder remembers
_DECODER_SPAN = (20.0, 500.0)  # steps for which units of the decoder do: it must hold what the encoder left
_SMALL_FACTOR = 0.1  # what is made this small mixes the metrics at the start; it grows where that pays
_RECURRENT_FACTOR = 0.3
_GATE_BIAS = 2.0  # the bias of the gate after the LSTM
_OUTPUT_FACTOR = 0.3


def initialise_weights(model: Any, network: TftConfig, initial_quantiles: Floats) -> None:
    """Change the first weights of a `TemporalFusionTransformer`.

    `said` `[M, Q]`: the quantiles which are all that the outputs say at first. Draws from torch's global generator.
    """
    hidden = network.hidden_size
    with torch.no_grad():
        _set_memory_span(model.lstm_encoder, 1.0, max(2.0, _MAX_ENCODER_SPAN * model.hparams.max_encoder_length))
        _set_memory_span(model.lstm_decoder, *_DECODER_SPAN)
        for selection in (model.encoder_variable_selection, model.decoder_variable_selection):
            if len(selection.single_variable_grns) > 1:  # choose all variables alike
                selection.flattened_grn.gate_norm.add_norm.norm.weight.mul_(_SMALL_FACTOR)
        for embedding in model.input_embeddings.parameters():
            embedding.mul_(_SMALL_FACTOR)
        gate = model.post_lstm_gate_encoder.fc  # one with the decoder's
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
    """Have the units of an LSTM forget within `shortest` to `longest` steps, evenly spread in the logarithm.

    Tallec and Ollivier 2018, https://arxiv.org/abs/1804.11188.
    """
    hidden = lstm.hidden_size
    for layer in range(lstm.num_layers):
        steps = torch.empty(hidden).uniform_(math.log(shortest), math.log(longest)).exp()
        bias, hidden_bias = getattr(lstm, f"bias_ih_l{layer}"), getattr(lstm, f"bias_hh_l{layer}")
        hidden_bias.zero_()
        bias.zero_()
        bias[hidden : 2 * hidden] = steps.log()  # of the forget gate; the input gate's is before it
        bias[:hidden] = -steps.log()
        getattr(lstm, f"weight_hh_l{layer}").mul_(_RECURRENT_FACTOR)
