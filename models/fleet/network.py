"""The network of pytorch_forecasting for a fleet model: newly built, or with the weights of a bundle."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from models.fleet.base import Floats, Indices
from models.tft.config import PROFILE, RELATIVE_TIME, TftConfig
from models.tft.torch_model import quiet_library

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between third parties, at import
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.data.encoders import GroupNormalizer, MultiNormalizer
    from pytorch_forecasting.metrics import MultiLoss, QuantileLoss


def all_reals(network: TftConfig) -> list[str]:
    """The variables in the order of the library's data set: known variables, relative time, metrics."""
    known = [name for name in network.decoder_reals if name != RELATIVE_TIME]
    return [*known, RELATIVE_TIME, *network.encoder_reals[len(known) :]]


def build_network(network: TftConfig, levels: tuple[float, ...], encoder_length: int, dropout: float = 0.0) -> Any:
    """A new `TemporalFusionTransformer` of these sizes, initialized from torch's global generator."""
    losses = [QuantileLoss(list(levels)) for _ in range(network.targets)]
    single = network.targets == 1
    with quiet_library():
        return TemporalFusionTransformer(
            hidden_size=network.hidden_size,
            hidden_continuous_size=network.hidden_continuous_size,
            attention_head_size=network.attention_heads,
            lstm_layers=network.lstm_layers,
            output_size=network.outputs if single else [network.outputs] * network.targets,
            max_encoder_length=encoder_length,
            static_categoricals=[PROFILE],
            x_categoricals=[PROFILE],
            embedding_sizes={PROFILE: (network.profiles, network.embedding_size)},
            time_varying_reals_encoder=list(network.encoder_reals),
            time_varying_reals_decoder=list(network.decoder_reals),
            x_reals=all_reals(network),
            dropout=dropout,
            loss=losses[0] if single else MultiLoss(losses),
            logging_metrics=torch.nn.ModuleList(),
            output_transformer=GroupNormalizer() if single else MultiNormalizer([GroupNormalizer() for _ in losses]),
        )


def build_with_weights(network: TftConfig, levels: tuple[float, ...], encoder_length: int, weights: Any) -> Any:
    """The library's network with the parameters of a bundle, in eval mode."""
    model = build_network(network, levels, encoder_length).eval()
    state = model.state_dict()
    model.load_state_dict({**state, **{name: torch.as_tensor(value.copy()) for name, value in weights.items()}})
    return model


def make_inputs(
    network: TftConfig, past: Floats, future: Floats, profile_index: Indices
) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """The library's `x` from scaled variables `[B, L, encoder]` and `[B, H, decoder]` and profiles `[B]`."""
    batch, length, horizon = len(past), past.shape[1], future.shape[1]
    reals, known_count = all_reals(network), len(network.decoder_reals)
    cont = torch.zeros(batch, length + horizon, len(reals))
    encoder = [reals.index(name) for name in network.encoder_reals]
    cont[:, :length, encoder] = torch.as_tensor(past)
    cont[:, length:, :known_count] = torch.as_tensor(future)
    cat = torch.as_tensor(profile_index)[:, None, None].expand(-1, length + horizon, -1)
    scale = torch.tensor([[0.0, 1.0]]).repeat(batch, 1)
    return {
        "encoder_cont": cont[:, :length],
        "decoder_cont": cont[:, length:],
        "encoder_cat": cat[:, :length],
        "decoder_cat": cat[:, length:],
        "encoder_lengths": torch.full((batch,), length),
        "decoder_lengths": torch.full((batch,), horizon),
        "target_scale": scale if network.targets == 1 else [scale] * network.targets,
    }


def forward(model: Any, network: TftConfig, past: Floats, future: Floats, profile_index: Indices) -> torch.Tensor:
    """The network's outputs `[B, H, M, Q]` in units of the normalized metrics."""
    outputs = model(make_inputs(network, past, future, profile_index))["prediction"]
    return outputs[:, :, None] if network.targets == 1 else torch.stack(list(outputs), dim=2)
