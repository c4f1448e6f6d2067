"""Scores of quantile forecasts against outcomes, for models and baselines of every kind. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, object]
Scalar = TypeVar("Scalar", np.float32, np.float64)


def pinball(quantiles: NDArray[Scalar], actual: NDArray[Scalar], levels: tuple[float, ...]) -> NDArray[Scalar]:
    """Pinball loss `[..., Q]` of quantiles `[..., Q]` against outcomes `[...]`; NaN where the outcome is.

    `max(q * e, (q - 1) * e)`; Koenker and Bassett 1978. pytorch_forecasting's `QuantileLoss` is twice this.
    """
    error, level = actual[..., None] - quantiles, np.asarray(levels)
    kind = np.result_type(error, np.float32)  # not wider than the forecasts
    below, above = level.astype(kind), (level - 1).astype(kind)
    losses: NDArray[Scalar] = np.maximum(below * error, above * error)
    return losses


def interval_hits(quantiles: NDArray[Any], actual: NDArray[Any], levels: tuple[float, ...]) -> dict[str, NDArray[Any]]:
    """By central interval of the levels (0.1 and 0.9: "0.8"): 1 where an outcome `[...]` is inside, else 0.

    NaN where the outcome is. The mean of the hits is the coverage of the interval.
    """
    hits = {}
    for low, level in enumerate(levels):
        high = next((index for index, other in enumerate(levels) if abs(level + other - 1) < 1e-9), None)
        if level < 0.5 and high is not None:
            inside = (quantiles[..., low] <= actual) & (actual <= quantiles[..., high])
            hits[f"{1 - 2 * level:.4g}"] = np.where(np.isfinite(actual), inside, np.nan)
    return hits
