"""Fleet scores equal those of a market and values computed by hand; baselines never read values after the origin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.fleet.baselines import (
    MIN_DAYS,
    SeasonalBaseline,
    fit_persistence,
    fit_seasonal,
    forecast_auto_ets,
    outcome,
)  # fmt: skip
from models.fleet.evaluation import mean_by_metric, score
from models.market.evaluation import score as market_score
from models.scores import pinball

LEVELS = (0.1, 0.5, 0.9)
NAMES = ("a", "b")


def random_forecasts(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles `[4, 2, 3, 5]` and outcomes `[4, 2, 5]`."""
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.normal(size=(4, 2, 3, 5)), axis=2).astype(np.float32)
    return quantiles, rng.normal(size=(4, 2, 5)).astype(np.float32)


@given(st.integers(0, 1000))
def test_fleet_scores_of_one_metric_equal_market_scores(seed: int) -> None:
    quantiles, actual = random_forecasts(seed)
    scores = score(quantiles, actual, LEVELS, NAMES)["by_metric"]
    assert isinstance(scores, dict)
    for metric, name in enumerate(NAMES):
        as_market = quantiles[:, metric].swapaxes(1, 2).astype(float)
        outcomes = actual[:, metric].astype(float)
        expected = market_score(as_market, as_market[..., 1], outcomes, LEVELS)
        assert scores[name]["pinball"] == pytest.approx(expected["pinball"], abs=1e-6)
        assert scores[name]["coverage"] == pytest.approx(expected["coverage"])


def test_score_missing_outcomes_are_ignored() -> None:
    quantiles, actual = random_forecasts(1)
    incomplete = actual.copy()
    incomplete[0, 0] = np.nan
    incomplete[:, 1] = np.nan
    scores = score(quantiles, incomplete, LEVELS, NAMES)
    losses = pinball(quantiles.swapaxes(2, 3), actual, LEVELS)
    assert scores["pinball"] == pytest.approx(losses[1:, 0].mean())
    metrics = scores["by_metric"]
    assert isinstance(metrics, dict)
    assert metrics["b"] == {"pinball": None, "coverage": {"0.8": None}}
    assert np.isnan(mean_by_metric(np.full((2, 1, 2), np.nan, np.float32))).all()


def test_score_weights_metrics_equally_and_perfect_is_zero() -> None:
    _, actual = random_forecasts(2)
    perfect = np.repeat(actual[:, :, None], 3, axis=2)
    scores = score(perfect, actual, LEVELS, NAMES)
    assert (scores["pinball"], scores["coverage"]) == (0.0, {"0.8": 1.0})
    shifted = perfect.copy()
    shifted[:, 0] += 1.0
    assert score(shifted, actual, LEVELS, NAMES)["pinball"] == pytest.approx(0.5 * (0.9 + 0.5 + 0.1) / 3)


def random_walk(seed: int, ticks: int = 600) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, ticks, 2)).cumsum(axis=1).astype(np.float32)


WINDOWS = np.array([0, 1, 0, 1]), np.array([300, 310, 420, 500])


@given(st.integers(0, 100), st.integers(0, 40))
def test_baseline_ignores_values_after_origin(seed: int, season: int) -> None:
    values = random_walk(seed)
    baseline = SeasonalBaseline(season, np.zeros((2, 3, 16), np.float32))
    forecast = baseline.forecast(values, *WINDOWS)
    for row, (server, origin) in enumerate(zip(*WINDOWS, strict=True)):
        changed = values.copy()
        changed[server, origin + 1 :] = 1e6
        again = baseline.forecast(changed, *WINDOWS)
        assert np.array_equal(again[row], forecast[row])


def test_persistence_adds_error_quantiles_to_last_value() -> None:
    values = random_walk(1)
    windows = np.repeat([0, 1], 200), np.tile(np.arange(100, 300), 2)
    baseline = fit_persistence(values, windows, 8, LEVELS)
    errors = outcome(values, *windows, 8) - values[windows][:, :, None]
    assert baseline.errors == pytest.approx(np.quantile(errors, LEVELS, axis=0).transpose(1, 0, 2), abs=1e-5)
    forecast = baseline.forecast(values, *WINDOWS)
    assert forecast.shape == (4, 2, 3, 8)
    assert forecast[2] == pytest.approx(values[0, 420][:, None, None] + baseline.errors)


def test_seasonal_exact_season_gives_exact_forecast() -> None:
    wave = np.sin(np.arange(4_000) * 2 * np.pi / 120)  # 120 ticks of 5 s: ten minutes
    values = np.broadcast_to(wave[None, :, None], (2, 4_000, 2)).astype(np.float32)
    windows = np.zeros(50, dtype=np.int64), np.linspace(500, 3_000, 50).astype(np.int64)
    baseline = fit_seasonal(values, windows, 200, LEVELS, step=5, ticks=4_000)
    assert baseline.season == 120
    forecast = baseline.forecast(values, np.array([1]), np.array([3_500]))
    assert forecast[0, 0, 1] == pytest.approx(wave[3_501:3_701], abs=1e-5)


def test_seasonal_enough_days_uses_the_day() -> None:
    step = 3600
    values = random_walk(2, 24 * (MIN_DAYS + 3))
    windows = np.zeros(20, dtype=np.int64), np.arange(60, 80)
    assert fit_seasonal(values, windows, 4, LEVELS, step=step, ticks=24 * MIN_DAYS).season == 24
    assert fit_seasonal(values, windows, 4, LEVELS, step=step, ticks=24 * MIN_DAYS - 1).season < 24


def test_persistence_missing_values_are_ignored() -> None:
    values = random_walk(3)
    values[0, 250:260] = np.nan
    windows = np.repeat([0, 1], 100), np.tile(np.arange(200, 300), 2)
    assert np.isfinite(fit_persistence(values, windows, 8, LEVELS).errors).all()


def test_ets_quantiles_are_ordered_and_constant_stays_constant() -> None:
    past = np.stack([random_walk(4)[0, :120, 0], np.full(120, 7.0, np.float32)], axis=1)
    quantiles = forecast_auto_ets(past, 12, (0.02, 0.1, 0.5, 0.9, 0.98))
    assert quantiles.shape == (2, 5, 12)
    assert (np.diff(quantiles[0], axis=0) > 0).all()
    assert quantiles[0, 2] == pytest.approx((quantiles[0, 0] + quantiles[0, 4]) / 2, abs=1e-3)
    assert (quantiles[1] == 7.0).all()
