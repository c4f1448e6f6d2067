"""The network of pytorch_forecasting that a market model is trained with, and the normalizer of its target.

Only training imports this module. Invariant: `models.tft.forward` equals the network that is built here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.base import FloatArray
from models.tft.config import TftConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between third parties, at import
    from lightning.pytorch import seed_everything
    from pytorch_forecasting import TemporalFusionTransformer
    from pytorch_forecasting.data.encoders import EncoderNormalizer
    from pytorch_forecasting.metrics import QuantileLoss


class LastValueNormalizer(EncoderNormalizer):  # type: ignore[misc]  # the library has no types
    """Centers on the encoder's last value; scales by the volatility of its steps over the horizon.

    So the network reads and predicts log-returns from the origin in units of the recent volatility; the price level
    never enters. Equal to `models.market.engine.target_scale`.
    """

    def __init__(self, horizon: int) -> None:
        super().__init__(method="standard", center=True)
        self.horizon = horizon

    def fit(self, y: Any) -> LastValueNormalizer:
        """Center and scale of one encoder `[L]`."""
        values = y if isinstance(y, torch.Tensor) else torch.as_tensor(np.array(y))
        self.center_ = values[-1]
        self.scale_ = values.diff().std(correction=0) * self.horizon**0.5
        return self


def seed_all(value: int) -> None:
    """Seed every generator that initialization, dropout and the loader draw from."""
    seed_everything(value, workers=False, verbose=False)


def build_network(
    network: TftConfig, levels: tuple[float, ...], encoder_length: int, horizon: int, dropout: float
) -> Any:
    """A new `TemporalFusionTransformer` of these sizes, initialized from torch's global generator."""
    with quiet_library():
        return TemporalFusionTransformer(
            hidden_size=network.hidden_size,
            hidden_continuous_size=network.hidden_continuous_size,
            attention_head_size=network.attention_heads,
            lstm_layers=network.lstm_layers,
            output_size=network.outputs,
            max_encoder_length=encoder_length,
            time_varying_reals_encoder=list(network.encoder_reals),
            time_varying_reals_decoder=list(network.decoder_reals),
            x_reals=list(network.encoder_reals),
            dropout=dropout,
            loss=QuantileLoss(list(levels)),
            logging_metrics=torch.nn.ModuleList(),
            output_transformer=LastValueNormalizer(horizon),
        )


def initialize_output(model: Any, quantiles: FloatArray) -> None:
    """Make the untrained network predict about `quantiles` `[Q]` (normalized), instead of noise around zero.

    Otherwise the first epochs are spent on the width of the distribution, which the baselines give.
    """
    with torch.no_grad():
        model.output_layer.weight.mul_(0.1)
        model.output_layer.bias.copy_(torch.as_tensor(quantiles))


def make_inputs(past: NDArray[np.float32], future: NDArray[np.float32]) -> dict[str, torch.Tensor]:
    """The library's `x` of scaled variables `[B, L, encoder]` and `[B, H, decoder]`, its target in normalized units."""
    batch, horizon = len(past), future.shape[1]
    # The decoder tensor has a column for every variable; the network reads the known ones, which come first.
    decoder = np.zeros((batch, horizon, past.shape[2]), dtype=np.float32)
    decoder[:, :, : future.shape[2]] = future
    return {
        "encoder_cont": torch.as_tensor(past),
        "decoder_cont": torch.as_tensor(decoder),
        "encoder_cat": torch.zeros(batch, past.shape[1], 0, dtype=torch.long),
        "decoder_cat": torch.zeros(batch, horizon, 0, dtype=torch.long),
        "encoder_lengths": torch.full((batch,), past.shape[1]),
        "decoder_lengths": torch.full((batch,), horizon),
        "target_scale": torch.tensor([[0.0, 1.0]]).repeat(batch, 1),
    }


def forward(model: Any, past: NDArray[np.float32], future: NDArray[np.float32]) -> FloatArray:
    """The library's own forward pass in eval mode: outputs `[B, H, Q]` in units of the normalized target."""
    model.eval()
    with torch.no_grad():
        outputs = model(make_inputs(past, future))["prediction"]
    return np.asarray(outputs.cpu().numpy(), dtype=np.float64)


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
