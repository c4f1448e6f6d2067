"""Anchors: simple forecasts of each metric, to which the network's outputs are added.

A network that carries the last values of many metrics through one narrow state loses precision, and the last value
alone is better for the first steps. So the network predicts the difference from an anchor that is computed outside it,
as in the hybrid of Smyl 2020 (https://doi.org/10.1016/j.ijforecast.2019.03.017). The anchor is simple exponential
smoothing with a damped error: the level `l` is a mean with exponential weights (pandas' `ewm(alpha=..., adjust=True)`),
and the anchor of step `h` is `l + damping ** h * (last - l)`.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from models.fleet.base import Floats
from models.fleet.manifest import Anchor

SMOOTHINGS = (0.5, 0.25, 0.1, 0.05)  # weights of the newest value in the level
DAMPINGS = (0.0, 0.5, 0.75, 0.9, 0.95, 0.975)
LAST_VALUE = Anchor(1.0, 0.0)  # the last value at every step
CANDIDATES = (LAST_VALUE, *(Anchor(*pair) for pair in product(SMOOTHINGS, DAMPINGS)))


def anchor_forecast(values: Floats, anchors: tuple[Anchor, ...], horizon: int) -> Floats:
    """The anchors `[S, M, H]` of windows `[S, L, M]`, the newest value last."""
    alpha, damping = (np.array([getattr(anchor, name) for anchor in anchors]) for name in ("smoothing", "damping"))
    weights = (1 - alpha) ** np.arange(values.shape[1])[::-1, None]
    weights = (weights / weights.sum(axis=0)).astype(np.float32)
    remainder = (damping[:, None] ** np.arange(1, horizon + 1)).astype(np.float32)
    level = np.einsum("slm,lm->sm", values, weights)[:, :, None]
    return np.asarray(level + remainder * (values[:, -1, :, None] - level))


def fit_anchors(windows: Floats, outcomes: Floats) -> tuple[Anchor, ...]:
    """For each metric, the anchor nearest to `outcomes` `[N, M, H]` of `windows` `[N, L, M]`.

    Nearest by the mean absolute error over observed outcomes; the last value if no outcome was observed.
    """
    metrics, horizon = outcomes.shape[1:]
    errors = np.empty((len(CANDIDATES), metrics))
    for row, candidate in enumerate(CANDIDATES):
        errors_by_step = np.abs(outcomes - anchor_forecast(windows, (candidate,) * metrics, horizon))
        observed = np.isfinite(errors_by_step)
        total = np.where(observed, errors_by_step, 0).sum(axis=(0, 2), dtype=np.float64)
        errors[row] = total / np.maximum(observed.sum(axis=(0, 2)), 1)
    return tuple(CANDIDATES[row] for row in errors.argmin(axis=0).tolist())
