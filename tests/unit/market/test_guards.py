"""Guards: each fault is refused by its own guard, and a plausible forecast passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.errors import SkipEpoch
from forecastd.market.candles import HOUR, Candles, Provenance
from forecastd.market.guards import MIN_BOUND, check_forecast, plausible_bound
from models.base import Forecast

HORIZON, LEVELS = 6, (0.1, 0.5, 0.9)
LAST_CLOSE = 8000.0


def make_candles() -> Candles:
    random = np.random.default_rng(1)
    close = LAST_CLOSE * np.exp(np.cumsum(random.normal(0, 0.005, 100))[::-1])
    close *= LAST_CLOSE / close[-1]
    time = 1_571_000_400 // HOUR * HOUR + HOUR * np.arange(100, dtype=np.int64)
    provenance = Provenance("test", 0.0, "", synthetic=False)
    return Candles("btcusd", HOUR, time, close, close, close, close, close, provenance)


CANDLES = make_candles()


def plausible_forecast() -> Forecast:
    spread = 0.01 * np.sqrt(np.arange(1, HORIZON + 1))[:, None]
    quantiles = spread * np.array([-1.0, 0.1, 1.2])
    return Forecast(CANDLES.end, HOUR, LEVELS, quantiles, float(quantiles[-1, 1]), "i", "b")


def last_row(**values: float) -> Callable[[Forecast], Forecast]:
    """Replace the last row of a forecast, and the point value with it."""

    def change(forecast: Forecast) -> Forecast:
        quantiles = forecast.quantiles.copy()
        quantiles[-1] = [values["low"], values["median"], values["high"]]
        return replace(forecast, quantiles=quantiles, value=values["median"])

    return change


FAULTS: dict[str, tuple[str, Callable[[Forecast], Forecast]]] = {
    "a wrong shape": ("shape", lambda f: replace(f, quantiles=f.quantiles[:3])),
    "no median": ("shape", lambda f: replace(f, levels=(0.1, 0.4, 0.9))),
    "NaN as the value": ("finite", lambda f: replace(f, value=float("nan"))),
    "infinity in a quantile": ("finite", lambda f: replace(f, quantiles=np.full((HORIZON, 3), np.inf))),
    "another origin": ("origin", lambda f: replace(f, end=f.end - HOUR)),
    "another step": ("origin", lambda f: replace(f, step=60)),
    "a point that is not the median": ("point", lambda f: replace(f, value=f.value + 1e-9)),
    "a price": ("unit", last_row(low=7900, median=8100, high=8200)),
    "the logarithm of a price": ("unit", last_row(low=8.9, median=9.0, high=9.1)),
    "a value out of bounds": ("bounds", last_row(low=-0.1, median=0.9, high=1.0)),
    "a tail out of bounds": ("bounds", last_row(low=-5.0, median=0.01, high=0.02)),
    "crossed quantiles": ("quantiles", last_row(low=0.02, median=0.01, high=0.03)),
}


def test_guards_plausible_forecast_passes() -> None:
    report = check_forecast(plausible_forecast(), CANDLES, horizon=HORIZON, training_end=float(CANDLES.end))
    assert len(report.passed) == 8
    assert report.warnings == ()


@pytest.mark.parametrize("name", FAULTS)
def test_guards_refuse_each_fault_by_name(name: str) -> None:
    check, inject = FAULTS[name]
    with pytest.raises(SkipEpoch) as error:
        check_forecast(inject(plausible_forecast()), CANDLES, horizon=HORIZON, training_end=float(CANDLES.end))
    assert error.value.check == check


def test_guards_old_model_is_refused_unless_synthetic() -> None:
    old = float(CANDLES.end - 500 * 86400)
    with pytest.raises(SkipEpoch) as error:
        check_forecast(plausible_forecast(), CANDLES, horizon=HORIZON, training_end=old)
    assert error.value.check == "model_age"
    assert check_forecast(plausible_forecast(), CANDLES, horizon=HORIZON, training_end=None).passed


@pytest.mark.parametrize(
    ("consensus", "has_warning"),
    [
        ((), False),
        ((9.0, 9.1), False),
        ((0.01, 0.011, 0.012), False),
        ((0.5, 0.51, 0.52), True),
        ((0.5, float("nan"), 0.51, float("inf")), False),
        ((0.5, 0.5, 0.5), False),
    ],
)
def test_guards_distance_from_consensus_only_warns(consensus: tuple[float, ...], has_warning: bool) -> None:
    forecast = last_row(low=-0.03, median=0.011, high=0.03)(plausible_forecast())
    report = check_forecast(forecast, CANDLES, horizon=HORIZON, training_end=None, consensus=consensus)
    assert bool(report.warnings) is has_warning


@given(value=st.floats(allow_nan=True, allow_infinity=True, width=64))
def test_guards_passing_forecast_is_finite_and_bounded(value: float) -> None:
    forecast = last_row(low=value, median=value, high=value)(plausible_forecast())
    try:
        check_forecast(forecast, CANDLES, horizon=HORIZON, training_end=None)
    except SkipEpoch:
        return
    assert abs(value) <= plausible_bound(CANDLES, HORIZON)


def test_guards_training_overlap_warns() -> None:
    later = float(CANDLES.end + 86400)
    report = check_forecast(plausible_forecast(), CANDLES, horizon=HORIZON, training_end=later)
    assert "not a fair test" in report.warnings[0]


def test_guards_bound_grows_with_volatility_and_horizon() -> None:
    calm = replace(CANDLES, close=np.full(100, LAST_CLOSE))
    assert plausible_bound(calm, HORIZON) == MIN_BOUND
    assert plausible_bound(CANDLES, 4 * HORIZON) == pytest.approx(2 * plausible_bound(CANDLES, HORIZON))
