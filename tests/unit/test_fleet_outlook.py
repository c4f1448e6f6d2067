"""What is drawn from a forecast: peaks, crossings and probabilities of what is still ahead, of the right server."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import M
from forecastd.fleet.outlook import Outlook, look_ahead

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
H = 12


@dataclass(frozen=True)
class Forecast:
    tick: int
    step: int
    servers: tuple[str, ...]
    levels: tuple[float, ...]
    quantiles: np.ndarray[Any, np.dtype[np.float32]]


def made(levels: tuple[float, ...] = LEVELS, servers: int = 3, seed: int = 0) -> Forecast:
    generator = np.random.default_rng(seed)
    values = np.sort(generator.uniform(0, 100, size=(servers, H, M, len(levels))), axis=3).astype(np.float32)
    return Forecast(100, 5, tuple(f"s{row}" for row in range(servers)), levels, values)


def seen(forecast: Forecast, tick: int = 100) -> Outlook:
    found = look_ahead(forecast, forecast.servers, tick)
    assert found is not None
    return found


@given(st.integers(0, H - 1), st.sampled_from([0.5, 0.9, 0.6, 0.99, 0.01]), st.integers(0, 5))
def test_the_first_crossing_is_that_of_a_plain_search_of_what_is_left(over: int, level: float, seed: int) -> None:
    forecast = made(seed=seed)
    limit = np.random.default_rng(seed).uniform(50, 110, size=(3, M))
    outlook = seen(forecast, 100 + over)
    found = outlook.crossing(limit, level)
    for server in range(3):
        for metric in range(M):
            path = [np.interp(level, LEVELS, forecast.quantiles[server, row, metric]) for row in range(over, H)]
            if level > LEVELS[-1] or level < LEVELS[0]:
                path = [float("nan")]  # the tails have a test of their own
            first = next((row for row, value in enumerate(path) if value >= limit[server, metric]), None)
            if not math.isnan(path[0]):
                expected = math.nan if first is None else first + 1  # row 0 is a tick from now
                assert found[server, metric] == pytest.approx(expected, nan_ok=True)


def test_what_is_over_does_not_count_and_when_all_is_over_there_is_none() -> None:
    forecast = made()
    half = replace(forecast, tick=106, quantiles=forecast.quantiles[:, 6:])
    later, cut = seen(forecast, 106), seen(half, 106)
    assert np.array_equal(later.peak, cut.peak)
    assert np.array_equal(later.soon, cut.soon)
    limit = np.full((3, M), 95.0)
    assert np.array_equal(later.crossing(limit, 0.5), cut.crossing(limit, 0.5), equal_nan=True)
    assert look_ahead(forecast, forecast.servers, 100 + H) is None
    assert look_ahead(forecast, forecast.servers, 10_000) is None


def test_servers_are_matched_by_name_and_an_unknown_one_has_no_forecast() -> None:
    forecast = made()
    found = look_ahead(forecast, ("new", "s2", "s0"), 100)
    assert found is not None
    straight = seen(forecast)
    limit = np.full((3, M), 95.0)
    for name in ("peak", "soon"):
        assert np.array_equal(getattr(found, name)[1:], getattr(straight, name)[[2, 0]])
        assert np.isnan(getattr(found, name)[0]).all()
    assert np.array_equal(found.crossing(limit, 0.5)[1:], straight.crossing(limit, 0.5)[[2, 0]], equal_nan=True)
    assert np.isnan(found.crossing(np.zeros((3, M)), 0.5)[0]).all()
    assert np.isnan(found.exceeding(limit)[0]).all()


def test_what_comes_first_counts_more() -> None:
    forecast = made(servers=2)
    forecast.quantiles[:] = 10.0
    forecast.quantiles[0, 0], forecast.quantiles[1, -1] = 80.0, 80.0
    soon = seen(forecast).soon
    assert (soon[0] > soon[1]).all()
    assert (soon[1] > 10).all()


@given(st.integers(0, 30), st.sampled_from([LEVELS, (0.1, 0.5, 0.9), (0.25, 0.5)]))
def test_the_probability_falls_as_the_limit_rises_and_is_that_of_the_level_at_a_quantile(
    seed: int, levels: tuple[float, ...]
) -> None:
    outlook = seen(made(levels, seed=seed))
    limits = np.linspace(-20, 130, 61)
    found = np.array([outlook.exceeding(np.full((3, M), limit)) for limit in limits])
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.diff(found, axis=0) <= 1e-12).all()
    for place, level in enumerate(levels):
        assert outlook.exceeding(outlook.peak[..., place]) == pytest.approx(np.full((3, M), 1 - level))


def test_the_tails_are_exponential() -> None:
    """The quantiles of an exponential distribution give its own probabilities, above the highest level too."""
    forecast = made((0.5, 0.8, 0.9), servers=1)
    forecast.quantiles[...] = [-10 * math.log(1 - level) for level in forecast.levels]
    outlook = seen(forecast)
    for limit in (25.0, 40.0, 90.0):
        assert outlook.exceeding(np.full((1, M), limit)) == pytest.approx(math.exp(-limit / 10), rel=1e-4)
    assert outlook.peak_at(0.99) == pytest.approx(-10 * math.log(0.01), rel=1e-4)
    mirrored = replace(forecast, levels=(0.1, 0.2, 0.5), quantiles=100 - forecast.quantiles[..., ::-1])
    below = seen(mirrored)
    assert below.exceeding(np.full((1, M), 100 - 40.0)) == pytest.approx(1 - math.exp(-4), rel=1e-4)
    assert below.peak_at(0.01) == pytest.approx(100 + 10 * math.log(0.01), rel=1e-4)


def test_a_normal_forecast_gives_nearly_normal_probabilities() -> None:
    normal = NormalDist(60, 8)
    forecast = made(servers=1)
    forecast.quantiles[...] = [normal.inv_cdf(level) for level in LEVELS]
    for limit in (45, 60, 70, 80, 90):
        found = float(seen(forecast).exceeding(np.full((1, M), limit))[0, 0])
        assert found == pytest.approx(1 - normal.cdf(limit), abs=0.03)


@pytest.mark.parametrize(("limit", "probability"), [(39.0, 1.0), (41.0, 0.0)])
@pytest.mark.parametrize("levels", [LEVELS, (0.5,)])
def test_a_forecast_without_a_band_is_sure(levels: tuple[float, ...], limit: float, probability: float) -> None:
    forecast = made(levels, servers=1)
    forecast.quantiles[...] = 40.0
    assert (seen(forecast).exceeding(np.full((1, M), limit)) == probability).all()


def test_crossing_quantiles_are_no_trouble() -> None:
    forecast = made()
    shuffled = replace(forecast, quantiles=forecast.quantiles[..., ::-1].copy())
    limit = np.full((3, M), 90.0)
    assert np.array_equal(seen(shuffled).exceeding(limit), seen(forecast).exceeding(limit))
