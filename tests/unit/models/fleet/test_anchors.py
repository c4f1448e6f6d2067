"""Anchors: the level equals pandas' exponential mean, the distance to it is damped, and the fit selects the best anchor."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from models.fleet.anchors import LAST_VALUE, SMOOTHINGS, anchor_forecast, fit_anchors
from models.fleet.manifest import Anchor

RNG = np.random.default_rng(3)
Floats = NDArray[np.float32]


@pytest.mark.parametrize("alpha", [1.0, *SMOOTHINGS])
@pytest.mark.parametrize("length", [1, 2, 40])
def test_anchor_level_equals_pandas_ewm(alpha: float, length: int) -> None:
    import pandas as pd

    values = RNG.normal(50, 10, (3, length, 2)).astype(np.float32)
    ewm = [[pd.Series(values[s, :, m]).ewm(alpha=alpha, adjust=True).mean().iloc[-1] for m in (0, 1)] for s in range(3)]
    anchors = anchor_forecast(values, (Anchor(alpha, 0.0),) * 2, 5)
    assert anchors.shape == (3, 2, 5)
    for step in range(5):
        assert anchors[..., step] == pytest.approx(np.array(ewm), rel=1e-5)


def test_anchor_damping_applies_per_metric() -> None:
    values = RNG.normal(0, 1, (4, 30, 3)).astype(np.float32)
    last, half, stays = anchor_forecast(values, (LAST_VALUE, Anchor(0.1, 0.5), Anchor(0.1, 1.0)), 3).swapaxes(0, 1)
    level = anchor_forecast(values, (Anchor(0.1, 0.0),) * 3, 1)[:, 1, 0]
    assert (last == values[:, -1, 0, None]).all()
    for step, remainder in enumerate((0.5, 0.25, 0.125)):
        assert half[:, step] == pytest.approx(level + remainder * (values[:, -1, 1] - level), abs=1e-6)
    assert stays == pytest.approx(np.repeat(values[:, -1, 2, None], 3, axis=1), abs=1e-6)


def split_windows(series: Floats) -> tuple[Floats, Floats]:
    """The first 60 ticks of `[N, 80, M]`, and the next 20."""
    return series[:, :60], series[:, 60:].swapaxes(1, 2).copy()


def random_walk(steps: float, noise: float) -> Floats:
    values = np.cumsum(RNG.normal(0, steps, (600, 80)), axis=1) + RNG.normal(0, noise, (600, 80))
    return values.astype(np.float32)


def mean_reverting(share: float) -> Floats:
    """A process that keeps this share of its distance to zero after a tick."""
    values = RNG.normal(0, 1, (600, 80))
    for tick in range(1, 80):
        values[:, tick] = share * values[:, tick - 1] + np.sqrt(1 - share**2) * values[:, tick]
    return values.astype(np.float32)


def test_fit_anchors_matches_drift_noise_and_mean_reversion() -> None:
    drifts, noise, returns = fit_anchors(
        *split_windows(np.stack([random_walk(1, 0), random_walk(0, 1), mean_reverting(0.9)], axis=-1))
    )
    assert drifts == LAST_VALUE
    assert noise == Anchor(SMOOTHINGS[-1], 0.0)
    assert returns.damping in {0.75, 0.9, 0.95}


def test_fit_anchors_missing_outcomes_are_ignored() -> None:
    past, outcomes = split_windows(np.stack([random_walk(1, 0), random_walk(1, 0)], axis=-1))
    outcomes[::2, 0] = np.nan
    outcomes[:, 1] = np.nan
    assert fit_anchors(past, outcomes) == (LAST_VALUE, LAST_VALUE)
