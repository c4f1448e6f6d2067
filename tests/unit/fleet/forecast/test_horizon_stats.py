"""Peaks, crossings and probabilities over the remaining horizon of a forecast, for the right server."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import METRIC_COUNT
from forecastd.fleet.forecast.horizon_stats import HorizonStats, horizon_stats

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
H = 12


@dataclass(frozen=True)
class FakeForecast:
    tick: int
    step: int
    servers: tuple[str, ...]
    levels: tuple[float, ...]
    quantiles: np.ndarray[Any, np.dtype[np.float32]]


def random_forecast(levels: tuple[float, ...] = LEVELS, servers: int = 3, seed: int = 0) -> FakeForecast:
    generator = np.random.default_rng(seed)
    values = np.sort(generator.uniform(0, 100, size=(servers, H, METRIC_COUNT, len(levels))), axis=3).astype(np.float32)
    return FakeForecast(100, 5, tuple(f"s{row}" for row in range(servers)), levels, values)


def stats_at(forecast: FakeForecast, tick: int = 100) -> HorizonStats:
    stats = horizon_stats(forecast, forecast.servers, tick)
    assert stats is not None
    return stats


@given(st.integers(0, H - 1), st.sampled_from([0.5, 0.9, 0.6, 0.99, 0.01]), st.integers(0, 5))
def test_first_crossing_equals_plain_search(exceeding: int, level: float, seed: int) -> None:
    forecast = random_forecast(seed=seed)
    limit = np.random.default_rng(seed).uniform(50, 110, size=(3, METRIC_COUNT))
    stats = stats_at(forecast, 100 + exceeding)
    ticks = stats.first_crossing(limit, level)
    for server in range(3):
        for metric in range(METRIC_COUNT):
            path = [np.interp(level, LEVELS, forecast.quantiles[server, row, metric]) for row in range(exceeding, H)]
            if level > LEVELS[-1] or level < LEVELS[0]:
                path = [float("nan")]  # the tails have a test of their own
            first = next((row for row, value in enumerate(path) if value >= limit[server, metric]), None)
            if not math.isnan(path[0]):
                expected = math.nan if first is None else first + 1  # row 0 is a tick from now
                assert ticks[server, metric] == pytest.approx(expected, nan_ok=True)


def test_horizon_stats_ignore_past_steps() -> None:
    forecast = random_forecast()
    half = replace(forecast, tick=106, quantiles=forecast.quantiles[:, 6:])
    later, cut = stats_at(forecast, 106), stats_at(half, 106)
    assert np.array_equal(later.peaks, cut.peaks)
    assert np.array_equal(later.weighted_median, cut.weighted_median)
    limit = np.full((3, METRIC_COUNT), 95.0)
    assert np.array_equal(later.first_crossing(limit, 0.5), cut.first_crossing(limit, 0.5), equal_nan=True)
    assert horizon_stats(forecast, forecast.servers, 100 + H) is None
    assert horizon_stats(forecast, forecast.servers, 10_000) is None


def test_horizon_stats_match_servers_by_name() -> None:
    forecast = random_forecast()
    reordered = horizon_stats(forecast, ("new", "s2", "s0"), 100)
    assert reordered is not None
    straight = stats_at(forecast)
    limit = np.full((3, METRIC_COUNT), 95.0)
    for name in ("peaks", "weighted_median"):
        assert np.array_equal(getattr(reordered, name)[1:], getattr(straight, name)[[2, 0]])
        assert np.isnan(getattr(reordered, name)[0]).all()
    assert np.array_equal(
        reordered.first_crossing(limit, 0.5)[1:], straight.first_crossing(limit, 0.5)[[2, 0]], equal_nan=True
    )
    assert np.isnan(reordered.first_crossing(np.zeros((3, METRIC_COUNT)), 0.5)[0]).all()
    assert np.isnan(reordered.exceedance_probability(limit)[0]).all()


def test_weighted_median_favors_early_steps() -> None:
    forecast = random_forecast(servers=2)
    forecast.quantiles[:] = 10.0
    forecast.quantiles[0, 0], forecast.quantiles[1, -1] = 80.0, 80.0
    soon = stats_at(forecast).weighted_median
    assert (soon[0] > soon[1]).all()
    assert (soon[1] > 10).all()


@given(st.integers(0, 30), st.sampled_from([LEVELS, (0.1, 0.5, 0.9), (0.25, 0.5)]))
def test_exceedance_probability_is_monotone_and_exact_at_quantiles(seed: int, levels: tuple[float, ...]) -> None:
    stats = stats_at(random_forecast(levels, seed=seed))
    limits = np.linspace(-20, 130, 61)
    probabilities = np.array([stats.exceedance_probability(np.full((3, METRIC_COUNT), limit)) for limit in limits])
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    assert (np.diff(probabilities, axis=0) <= 1e-12).all()
    for index, level in enumerate(levels):
        assert stats.exceedance_probability(stats.peaks[..., index]) == pytest.approx(
            np.full((3, METRIC_COUNT), 1 - level)
        )


def test_exceedance_probability_tails_are_exponential() -> None:
    """The quantiles of an exponential distribution give its own probabilities, above the highest level too."""
    forecast = random_forecast((0.5, 0.8, 0.9), servers=1)
    forecast.quantiles[...] = [-10 * math.log(1 - level) for level in forecast.levels]
    stats = stats_at(forecast)
    for limit in (25.0, 40.0, 90.0):
        assert stats.exceedance_probability(np.full((1, METRIC_COUNT), limit)) == pytest.approx(
            math.exp(-limit / 10), rel=1e-4
        )
    assert stats.peak_at(0.99) == pytest.approx(-10 * math.log(0.01), rel=1e-4)
    mirrored = replace(forecast, levels=(0.1, 0.2, 0.5), quantiles=100 - forecast.quantiles[..., ::-1])
    below = stats_at(mirrored)
    assert below.exceedance_probability(np.full((1, METRIC_COUNT), 100 - 40.0)) == pytest.approx(
        1 - math.exp(-4), rel=1e-4
    )
    assert below.peak_at(0.01) == pytest.approx(100 + 10 * math.log(0.01), rel=1e-4)


def test_exceedance_probability_of_normal_forecast_is_close() -> None:
    normal = NormalDist(60, 8)
    forecast = random_forecast(servers=1)
    forecast.quantiles[...] = [normal.inv_cdf(level) for level in LEVELS]
    for limit in (45, 60, 70, 80, 90):
        probability = float(stats_at(forecast).exceedance_probability(np.full((1, METRIC_COUNT), limit))[0, 0])
        assert probability == pytest.approx(1 - normal.cdf(limit), abs=0.03)


@pytest.mark.parametrize(("limit", "probability"), [(39.0, 1.0), (41.0, 0.0)])
@pytest.mark.parametrize("levels", [LEVELS, (0.5,)])
def test_exceedance_probability_without_band_is_certain(
    levels: tuple[float, ...], limit: float, probability: float
) -> None:
    forecast = random_forecast(levels, servers=1)
    forecast.quantiles[...] = 40.0
    assert (stats_at(forecast).exceedance_probability(np.full((1, METRIC_COUNT), limit)) == probability).all()


def test_exceedance_probability_accepts_crossing_quantiles() -> None:
    forecast = random_forecast()
    shuffled = replace(forecast, quantiles=forecast.quantiles[..., ::-1].copy())
    limit = np.full((3, METRIC_COUNT), 90.0)
    assert np.array_equal(
        stats_at(shuffled).exceedance_probability(limit), stats_at(forecast).exceedance_probability(limit)
    )
