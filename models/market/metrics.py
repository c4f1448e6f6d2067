"""How good forecasts were, once the truth is known. Pure functions of arrays; the same for a model and for a baseline."""

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
    """For each central interval that the levels hold (0.1 and 0.9: "0.8"), the share of outcomes inside it."""
    shares = {}
    for low, level in enumerate(levels):
        high = next((i for i, other in enumerate(levels) if abs(level + other - 1) < 1e-9), None)
        if level < 0.5 and high is not None:
            inside = (quantiles[..., low] <= actual) & (actual <= quantiles[..., high])
            shares[f"{1 - 2 * level:.4g}"] = float(inside.mean())
    return shares


def direction_accuracy(point: FloatArray, actual: FloatArray) -> float | None:
    """The share of outcomes whose sign the point forecast had, or None when it never said up or down."""
    mask = (point != 0) & (actual != 0)
    return float((np.sign(point[mask]) == np.sign(actual[mask])).mean()) if mask.any() else None


def score(quantiles: FloatArray, point: FloatArray, actual: FloatArray, levels: tuple[float, ...]) -> Scores:
    """All scores of forecasts: quantiles `[N, H, Q]`, points `[N, H]`, outcomes `[N, H]`, all log-returns.

    `pinball*` are means over windows (and steps); `*_last` and the others that name no step are of the last step, which
    is what a topic asks for, except `coverage`, which is over all steps.
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
