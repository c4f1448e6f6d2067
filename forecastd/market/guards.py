"""Checks that a forecast must pass before it is signed. Pure functions: values in, a verdict out.

The bounds come from current data, not from constants: a log-return over H steps is compared with the volatility of the
encoder's one-step returns, scaled by the square root of H.

Invariant: a forecast that fails a guard is never signed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from forecastd.clock import to_iso
from forecastd.errors import SkipEpoch
from forecastd.market.candles import Candles
from forecastd.runtime.formatting import format_duration
from models.base import Forecast

MAX_SIGMAS = 8.0  # of the H-step volatility; the widest correct weekly quantile of BTC since 2017 is below 6
MIN_BOUND = 0.02  # a log-return of 2 % is plausible at any recent volatility
MAX_MODEL_AGE_DAYS = 400.0
CONSENSUS_SIGMAS = 3.0
DAY = 86_400.0


@dataclass(frozen=True)
class GuardReport:
    """The names of the guards that passed, and warnings as sentences. Warnings do not prevent a submission."""

    passed: tuple[str, ...]
    warnings: tuple[str, ...]
    bound: float  # the largest plausible absolute log-return at the horizon


def plausible_bound(candles: Candles, horizon: int) -> float:
    """The largest plausible absolute log-return over `horizon` steps, from the candles' own one-step volatility."""
    returns = np.diff(np.log(candles.close))
    scale = float(np.sqrt(np.mean(returns**2))) if len(returns) else 0.0
    return max(MIN_BOUND, MAX_SIGMAS * scale * math.sqrt(horizon))


def check_forecast(
    forecast: Forecast,
    candles: Candles,
    *,
    horizon: int,
    training_end: float | None,
    consensus: tuple[float, ...] = (),
) -> GuardReport:
    """Raise for a forecast that must not be signed; else report the guards and warnings.

    `candles` are the input of the forecast. `horizon` is the topic's, in steps. `training_end` is the end of the
    model's training interval (unix seconds; None when age has no meaning, as for synthetic data). `consensus` holds the
    network's latest inferences (empty when unknown).

    Raises:
        SkipEpoch: `check` is one of shape, finite, origin, point, unit, bounds, quantiles, model_age.
    """
    bound = plausible_bound(candles, horizon)
    _check_shape(forecast, horizon)
    _check_finite(forecast)
    _check_origin(forecast, candles)
    _check_point(forecast)
    _check_unit(forecast, candles, bound)
    _check_bounds(forecast, bound)
    _check_quantile_order(forecast)
    _check_model_age(forecast, training_end)
    passed = ("shape", "finite", "origin", "point", "unit", "bounds", "quantiles", "model_age")
    warnings = (*_warn_training_overlap(forecast, training_end), *_warn_consensus_distance(forecast.value, consensus))
    return GuardReport(passed, warnings, bound)


def _check_shape(forecast: Forecast, horizon: int) -> None:
    expected_shape = (horizon, len(forecast.levels))
    if forecast.quantiles.shape != expected_shape or 0.5 not in forecast.levels:
        raise SkipEpoch(
            f"The model returned quantiles of shape {forecast.quantiles.shape} at levels {forecast.levels}; the topic "
            f"requires {expected_shape} including the median. Check the bundle with `forecastd model check`.",
            check="shape",
        )


def _check_finite(forecast: Forecast) -> None:
    if not (math.isfinite(forecast.value) and np.isfinite(forecast.quantiles).all()):
        raise SkipEpoch("The forecast contains NaN or infinity; nothing was signed.", check="finite")


def _check_origin(forecast: Forecast, candles: Candles) -> None:
    if forecast.end != candles.end or forecast.step != candles.step:
        raise SkipEpoch(
            f"The forecast starts at {to_iso(forecast.end)} in steps of {forecast.step} s, but the data ends at "
            f"{to_iso(candles.end)} in steps of {candles.step} s.",
            check="origin",
        )


def _check_point(forecast: Forecast) -> None:
    median = float(forecast.quantiles[-1, forecast.levels.index(0.5)])
    if forecast.value != median:
        raise SkipEpoch(f"The point value {forecast.value:g} is not the last step's median {median:g}.", check="point")


def _check_unit(forecast: Forecast, candles: Candles, bound: float) -> None:
    """Report the common mistake of a price instead of a log-return; that is easier to fix than 'out of bounds'."""
    last_close = float(candles.close[-1])
    looks_like_price = abs(forecast.value) > bound and last_close / 3 < abs(forecast.value) < last_close * 3
    looks_like_log_price = abs(forecast.value) > bound and abs(forecast.value - math.log(last_close)) < 1.0
    if looks_like_price or looks_like_log_price:
        kind = "price" if looks_like_price else "logarithm of a price"
        raise SkipEpoch(
            f"The value {forecast.value:g} looks like a {kind} (the last close is {last_close:g}); "
            "the topic asks for a log-return.",
            check="unit",
        )


def _check_bounds(forecast: Forecast, bound: float) -> None:
    widest_quantile = float(np.abs(forecast.quantiles[-1]).max())
    for quantity, value, limit in (
        ("value", abs(forecast.value), bound),
        ("widest quantile", widest_quantile, 2 * bound),
    ):
        if value > limit:
            raise SkipEpoch(
                f"The {quantity} {value:.4g} exceeds the plausible {limit:.4g} "
                "for this horizon and the recent volatility.",
                check="bounds",
            )


def _check_quantile_order(forecast: Forecast) -> None:
    if (np.diff(forecast.quantiles, axis=1) < 0).any():
        raise SkipEpoch("The forecast's quantiles cross.", check="quantiles")


def _check_model_age(forecast: Forecast, training_end: float | None) -> None:
    if training_end is None:
        return
    age, limit = forecast.end - training_end, MAX_MODEL_AGE_DAYS * DAY
    if age > limit:
        raise SkipEpoch(
            f"The model was trained on data up to {to_iso(training_end)}, {format_duration(age)} before the forecast; "
            f"the limit is {format_duration(limit)}. Train it again with `forecastd train`.",
            check="model_age",
        )


def _warn_training_overlap(forecast: Forecast, training_end: float | None) -> tuple[str, ...]:
    """Warn when the training data includes the forecast period, which can happen in a replay of the past."""
    if training_end is None or training_end <= forecast.end:
        return ()
    return (f"The training data ends at {to_iso(training_end)}, after the forecast's origin: this is not a fair test.",)


def _warn_consensus_distance(value: float, consensus: tuple[float, ...]) -> tuple[str, ...]:
    """Warn when the value is far from the network's own inferences (at least three are required)."""
    others = np.asarray([v for v in consensus if math.isfinite(v)])
    if len(others) < 3:
        return ()
    mean, deviation = float(others.mean()), float(others.std())
    if deviation == 0 or abs(value - mean) <= CONSENSUS_SIGMAS * deviation:
        return ()
    sigmas = abs(value - mean) / deviation
    return (f"The value {value:.5g} is {sigmas:.1f} standard deviations from the network's mean {mean:.5g}.",)
