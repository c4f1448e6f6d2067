"""Scores and baselines of a fleet against the market's, numbers worked out by hand, and the rule that nothing looks ahead."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import evaluation
from models.fleet.baselines import DAYS, Baseline, outcome, persistence, seasonal
from models.fleet.ets import auto_ets
from models.fleet.evaluation import by_metric, covered, pinball, score

LEVELS = (0.1, 0.5, 0.9)
NAMES = ("a", "b")


def some(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles `[4, 2, 3, 5]` and outcomes `[4, 2, 5]`."""
    rng = np.random.default_rng(seed)
    quantiles = np.sort(rng.normal(size=(4, 2, 3, 5)), axis=2).astype(np.float32)
    return quantiles, rng.normal(size=(4, 2, 5)).astype(np.float32)


@given(st.integers(0, 1000))
def test_the_scores_of_one_metric_are_those_of_a_market(seed: int) -> None:
    quantiles, actual = some(seed)
    losses, inside = pinball(quantiles, actual, LEVELS), covered(quantiles, actual, LEVELS)
    for metric in range(2):
        as_market = quantiles[:, metric].swapaxes(1, 2).astype(float)
        wanted = evaluation.pinball(as_market, actual[:, metric].astype(float), LEVELS).mean(axis=-1)
        assert losses[:, metric] == pytest.approx(wanted, abs=1e-6)
        assert inside["0.8"][:, metric].mean() == pytest.approx(
            evaluation.coverage(as_market, actual[:, metric].astype(float), LEVELS)["0.8"]
        )


def test_what_was_not_observed_counts_for_nothing() -> None:
    quantiles, actual = some(1)
    holed = actual.copy()
    holed[0, 0] = np.nan
    holed[:, 1] = np.nan
    told = score(quantiles, holed, LEVELS, NAMES)
    losses = pinball(quantiles, actual, LEVELS)
    assert told["pinball"] == pytest.approx(losses[1:, 0].mean())
    metrics = told["by_metric"]
    assert isinstance(metrics, dict)
    assert metrics["b"] == {"pinball": None, "coverage": {"0.8": None}}
    assert np.isnan(by_metric(np.full((2, 1, 2), np.nan, np.float32))).all()


def test_each_metric_counts_the_same_and_a_perfect_forecast_scores_nothing() -> None:
    _, actual = some(2)
    perfect = np.repeat(actual[:, :, None], 3, axis=2)
    told = score(perfect, actual, LEVELS, NAMES)
    assert (told["pinball"], told["coverage"]) == (0.0, {"0.8": 1.0})
    off = perfect.copy()
    off[:, 0] += 1.0
    assert score(off, actual, LEVELS, NAMES)["pinball"] == pytest.approx(0.5 * (0.9 + 0.5 + 0.1) / 3)


def walk(seed: int, ticks: int = 600) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, ticks, 2)).cumsum(axis=1).astype(np.float32)


WINDOWS = np.array([0, 1, 0, 1]), np.array([300, 310, 420, 500])


@given(st.integers(0, 100), st.integers(0, 40))
def test_no_baseline_sees_anything_after_the_origin(seed: int, season: int) -> None:
    values = walk(seed)
    baseline = Baseline(season, np.zeros((2, 3, 16), np.float32))
    told = baseline.forecast(values, *WINDOWS)
    for row, (server, origin) in enumerate(zip(*WINDOWS, strict=True)):
        changed = values.copy()
        changed[server, origin + 1 :] = 1e6
        again = baseline.forecast(changed, *WINDOWS)
        assert np.array_equal(again[row], told[row])


def test_persistence_adds_the_quantiles_of_its_errors_to_the_last_value() -> None:
    values = walk(1)
    windows = np.repeat([0, 1], 200), np.tile(np.arange(100, 300), 2)
    baseline = persistence(values, windows, 8, LEVELS)
    errors = outcome(values, *windows, 8) - values[windows][:, :, None]
    assert baseline.errors == pytest.approx(np.quantile(errors, LEVELS, axis=0).transpose(1, 0, 2), abs=1e-5)
    told = baseline.forecast(values, *WINDOWS)
    assert told.shape == (4, 2, 3, 8)
    assert told[2] == pytest.approx(values[0, 420][:, None, None] + baseline.errors)


def test_the_seasonal_forecast_is_exact_where_the_season_is() -> None:
    wave = np.sin(np.arange(4_000) * 2 * np.pi / 120)  # 120 ticks of 5 s: ten minutes
    values = np.broadcast_to(wave[None, :, None], (2, 4_000, 2)).astype(np.float32)
    windows = np.zeros(50, dtype=np.int64), np.linspace(500, 3_000, 50).astype(np.int64)
    baseline = seasonal(values, windows, 200, LEVELS, step=5, ticks=4_000)
    assert baseline.season == 120
    told = baseline.forecast(values, np.array([1]), np.array([3_500]))
    assert told[0, 0, 1] == pytest.approx(wave[3_501:3_701], abs=1e-5)


def test_the_season_is_the_day_where_there_are_enough_of_them() -> None:
    step = 3600
    values = walk(2, 24 * (DAYS + 3))
    windows = np.zeros(20, dtype=np.int64), np.arange(60, 80)
    assert seasonal(values, windows, 4, LEVELS, step=step, ticks=24 * DAYS).season == 24
    assert seasonal(values, windows, 4, LEVELS, step=step, ticks=24 * DAYS - 1).season < 24


def test_missing_values_are_no_errors() -> None:
    values = walk(3)
    values[0, 250:260] = np.nan
    windows = np.repeat([0, 1], 100), np.tile(np.arange(200, 300), 2)
    assert np.isfinite(persistence(values, windows, 8, LEVELS).errors).all()


def test_ets_gives_ordered_quantiles_around_its_mean_and_a_constant_for_a_constant() -> None:
    past = np.stack([walk(4)[0, :120, 0], np.full(120, 7.0, np.float32)], axis=1)
    told = auto_ets(past, 12, (0.02, 0.1, 0.5, 0.9, 0.98))
    assert told.shape == (2, 5, 12)
    assert (np.diff(told[0], axis=0) > 0).all()
    assert told[0, 2] == pytest.approx((told[0, 0] + told[0, 4]) / 2, abs=1e-3)
    assert (told[1] == 7.0).all()
