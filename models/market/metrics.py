"""Scores of forecasts against outcomes, for models and baselines alike. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from models.base import FloatArray

Scores = Mapping[str, object]


def pinball(quantiles: FloatArray, actual: FloatArray, levels: tuple[float, ...]) -> FloatArray:
    """Pinball loss `[N, H, Q]` of quantiles `[N, H, Q]` against outcomes `[N, H]`: `max(q * e, (q - 1) * e)`.

    Koenker and Bassett 1978; pytorch_forecasting's `QuantileLoss` is twice this.
    """
    error = actual[..., None] - quantiles
    level = np.asarray(levels)
    return np.maximum(level * error, (level - 1) * error)


def coverage(quantiles: FloatArray, actual: FloatArray, levels: tuple[float, ...]) -> dict[str, float]:
    """The share of outcomes inside each central interval of the levels (0.1 and 0.9: "0.8")."""
    shares = {}
    for low, level in enumerate(levels):
        high = next((i for i, other in enumerate(levels) if abs(level + other - 1) < 1e-9), None)
        if level < 0.5 and high is not None:
            inside = (quantiles[..., low] <= actual) & (actual <= quantiles[..., high])
            shares[f"{1 - 2 * level:.4g}"] = float(inside.mean())
    return shares


def direction_accuracy(point: FloatArray, actual: FloatArray) -> float | None:
    """The share of outcomes with the sign of the point forecast; None when all forecasts or outcomes are zero."""
    mask = (point != 0) & (actual != 0)
    return float((np.sign(point[mask]) == np.sign(actual[mask])).mean()) if mask.any() else None


def score(quantiles: FloatArray, point: FloatArray, actual: FloatArray, levels: tuple[float, ...]) -> Scores:
    """All scores of forecasts: quantiles `[N, H, Q]`, points `[N, H]`, outcomes `[N, H]`, all log-returns.

    `pinball` and `pinball_by_level` are means over windows and steps, `coverage` is over all steps. All other scores
    are of the last step, which is what a topic asks for.
    """
    losses = pinball(quantiles, actual, levels)
    error = point[:, -1] - actual[:, -1]
    return {
        "pinball": float(losses.mean()),
        "pinball_by_level": {f"{q:g}": float(loss) for q, loss in zip(levels, losses.mean(axis=(0, 1)), strict=True)},
        "pinball_last": float(losses[:, -1].mean()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "coverage": coverage(quantiles, actual, levels),
        "coverage_last": coverage(quantiles[:, -1], actual[:, -1], levels),
        "direction": direction_accuracy(point[:, -1], actual[:, -1]),
    }
