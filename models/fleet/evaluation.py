"""How good a fleet's forecasts were, once the truth is known: pinball loss and coverage, per metric and in the mean.

Everything is in the groups' scales, as the network sees it, so that metrics of all units can be added up; what was not
observed counts for nothing.
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

    `max(q * e, (q - 1) * e)`; Koenker and Bassett 1978. NaN where the outcome is.
    """
    loss = np.zeros_like(actual)
    for place, level in enumerate(levels):
        error = actual - quantiles[:, :, place]
        loss += np.maximum(level * error, (level - 1) * error)
    return np.asarray(loss / len(levels), dtype=np.float32)


def covered(quantiles: Floats, actual: Floats, levels: tuple[float, ...]) -> dict[str, Floats]:
    """For each central interval that the levels hold (0.1 and 0.9: "0.8"), 1 where the outcome is inside, 0 where not."""
    found = {}
    for low, level in enumerate(levels):
        high = next((at for at, other in enumerate(levels) if abs(level + other - 1) < 1e-9), None)
        if level < 0.5 and high is not None:
            inside = (quantiles[:, :, low] <= actual) & (actual <= quantiles[:, :, high])
            found[f"{1 - 2 * level:.4g}"] = np.where(np.isfinite(actual), inside, np.nan).astype(np.float32)
    return found


def score(quantiles: Floats, actual: Floats, levels: tuple[float, ...], names: tuple[str, ...]) -> Scores:
    """All scores of one forecaster.

    pinball: mean over the metrics, of which each counts the same; pinball_first, pinball_last: of those steps only;
    coverage: the share of outcomes inside each central interval; by_metric: pinball and coverage of each
    """
    losses, inside = pinball(quantiles, actual, levels), covered(quantiles, actual, levels)
    return {
        "pinball": _mean(by_metric(losses)),
        "pinball_first": _mean(by_metric(losses[..., :1])),
        "pinball_last": _mean(by_metric(losses[..., -1:])),
        "coverage": {interval: _mean(by_metric(hits)) for interval, hits in inside.items()},
        "by_metric": {
            name: {
                "pinball": _number(by_metric(losses)[at]),
                "coverage": {interval: _number(by_metric(hits)[at]) for interval, hits in inside.items()},
            }
            for at, name in enumerate(names)
        },
    }


def by_metric(values: Floats) -> Reals:
    """The mean `[M]` of `[N, M, H]` over what is there; NaN where nothing is."""
    there = np.isfinite(values)
    total = np.where(there, values, 0).sum(axis=(0, 2), dtype=np.float64)
    return np.asarray(total / np.where(there.any(axis=(0, 2)), there.sum(axis=(0, 2)), np.nan))


def _mean(values: Reals) -> float | None:
    there = values[np.isfinite(values)]
    return float(there.mean()) if len(there) else None


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
