"""The reference for market models: the same data and network, used as in pytorch_forecasting's documentation.

Tests compare batches and forward passes with it; benchmarks compare times.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from models.base import ModelInput
from models.market.dataset import MarketData
from models.market.manifest import TARGET, MarketManifest, Scaler
from models.tft.torch_model import build_with_weights, quiet_library

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between third parties, at import
    import torch
    from pytorch_forecasting.data.encoders import EncoderNormalizer


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


def frame(data: MarketData) -> pd.DataFrame:
    """The rows as the library needs them: a column for each variable, the group, an integer time."""
    columns: dict[str, Any] = {
        "time_idx": ((data.time - data.time[0]) // data.step).astype(np.int64),
        "series": "0",
        TARGET: data.target,
    }
    for names, matrix in ((data.past_names, data.past), (data.known_names, data.known)):
        columns.update(zip(names, matrix.T, strict=True))
    return pd.DataFrame(columns)


def dataset(data: MarketData, scalers: Mapping[str, Scaler], length: int, horizon: int) -> Any:
    """A `TimeSeriesDataSet` of all windows, with our scalers and our normalizer of the target."""
    from pytorch_forecasting import TimeSeriesDataSet

    with quiet_library():
        return TimeSeriesDataSet(
            frame(data),
            time_idx="time_idx",
            target=TARGET,
            group_ids=["series"],
            min_encoder_length=length,
            max_encoder_length=length,
            min_prediction_length=horizon,
            max_prediction_length=horizon,
            time_varying_known_reals=list(data.known_names),
            time_varying_unknown_reals=[*data.past_names, TARGET],
            target_normalizer=LastValueNormalizer(horizon),
            scalers={name: _sklearn(name, scaler) for name, scaler in scalers.items()},
            add_relative_time_idx=True,
        )


def network(manifest: MarketManifest, weights: Mapping[str, Any]) -> Any:
    """The library's network with the weights of a bundle."""
    return build_with_weights(manifest.network, manifest.levels, manifest.encoder_length, weights)


def rows(inputs: ModelInput, manifest: MarketManifest) -> MarketData:
    """One series to predict from, followed by the future rows that the library's `predict` mode needs."""
    horizon, length = manifest.horizon, manifest.encoder_length
    first = inputs.end - length * inputs.step
    return MarketData(
        time=first + inputs.step * np.arange(length + horizon, dtype=np.int64),
        target=np.append(inputs.target, np.full(horizon, inputs.target[-1])),
        past=np.concatenate([inputs.past, np.repeat(inputs.past[-1:], horizon, axis=0)]),
        known=inputs.known,
        past_names=manifest.past,
        known_names=manifest.known,
        step=inputs.step,
        data_sha256="",
        source="",
        synthetic=True,
    )


def _sklearn(name: str, scaler: Scaler) -> Any:
    from sklearn.preprocessing import StandardScaler  # type: ignore[import-untyped]  # no stubs

    fitted = StandardScaler()
    fitted.mean_, fitted.scale_ = np.array([scaler.center]), np.array([scaler.scale])
    fitted.feature_names_in_ = np.array([name], dtype=object)
    fitted.var_, fitted.n_features_in_, fitted.n_samples_seen_ = fitted.scale_**2, 1, 1
    return fitted
