"""Compare a market model with the baselines, on windows that are not in the train part.

The baselines are forecasts without a model, fitted to the k-step log-returns of the train part, for every step k of the
horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.base import FloatArray
from models.scores import Scores, interval_hits, pinball


@dataclass(frozen=True, eq=False)
class MarketBaselines:
    """Quantiles `[H, Q]` and point `[H]` of the baselines; `volatility` is in units of a window's target scale.

    zero:       empirical distribution of the returns, shifted to mean zero; the point is zero
    drift:      the same, not shifted; the point is the mean return
    volatility: as zero, but every return is divided by the volatility before it, so it follows the current volatility
    """

    zero: FloatArray
    drift: FloatArray
    drift_point: FloatArray
    volatility: FloatArray

    def forecasts(self, scales: FloatArray) -> dict[str, tuple[FloatArray, FloatArray]]:
        """Forecasts for windows with target scales `[N]`: name -> quantiles `[N, H, Q]`, points `[N, H]`."""
        shape = len(scales), *self.drift.shape
        zeros = np.zeros(shape[:2])
        return {
            "zero": (np.broadcast_to(self.zero, shape), zeros),
            "drift": (np.broadcast_to(self.drift, shape), np.broadcast_to(self.drift_point, shape[:2])),
            "volatility": (self.volatility * scales[:, None, None], zeros),
        }


def fit_baselines(returns: FloatArray, scales: FloatArray, levels: tuple[float, ...]) -> MarketBaselines:
    """Fit the baselines to `returns` `[N, H]` after each origin of the train part and target `scales` `[N]` at them."""
    mean, standard = returns.mean(axis=0), returns / scales[:, None]
    samples = returns - mean, returns, standard - standard.mean(axis=0)
    zero, drift, volatility = (np.asarray(np.quantile(sample, levels, axis=0).T) for sample in samples)
    return MarketBaselines(zero, drift, mean, volatility)


def score(quantiles: FloatArray, point: FloatArray, actual: FloatArray, levels: tuple[float, ...]) -> Scores:
    """All scores of forecasts: quantiles `[N, H, Q]`, points `[N, H]`, outcomes `[N, H]`, all log-returns.

    `pinball` and `pinball_by_level` are means over windows and steps, `coverage` is over all steps. All other scores
    are of the last step, which is what a topic asks for.
    """
    losses, hits = pinball(quantiles, actual, levels), interval_hits(quantiles, actual, levels)
    error = point[:, -1] - actual[:, -1]
    return {
        "pinball": float(losses.mean()),
        "pinball_by_level": {f"{q:g}": float(loss) for q, loss in zip(levels, losses.mean(axis=(0, 1)), strict=True)},
        "pinball_last": float(losses[:, -1].mean()),
        "mae": float(np.abs(error).mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "coverage": {interval: float(inside.mean()) for interval, inside in hits.items()},
        "coverage_last": {interval: float(inside[:, -1].mean()) for interval, inside in hits.items()},
        "direction": direction_accuracy(point[:, -1], actual[:, -1]),
    }


def direction_accuracy(point: FloatArray, actual: FloatArray) -> float | None:
    """The share of outcomes with the sign of the point forecast; None when all forecasts or outcomes are zero."""
    mask = (point != 0) & (actual != 0)
    return float((np.sign(point[mask]) == np.sign(actual[mask])).mean()) if mask.any() else None
