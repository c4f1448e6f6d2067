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


class HorizonForecast(Protocol):
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
class HorizonStats:
    """A forecast as it looks from a tick, for servers in an order of their own; NaN for those that it does not know.

    `peak` [S, M, Q]: the highest value of each quantile in the time ahead. `soon` [S, M]: the mean of the median, where
    what comes first counts more. `rows` [S]: the place of each server in the forecast, -1 where it has none.
    `first`: the ticks from now to the forecast's first row that is still ahead.
    """

    levels: tuple[float, ...]
    peaks: Reals
    weighted_median: Reals
    rows: NDArray[np.intp]
    first_step: int
    quantiles: NDArray[np.float32]

    def peak_at(self, level: float) -> Reals:
        """[S, M] the highest value of this quantile."""
        lower, upper, share = _interpolation(self.levels, level)
        peak: Reals = self.peaks[..., lower] * (1 - share) + self.peaks[..., upper] * share
        return peak

    def first_crossing(self, limit: Reals, level: float) -> Reals:
        """[S, M] ticks from now to the first step at which this quantile is at or above `limit` [S, M]; NaN: it never is."""
        ticks = np.full(limit.shape, np.nan)
        server, metric = np.nonzero(self.peak_at(level) >= limit)
        lower, upper, share = _interpolation(self.levels, level)
        path = self.quantiles[self.rows[server], :, metric, lower].astype(np.float64)  # [K, h]
        if share:
            path = path * (1 - share) + self.quantiles[self.rows[server], :, metric, upper] * share
        exceeds = path >= limit[server, metric][:, None]
        ticks[server, metric] = np.where(exceeds.any(axis=1), np.argmax(exceeds, axis=1) + self.first_step, np.nan)
        return ticks

    def exceedance_probability(self, limit: Reals) -> Reals:
        """[S, M] the probability that a metric is at or above `limit` [S, M] at some time of the horizon; NaN: not known.

        From the distribution whose quantiles are `peak`: linear between two levels; beyond the outermost ones tails that
        fall exponentially, as steeply as the two outermost levels tell. That takes the steps of one metric to move
        together (comonotone): its probability is that of the worst step. Independent steps would make it larger.
        """
        peak, levels = np.sort(self.peaks, axis=2), np.array(self.levels)
        below = (peak < limit[..., None]).sum(axis=2)
        upper = np.minimum(np.maximum(below, 1), len(levels) - 1)
        lower = np.maximum(upper - 1, 0)
        low, high = (np.take_along_axis(peak, index[..., None], axis=2)[..., 0] for index in (lower, upper))
        share = np.minimum(_safe_ratio(limit - low, high - low), 1.0)
        inside = 1 - (levels[lower] + share * (levels[upper] - levels[lower]))
        bottom, top = peak[..., 0], peak[..., -1]
        at_least = 1 - levels[0] * np.exp(-_safe_ratio(bottom - limit, _tail_scale(peak[..., :2], levels[:2])))
        at_most = (1 - levels[-1]) * np.exp(-_safe_ratio(limit - top, _tail_scale(peak[..., -2:], 1 - levels[-2:])))
        probability = np.where(below == 0, at_least, np.where(below == len(levels), at_most, inside))
        return np.where(np.isnan(peak[..., 0]), np.nan, np.clip(probability, 0.0, 1.0))


def horizon_stats(forecast: HorizonForecast, servers: Sequence[str], tick: int) -> HorizonStats | None:
    """`forecast` as it looks from `tick`, for these servers, matched by name; None when all of it is over."""
    elapsed = max(0, tick - forecast.tick)
    quantiles = forecast.quantiles[:, elapsed:]
    if quantiles.shape[1] == 0:
        return None
    row_of = {name: row for row, name in enumerate(forecast.servers)}
    rows = np.fromiter((row_of.get(name, -1) for name in servers), dtype=np.intp, count=len(servers))
    weights = np.linspace(1.0, LAST_WEIGHT, quantiles.shape[1], dtype=np.float32)
    servers_forecast, horizon, metrics, levels = quantiles.shape
    flat = quantiles.reshape(
        servers_forecast, horizon, metrics * levels
    )  # the mean of all is quicker than of every seventh number
    means = (weights / weights.sum() @ flat).reshape(servers_forecast, metrics, levels)
    weighted_median = means[..., _median_index(forecast.levels)]
    peaks = quantiles.max(axis=1)
    return HorizonStats(
        tuple(forecast.levels),
        _select_rows(peaks, rows),
        _select_rows(weighted_median, rows),
        rows,
        forecast.tick + elapsed + 1 - tick,
        quantiles,
    )


