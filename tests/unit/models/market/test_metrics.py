"""Scores and baselines against values computed by hand or by another method."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.market.evaluation import direction_accuracy, fit_baselines, score
from models.scores import interval_hits, pinball

LEVELS = (0.1, 0.5, 0.9)


@pytest.mark.parametrize(("forecast", "actual", "expected"), [(0, 1, 0.1), (1, 0, 0.9), (2, 2, 0), (-1, 3, 0.4)])
def test_pinball_at_a_tenth_weighs_overshooting_nine_times(forecast: float, actual: float, expected: float) -> None:
    assert pinball(np.array([[[forecast]]]), np.array([[actual]]), (0.1,)).item() == pytest.approx(expected)


@given(st.integers(0, 1000))
def test_pinball_empirical_quantiles_are_best_constants(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = rng.standard_t(3, size=(200, 1))
    best = np.quantile(sample, LEVELS, axis=0).T[None]
    other = best + rng.normal(0, 0.5, best.shape)
    loss = [pinball(np.broadcast_to(q, (200, 1, 3)), sample, LEVELS).mean() for q in (best, other)]
    assert loss[0] <= loss[1] + 1e-12


def test_coverage_includes_interval_bounds() -> None:
    quantiles = np.broadcast_to(np.array([-1.0, 0.0, 1.0]), (4, 1, 3))
    hits = interval_hits(quantiles, np.array([[-1.0], [1.0], [1.1], [-3.0]]), LEVELS)
    assert hits.keys() == {"0.8"}
    assert hits["0.8"][:, 0].tolist() == [1, 1, 0, 0]
    assert interval_hits(quantiles, np.zeros((4, 1)), (0.2, 0.5, 0.9)) == {}


def test_unknown_outcomes_have_neither_loss_nor_hit() -> None:
    quantiles, actual = np.zeros((2, 3)), np.array([np.nan, 0.0])
    assert np.isnan(pinball(quantiles, actual, LEVELS)).tolist() == [[True] * 3, [False] * 3]
    assert np.isnan(interval_hits(quantiles, actual, LEVELS)["0.8"]).tolist() == [True, False]


def test_direction_accuracy_ignores_zero_forecasts() -> None:
    assert direction_accuracy(np.array([1.0, -1.0, 0.0, 2.0]), np.array([1.0, 1.0, 1.0, 0.0])) == 0.5
    assert direction_accuracy(np.zeros(3), np.ones(3)) is None


def test_score_perfect_forecast_is_zero() -> None:
    actual = np.random.default_rng(0).normal(size=(5, 3))
    scores = score(np.repeat(actual[..., None], 3, axis=2), actual, actual, LEVELS)
    assert [scores[name] for name in ("pinball", "pinball_last", "mae", "rmse")] == [0, 0, 0, 0]
    assert (scores["direction"], scores["coverage"]) == (1.0, {"0.8": 1.0})


def test_baselines_equal_training_distribution() -> None:
    rng = np.random.default_rng(1)
    scales = rng.uniform(0.5, 2.0, 4000)
    returns = 0.3 + rng.normal(size=(4000, 2)) * scales[:, None]
    baselines = fit_baselines(returns, scales, LEVELS)
    assert baselines.drift_point == pytest.approx(returns.mean(axis=0))
    assert baselines.drift == pytest.approx(np.quantile(returns, LEVELS, axis=0).T)
    assert baselines.zero == pytest.approx(baselines.drift - baselines.drift_point[:, None])
    assert baselines.volatility[:, 2] == pytest.approx(1.2816, abs=0.1)
    forecasts = baselines.forecasts(np.array([1.0, 3.0]))
    assert forecasts["volatility"][0][1] == pytest.approx(3 * baselines.volatility)
    assert not forecasts["zero"][1].any()
    assert all(quantiles.shape == (2, 2, 3) and point.shape == (2, 2) for quantiles, point in forecasts.values())
