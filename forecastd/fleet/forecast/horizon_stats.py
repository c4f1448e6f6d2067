"""Statistics of a forecast over its remaining horizon: peaks, first crossings of a limit, exceedance probabilities.

Invariant: everything is derived from the highest value of each quantile over the horizon. That is exact for paths
that stay at their own quantile; the forecast says nothing about the dependence between steps. Steps of an old
forecast that are already past do not count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.float64]
LAST_WEIGHT = 0.5  # weight of the last step in `weighted_median`; the first step has 1


class HorizonForecast(Protocol):
    """The part of a fleet's forecast that is needed here; `FleetForecast` implements it.

    `quantiles` [S, H, M, Q]: row k is for tick `tick + 1 + k`; NaN where nothing was forecast. `levels` increase.
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
    """Statistics of a forecast as seen from a tick, for servers in the caller's order; NaN for servers without a
    forecast.

    Args:
        peaks: [S, M, Q], the highest value of each quantile over the remaining horizon
        weighted_median: [S, M], the mean of the median over the remaining horizon; earlier steps have more weight
        rows: [S], the row of each server in the forecast, -1 if it has none
        first_step: ticks from now to the forecast's first remaining step
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
        """[S, M] ticks from now to the first step at which this quantile reaches `limit` [S, M]; NaN if it never
        does."""
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
        """[S, M] the probability that a metric reaches `limit` [S, M] within the horizon; NaN if unknown.

        It uses the distribution with the quantiles `peaks`: linear between two levels; beyond the outermost levels
        exponential tails with the slope of the two outermost levels. This assumes that the steps of one metric move
        together (comonotone): the probability is that of the worst step. Independent steps would make it larger.
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
    """Statistics of `forecast` as seen from `tick`, for these servers, matched by name; None if its horizon is over."""
    elapsed = max(0, tick - forecast.tick)
    quantiles = forecast.quantiles[:, elapsed:]
    if quantiles.shape[1] == 0:
        return None
    row_of = {name: row for row, name in enumerate(forecast.servers)}
    rows = np.fromiter((row_of.get(name, -1) for name in servers), dtype=np.intp, count=len(servers))
    weights = np.linspace(1.0, LAST_WEIGHT, quantiles.shape[1], dtype=np.float32)
    servers_forecast, horizon, metrics, levels = quantiles.shape
    # A mean over contiguous memory is faster than over every seventh number.
    flat = quantiles.reshape(servers_forecast, horizon, metrics * levels)
    means = (weights / weights.sum() @ flat).reshape(servers_forecast, metrics, levels)
    median = min(range(levels), key=lambda index: abs(forecast.levels[index] - 0.5))
    peaks, weighted_median = _select_rows(quantiles.max(axis=1), rows), _select_rows(means[..., median], rows)
    first_step = forecast.tick + elapsed + 1 - tick
    return HorizonStats(tuple(forecast.levels), peaks, weighted_median, rows, first_step, quantiles)


def _select_rows(values: NDArray[np.float32], rows: NDArray[np.intp]) -> Reals:
    """The rows of these servers in double precision, NaN for -1."""
    selected = np.full((len(rows), *values.shape[1:]), np.nan)
    has_forecast = rows >= 0
    selected[has_forecast] = values[rows[has_forecast]]
    return selected


def _interpolation(levels: Sequence[float], level: float) -> tuple[int, int, float]:
    """The quantile at `level` from two of those at `levels`: (lower, upper, weight of upper).

    Linear between two levels; beyond the outermost level the exponential tail through the two outermost, with a
    negative weight.
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
    """The scale of the exponential tail through the two outermost quantiles; 0 if they are equal or there is only
    one."""
    if len(levels) < 2:
        return np.zeros(pair.shape[:-1])
    scale: Reals = (pair[..., 1] - pair[..., 0]) / abs(math.log(levels[1] / levels[0]))
    return scale


def _safe_ratio(numerator: Reals, denominator: Reals) -> Reals:
    """`max(numerator, 0) / denominator`; for a denominator of 0: infinite if the numerator is positive, else 0."""
    return np.divide(
        np.maximum(numerator, 0.0), denominator, out=np.where(numerator > 0, np.inf, 0.0), where=denominator > 0
    )


LIKELY_LEVEL, POSSIBLE_LEVEL = 0.5, 0.9  # quantile levels of a likely and of a possible value


@dataclass(frozen=True)
class ThresholdStats:
    """What a forecast says about two thresholds, each [S, M], NaN where it says nothing.

    Args:
        weighted_median: the mean of the p50; earlier steps have more weight
        peak_p50, peak_p90: the highest p50 and p90
        critical_probability: of reaching the critical threshold
        ticks_to_warning, ticks_to_critical: until the p50 reaches the thresholds
        ticks_to_critical_p90: until the p90 reaches the critical threshold
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
        """For these thresholds [S, M]; all NaN if there is no forecast."""
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