def _select_rows(values: NDArray[np.float32], rows: NDArray[np.intp]) -> Reals:
    """The rows of these servers in double precision, NaN for -1."""
    selected = np.full((len(rows), *values.shape[1:]), np.nan)
    has_forecast = rows >= 0
    selected[has_forecast] = values[rows[has_forecast]]
    return selected


def _median_index(levels: Sequence[float]) -> int:
    return min(range(len(levels)), key=lambda index: abs(levels[index] - 0.5))


def _interpolation(levels: Sequence[float], level: float) -> tuple[int, int, float]:
    """The quantile at `level` as two of those at `levels`: (near, far, share of far).

    Linear between two levels; beyond the outermost one the exponential tail through the two outermost, whose share is
    negative.
    """
    last = len(levels) - 1
    for index, candidate in enumerate(levels):
        if last == 0 or math.isclose(candidate, level, abs_tol=1e-6):
            return index, index, 0.0
    if level > levels[-1]:
        return last, last - 1, -math.log((1 - levels[-1]) / (1 - level)) / math.log((1 - levels[-2]) / (1 - levels[-1]))
    if level < levels[0]:
        return 0, 1, -math.log(levels[0] / level) / math.log(levels[1] / levels[0])
    upper = next(index for index, candidate in enumerate(levels) if candidate > level)
    return upper - 1, upper, (level - levels[upper - 1]) / (levels[upper] - levels[upper - 1])


def _tail_scale(pair: Reals, levels: Reals) -> Reals:
    """The scale of the exponential tail through two outermost quantiles; 0 where they are the same, or there is but one."""
    if len(levels) < 2:
        return np.zeros(pair.shape[:-1])
    scale: Reals = (pair[..., 1] - pair[..., 0]) / abs(math.log(levels[1] / levels[0]))
    return scale


def _safe_ratio(numerator: Reals, denominator: Reals) -> Reals:
    """`number / by`, 0 for negative numbers; without a scale nothing is beyond the end: infinite, 0 for nought by nought."""
    return np.divide(
        np.maximum(numerator, 0.0), denominator, out=np.where(numerator > 0, np.inf, 0.0), where=denominator > 0
    )


LIKELY_LEVEL, POSSIBLE_LEVEL = 0.5, 0.9  # the quantiles by which something is called so


@dataclass(frozen=True)
class ThresholdStats:
    """What a forecast says of two thresholds, each [S, M], NaN where it says nothing.

    `soon`: the p50's mean, what comes first counting more. `likely`, `possible`: the highest p50 and p90. `probability` to be
    critical. The others are ticks from now until the p50 reaches the thresholds, and the p90 the critical one.
    """

    weighted_median: Reals
    peak_p50: Reals
    peak_p90: Reals
    critical_probability: Reals
    ticks_to_warning: Reals
    ticks_to_critical: Reals
    ticks_to_critical_p90: Reals

    @classmethod
    def of(cls, stats: HorizonStats | None, warning: Reals, critical: Reals) -> ThresholdStats:
        """Of these thresholds [S, M]; nothing where there is no forecast."""
        if stats is None:
            return cls(*(np.full(warning.shape, np.nan) for _ in range(7)))
        return cls(
            weighted_median=stats.weighted_median,
            peak_p50=stats.peak_at(LIKELY_LEVEL),
            peak_p90=stats.peak_at(POSSIBLE_LEVEL),
            critical_probability=stats.exceedance_probability(critical),
            ticks_to_warning=stats.first_crossing(warning, LIKELY_LEVEL),
            ticks_to_critical=stats.first_crossing(critical, LIKELY_LEVEL),
            ticks_to_critical_p90=stats.first_crossing(critical, POSSIBLE_LEVEL),
        )
