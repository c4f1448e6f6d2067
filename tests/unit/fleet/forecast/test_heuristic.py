"""The heuristic: works from one value on, stays in bounds, does not cross, and resists outliers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX, METRICS
from forecastd.fleet.forecast.heuristic import heuristic_forecast

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
HORIZON = 24
CPU, MEMORY, LATENCY = METRIC_INDEX["cpu_percent"], METRIC_INDEX["memory_percent"], METRIC_INDEX["latency_ms"]
LOW, HIGH = (np.array([getattr(metric, end) for metric in METRICS], dtype=np.float32) for end in ("low", "high"))
Values = np.ndarray[Any, np.dtype[np.float32]]


def forecast_single_server(*values: float, metric: int = CPU) -> Values:
    quantiles = np.full((1, len(values), METRIC_COUNT), np.nan, dtype=np.float32)
    quantiles[0, :, metric] = values
    return quantiles


any_values = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(0, 70), st.just(METRIC_COUNT)),
    elements=st.one_of(st.just(np.nan), st.floats(0, 2**40, width=32), st.floats(0, 100, width=32)),
)


@given(any_values)
def test_heuristic_quantiles_are_bounded_and_ordered(values: Values) -> None:
    quantiles = heuristic_forecast(values, HORIZON, LEVELS)
    assert quantiles.shape == (len(values), HORIZON, METRIC_COUNT, len(LEVELS))
    assert quantiles.dtype == np.float32
    complete = ~np.isnan(quantiles)
    is_known = np.asarray((~np.isnan(values)).any(axis=1))
    assert (complete == is_known[:, None, :, None]).all()
    for metric in range(METRIC_COUNT):
        observed = quantiles[:, :, metric][complete[:, :, metric]]
        assert ((observed >= LOW[metric]) & (observed <= HIGH[metric])).all()
    assert not (np.diff(quantiles, axis=3) < 0).any()


@pytest.mark.parametrize("metric", range(METRIC_COUNT), ids=[metric.name for metric in METRICS])
def test_heuristic_single_value_gives_widening_band(metric: int) -> None:
    value = 20.0
    quantiles = heuristic_forecast(forecast_single_server(value, metric=metric), HORIZON, LEVELS)[0, :, metric]
    assert quantiles[:, 3] == pytest.approx(value, rel=1e-5)
    width = quantiles[:, 5] - quantiles[:, 1]
    assert (np.diff(width) > 0).all()
    assert width[0] > 5  # 10 points for a percentage, a factor of 1.4 each way for the others
    assert np.isnan(
        np.delete(heuristic_forecast(forecast_single_server(value, metric=metric), 1, LEVELS)[0, 0], metric, axis=0)
    ).all()


def test_heuristic_band_narrows_with_more_values() -> None:
    widths = []
    for count in (1, 2, 5, 20, 48):
        quantiles = heuristic_forecast(forecast_single_server(*[30.0] * count), HORIZON, LEVELS)[0, 0, CPU]
        widths.append(float(quantiles[5] - quantiles[1]))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 8


def test_heuristic_trend_is_damped() -> None:
    quantiles = heuristic_forecast(forecast_single_server(*np.linspace(20, 40, 41)), 96, LEVELS)[0, :, CPU, 3]
    steps = np.diff(quantiles)
    assert quantiles[0] > 40
    assert (steps >= 0).all()
    assert (np.diff(steps) < 1e-4).all()
    assert 42 < quantiles[-1] < 43  # half a point per tick, for 5.7 ticks


def test_heuristic_ignores_gaps() -> None:
    complete = np.linspace(20, 40, 41, dtype=np.float32)
    holes = complete.copy()
    holes[[3, 4, 5, 11, 12, 13, 14, 30, 31]] = np.nan
    with_gaps, without = (
        heuristic_forecast(forecast_single_server(*series), HORIZON, LEVELS)[0, :, CPU, 3]
        for series in (holes, complete)
    )
    assert with_gaps == pytest.approx(without, abs=0.2)


def test_heuristic_resists_outlier() -> None:
    calm = 30 + np.sin(np.arange(48))
    wild = calm.copy()
    wild[-1] = 100.0
    before, after = (
        heuristic_forecast(forecast_single_server(*series), HORIZON, LEVELS)[0, :, CPU] for series in (calm, wild)
    )
    assert after[:, 3] == pytest.approx(before[:, 3], abs=1.5)
    assert after[:, 5] == pytest.approx(before[:, 5], abs=3)


def test_heuristic_follows_level_change() -> None:
    quantiles = heuristic_forecast(forecast_single_server(*[10.0] * 30, *[60.0] * 4), HORIZON, LEVELS)[0, :, CPU, 3]
    assert (quantiles > 45).all()


def test_heuristic_uses_old_value_with_wider_band() -> None:
    old, new = np.full((1, 100, METRIC_COUNT), np.nan, np.float32), np.full((1, 100, METRIC_COUNT), np.nan, np.float32)
    old[0, 5, MEMORY] = new[0, 99, MEMORY] = 50.0
    before, after = (heuristic_forecast(series, HORIZON, LEVELS)[0, 0, MEMORY] for series in (old, new))
    assert before[3] == after[3] == 50.0
    assert before[5] - before[1] > 1.5 * (after[5] - after[1])


def test_heuristic_latency_band_is_skewed() -> None:
    noisy = 100 * np.exp(0.2 * np.sin(np.arange(48)))
    quantiles = heuristic_forecast(forecast_single_server(*noisy, metric=LATENCY), HORIZON, LEVELS)[0, -1, LATENCY]
    assert quantiles[6] - quantiles[3] > 1.2 * (quantiles[3] - quantiles[0]) > 0


def test_heuristic_servers_are_independent() -> None:
    generator = np.random.default_rng(3)
    values = generator.uniform(1, 90, size=(130, 60, METRIC_COUNT)).astype(np.float32)
    values[generator.random(values.shape) < 0.4] = np.nan
    together = heuristic_forecast(values, HORIZON, LEVELS)
    for server in (0, 63, 64, 129):
        alone = heuristic_forecast(values[server : server + 1], HORIZON, LEVELS)
        assert np.array_equal(together[server], alone[0], equal_nan=True)


@pytest.mark.parametrize(("values", "levels"), [
    (np.zeros((2, 3, METRIC_COUNT + 1), np.float32), LEVELS), (np.zeros((2, METRIC_COUNT), np.float32), LEVELS),
    (np.zeros((1, 3, METRIC_COUNT), np.float32), (0.0, 0.5)), (np.zeros((1, 3, METRIC_COUNT), np.float32), (0.5, 1.0)),
])  # fmt: skip
def test_heuristic_invalid_input_raises(values: Values, levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        heuristic_forecast(values, HORIZON, levels)
