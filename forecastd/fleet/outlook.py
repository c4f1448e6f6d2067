"""What a forecast says of the time that is still ahead: how high it goes, when it crosses a limit, how probably.

The one thing to know before changing it: everything is drawn from the highest value of each quantile over the horizon. For
paths that stay at their own quantile that is exact, and nothing else is known of how one step hangs together with the next.
A forecast may be some ticks old: its rows that are over do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
LAST_WEIGHT = 0.5  # of the horizon's last step in `soon`, against 1 of the first


class Forecast(Protocol):
    """What of a fleet's forecast is needed here; `snapshot.FleetForecast` is one.

    `quantiles` [S, H, M, Q]: row k speaks of tick `tick + 1 + k`; NaN where nothing was forecast. `levels` increase.
    """

    @property
    def tick(self) -> int: ...
    @property
    def step(self) -> int: ...
    @property
    def servers(self) -> Sequence[str]: ...
    @property
    def levels(self) -> Sequence[float]: ...
    @property
    def quantiles(self) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class Outlook:
    """A forecast as it looks from a tick, for servers in an order of their own; NaN for those that it does not know.

    `peak` [S, M, Q]: the highest value of each quantile in the time ahead. `soon` [S, M]: the mean of the median, where
    what comes first counts more. `rows` [S]: the place of each server in the forecast, -1 where it has none.
    `first`: the ticks from now to the forecast's first row that is still ahead.
    """

    levels: tuple[float, ...]
    peak: Reals
    soon: Reals
    rows: NDArray[np.intp]
    first: int
    quantiles: NDArray[np.float32]

    def peak_at(self, level: float) -> Reals:
        """[S, M] the highest value of this quantile."""
        near, far, share = _mixed(self.levels, level)
        found: Reals = self.peak[..., near] * (1 - share) + self.peak[..., far] * share
        return found

    def crossing(self, limit: Reals, level: float) -> Reals:
        """[S, M] ticks from now to the first step at which this quantile is at or above `limit` [S, M]; NaN: it never is."""
        found = np.full(limit.shape, np.nan)
        server, metric = np.nonzero(self.peak_at(level) >= limit)
        near, far, share = _mixed(self.levels, level)
        path = self.quantiles[self.rows[server], :, metric, near].astype(np.float64)  # [K, h]
        if share:
            path = path * (1 - share) + self.quantiles[self.rows[server], :, metric, far] * share
        over = path >= limit[server, metric][:, None]
        found[server, metric] = np.where(over.any(axis=1), np.argmax(over, axis=1) + self.first, np.nan)
        return found

    def exceeding(self, limit: Reals) -> Reals:
        """[S, M] the probability that a metric is at or above `limit` [S, M] at some time of the horizon; NaN: not known.

        From the distribution whose quantiles are `peak`: linear between two levels; beyond the outermost ones tails that
        fall exponentially, as steeply as the two outermost levels tell. That takes the steps of one metric to move
        together (comonotone): its probability is that of the worst step. Independent steps would make it larger.
        """
        peak, levels = np.sort(self.peak, axis=2), np.array(self.levels)
        below = (peak < limit[..., None]).sum(axis=2)
        upper = np.minimum(np.maximum(below, 1), len(levels) - 1)
        lower = np.maximum(upper - 1, 0)
        low, high = (np.take_along_axis(peak, place[..., None], axis=2)[..., 0] for place in (lower, upper))
        share = np.minimum(_over(limit - low, high - low), 1.0)
        inside = 1 - (levels[lower] + share * (levels[upper] - levels[lower]))
        bottom, top = peak[..., 0], peak[..., -1]
        at_least = 1 - levels[0] * np.exp(-_over(bottom - limit, _scale(peak[..., :2], levels[:2])))
        at_most = (1 - levels[-1]) * np.exp(-_over(limit - top, _scale(peak[..., -2:], 1 - levels[-2:])))
        found = np.where(below == 0, at_least, np.where(below == len(levels), at_most, inside))
        return np.where(np.isnan(peak[..., 0]), np.nan, np.clip(found, 0.0, 1.0))


def look_ahead(forecast: Forecast, servers: Sequence[str], tick: int) -> Outlook | None:
    """`forecast` as it looks from `tick`, for these servers, matched by name; None when all of it is over."""
    over = max(0, tick - forecast.tick)
    quantiles = forecast.quantiles[:, over:]
    if quantiles.shape[1] == 0:
        return None
    places = {name: row for row, name in enumerate(forecast.servers)}
    rows = np.fromiter((places.get(name, -1) for name in servers), dtype=np.intp, count=len(servers))
    weights = np.linspace(1.0, LAST_WEIGHT, quantiles.shape[1], dtype=np.float32)
    known, horizon, metrics, levels = quantiles.shape
    flat = quantiles.reshape(
        known, horizon, metrics * levels
    )  # the mean of all is quicker than of every seventh number
    means = (weights / weights.sum() @ flat).reshape(known, metrics, levels)
    soon = means[..., _median_of(forecast.levels)]
    peak = quantiles.max(axis=1)
    return Outlook(
        tuple(forecast.levels), _taken(peak, rows), _taken(soon, rows), rows, forecast.tick + over + 1 - tick, quantiles
    )


def _taken(values: NDArray[np.float32], rows: NDArray[np.intp]) -> Reals:
    """The rows of these servers in double precision, NaN for -1."""
    found = np.full((len(rows), *values.shape[1:]), np.nan)
    known = rows >= 0
    found[known] = values[rows[known]]
    return found


def _median_of(levels: Sequence[float]) -> int:
    return min(range(len(levels)), key=lambda place: abs(levels[place] - 0.5))


def _mixed(levels: Sequence[float], level: float) -> tuple[int, int, float]:
    """The quantile at `level` as two of those at `levels`: (near, far, share of far).

    Linear between two levels; beyond the outermost one the exponential tail through the two outermost, whose share is
    negative.
    """
    last = len(levels) - 1
    for place, own in enumerate(levels):
        if last == 0 or math.isclose(own, level, abs_tol=1e-6):
            return place, place, 0.0
    if level > levels[-1]:
        return last, last - 1, -math.log((1 - levels[-1]) / (1 - level)) / math.log((1 - levels[-2]) / (1 - levels[-1]))
    if level < levels[0]:
        return 0, 1, -math.log(levels[0] / level) / math.log(levels[1] / levels[0])
    far = next(place for place, own in enumerate(levels) if own > level)
    return far - 1, far, (level - levels[far - 1]) / (levels[far] - levels[far - 1])


def _scale(pair: Reals, levels: Reals) -> Reals:
    """The scale of the exponential tail through two outermost quantiles; 0 where they are the same, or there is but one."""
    if len(levels) < 2:
        return np.zeros(pair.shape[:-1])
    scale: Reals = (pair[..., 1] - pair[..., 0]) / abs(math.log(levels[1] / levels[0]))
    return scale


def _over(number: Reals, by: Reals) -> Reals:
    """`number / by`, 0 for negative numbers; without a scale nothing is beyond the end: infinite, 0 for nought by nought."""
    return np.divide(np.maximum(number, 0.0), by, out=np.where(number > 0, np.inf, 0.0), where=by > 0)


LIKELY, POSSIBLE = 0.5, 0.9  # the quantiles by which something is called so


@dataclass(frozen=True)
class Prospects:
    """What a forecast says of two thresholds, each [S, M], NaN where it says nothing.

    `soon`: the p50's mean, what comes first counting more. `likely`, `possible`: the highest p50 and p90. `probability` to be
    critical. The others are ticks from now until the p50 reaches the thresholds, and the p90 the critical one.
    """

    soon: Reals
    likely: Reals
    possible: Reals
    probability: Reals
    to_warning: Reals
    to_critical: Reals
    possibly_critical: Reals

    @classmethod
    def of(cls, outlook: Outlook | None, warning: Reals, critical: Reals) -> Prospects:
        """Of these thresholds [S, M]; nothing where there is no forecast."""
        if outlook is None:
            return cls(*(np.full(warning.shape, np.nan) for _ in range(7)))
        return cls(
            soon=outlook.soon,
            likely=outlook.peak_at(LIKELY),
            possible=outlook.peak_at(POSSIBLE),
            probability=outlook.exceeding(critical),
            to_warning=outlook.crossing(warning, LIKELY),
            to_critical=outlook.crossing(critical, LIKELY),
            possibly_critical=outlook.crossing(critical, POSSIBLE),
        )
