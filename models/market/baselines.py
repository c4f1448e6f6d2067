"""Forecasts without a model, which a model is compared with.

All are fitted to the k-step log-returns of the train part, for every step k of the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.base import FloatArray


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
        count, horizon = len(scales), len(self.drift_point)
        zeros = np.zeros((count, horizon))
        return {
            "zero": (np.broadcast_to(self.zero, (count, *self.zero.shape)), zeros),
            "drift": (
                np.broadcast_to(self.drift, (count, *self.drift.shape)),
                np.broadcast_to(self.drift_point, (count, horizon)),
            ),
            "volatility": (self.volatility * scales[:, None, None], zeros),
        }


def fit_baselines(returns: FloatArray, scales: FloatArray, levels: tuple[float, ...]) -> MarketBaselines:
    """Fit the baselines to `returns` `[N, H]` after each origin of the train part and target `scales` `[N]` at them."""
    mean = returns.mean(axis=0)
    standard = returns / scales[:, None]
    return MarketBaselines(
        zero=_quantiles(returns - mean, levels),
        drift=_quantiles(returns, levels),
        drift_point=mean,
        volatility=_quantiles(standard - standard.mean(axis=0), levels),
    )


def _quantiles(returns: FloatArray, levels: tuple[float, ...]) -> FloatArray:
    return np.asarray(np.quantile(returns, levels, axis=0).T)
