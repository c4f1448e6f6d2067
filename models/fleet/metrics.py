"""Scores of fleet forecasts against outcomes: pinball loss and coverage, by metric and on average.

All values are in the groups' scales, as for the network, so that metrics of different units can be averaged. Outcomes
that were not observed are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import Floats

Reals = NDArray[np.float64]
Scores = Mapping[str, object]


def pinball(quantiles: Floats, actual: Floats, levels: tuple[float, ...]) -> Floats:
    """Mean over the levels of the pinball loss: `[N, M, H]` of quantiles `[N, M, Q, H]` against outcomes `[N, M, H]`.

    `max(q * e, (q - 1) * e)`; Koenker and Bassett 1978. NaN where the outcome is NaN.
    """
    loss = np.zeros_like(actual)
    for index, level in enumerate(levels):
        error = actual - quantiles[:, :, index]
        loss += np.maximum(level * error, (level - 1) * error)
    return np.asarray(loss / len(levels), dtype=np.float32)


def interval_hits(quantiles: Floats, actual: Floats, levels: tuple[float, ...]) -> dict[str, Floats]:
    """By central interval of the levels (0.1 and 0.9: "0.8"): 1 where the outcome is inside, else 0, NaN if unknown."""
    hits = {}
    for low, level in enumerate(levels):
        high = next((index for index, other in enumerate(levels) if abs(level + other - 1) < 1e-9), None)
        if level < 0.5 and high is not None:
            inside = (quantiles[:, :, low] <= actual) & (actual <= quantiles[:, :, high])
            hits[f"{1 - 2 * level:.4g}"] = np.where(np.isfinite(actual), inside, np.nan).astype(np.float32)
    return hits


def score(quantiles: Floats, actual: Floats, levels: tuple[float, ...], names: tuple[str, ...]) -> Scores:
    """All scores of one forecaster.

    pinball: mean over the metrics, with equal weights; pinball_first, pinball_last: of the first and the last step;
    coverage: the share of outcomes inside each central interval; by_metric: pinball and coverage of each
    """
    losses, inside = pinball(quantiles, actual, levels), interval_hits(quantiles, actual, levels)
    return {
        "pinball": _mean(mean_by_metric(losses)),
        "pinball_first": _mean(mean_by_metric(losses[..., :1])),
        "pinball_last": _mean(mean_by_metric(losses[..., -1:])),
        "coverage": {interval: _mean(mean_by_metric(hits)) for interval, hits in inside.items()},
        "by_metric": {
            name: {
                "pinball": _finite_or_none(mean_by_metric(losses)[index]),
                "coverage": {
                    interval: _finite_or_none(mean_by_metric(hits)[index]) for interval, hits in inside.items()
                },
            }
            for index, name in enumerate(names)
        },
    }


def mean_by_metric(values: Floats) -> Reals:
    """The mean `[M]` of `[N, M, H]` over values that are not NaN; NaN where all are."""
    observed = np.isfinite(values)
    total = np.where(observed, values, 0).sum(axis=(0, 2), dtype=np.float64)
    return np.asarray(total / np.where(observed.any(axis=(0, 2)), observed.sum(axis=(0, 2)), np.nan))


def _mean(values: Reals) -> float | None:
    observed = values[np.isfinite(values)]
    return float(observed.mean()) if len(observed) else None


def _finite_or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
