"""The network of pytorch_forecasting that a model is trained with: newly built, or with the weights of a bundle.

Only training and the engine `library` import this module. Invariant: `models.tft.forward` equals the network that is
built here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.tft.config import PROFILE, RELATIVE_TIME, TftConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between third parties, at import
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.data.encoders import GroupNormalizer, MultiNormalizer
    from pytorch_forecasting.metrics import MultiLoss, QuantileLoss

Floats = NDArray[np.float32]

HARMLESS_WARNINGS = (
    r"Attribute '.*' is an instance of `nn\.Module`",  # the library saves its loss among its hyperparameters
    r".*does not have many workers",  # a batch is one gather: workers would only copy it
    r"Checkpoint directory .* exists and is not empty",  # an interrupted training run resumes there
    r".*LeafSpec.* is deprecated",  # Lightning's own use of torch
)


@contextmanager
def quiet_library() -> Iterator[None]:
    """Silence the warnings that are known to be harmless."""
    with warnings.catch_warnings():
        for message in HARMLESS_WARNINGS:
            warnings.filterwarnings("ignore", message=message)
        yield


def all_reals(network: TftConfig) -> list[str]:
    """The variables in the order of the library's data set: known variables, relative time, then the others."""
    known = [name for name in network.decoder_reals if name != RELATIVE_TIME]
    return [*known, RELATIVE_TIME, *(name for name in network.encoder_reals[len(known) :] if name != RELATIVE_TIME)]


def build_network(network: TftConfig, levels: tuple[float, ...], encoder_length: int, dropout: float = 0.0) -> Any:
    """A new `TemporalFusionTransformer` of these sizes, initialized from torch's global generator."""
    losses = [QuantileLoss(list(levels)) for _ in range(network.targets)]
    single, profile = network.targets == 1, [PROFILE] if network.profiles else []
    with quiet_library():
        return TemporalFusionTransformer(
            hidden_size=network.hidden_size,
            hidden_continuous_size=network.hidden_continuous_size,
            attention_head_size=network.attention_heads,
            lstm_layers=network.lstm_layers,
            output_size=network.outputs if single else [network.outputs] * network.targets,
            max_encoder_length=encoder_length,
            static_categoricals=profile,
            x_categoricals=profile,
            embedding_sizes=dict.fromkeys(profile, (network.profiles, network.embedding_size)),
            time_varying_reals_encoder=list(network.encoder_reals),
            time_varying_reals_decoder=list(network.decoder_reals),
            x_reals=all_reals(network),
            dropout=dropout,
            loss=losses[0] if single else MultiLoss(losses),
            logging_metrics=torch.nn.ModuleList(),
            output_transformer=GroupNormalizer() if single else MultiNormalizer([GroupNormalizer() for _ in losses]),
        )


def build_with_weights(
    network: TftConfig, levels: tuple[float, ...], encoder_length: int, weights: Mapping[str, Floats]
) -> Any:
    """The library's network with the parameters of a bundle, in eval mode."""
    model = build_network(network, levels, encoder_length).eval()
    state = model.state_dict()
    model.load_state_dict({
        name: torch.as_tensor(weights[name].copy()) if name in weights else value for name, value in state.items()
    })  # fmt: skip
    return model


def make_inputs(
    network: TftConfig, past: Floats, future: Floats, profile_index: NDArray[np.int64] | None = None
) -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """The library's `x` from scaled variables `[B, L, encoder]` and `[B, H, decoder]`, and profiles `[B]` if it has any."""
    batch, length, horizon = len(past), past.shape[1], future.shape[1]
    reals = all_reals(network)
    cont = torch.zeros(batch, length + horizon, len(reals))
    cont[:, :length, [reals.index(name) for name in network.encoder_reals]] = torch.as_tensor(past)
    cont[:, length:, : len(network.decoder_reals)] = torch.as_tensor(future)
    profiles = np.zeros((batch, 0), dtype=np.int64) if profile_index is None else profile_index[:, None]
    cat = torch.as_tensor(profiles)[:, None].expand(-1, length + horizon, -1)
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


def stack_targets(outputs: torch.Tensor | list[torch.Tensor]) -> torch.Tensor:
    """The predictions `[B, H, M, Q]` of a network with one or several targets."""
    return outputs[:, :, None] if isinstance(outputs, torch.Tensor) else torch.stack(list(outputs), dim=2)


def forward(
    model: Any, network: TftConfig, past: Floats, future: Floats, profile_index: NDArray[np.int64] | None = None
) -> Floats:
    """The library's own forward pass in eval mode: outputs `[B, H, M, Q]` in units of the normalized targets."""
    model.eval()
    with torch.inference_mode():
        outputs = stack_targets(model(make_inputs(network, past, future, profile_index))["prediction"])
    return np.asarray(outputs.cpu().numpy())
