"""A forecast for servers with too little history for the model: a damped robust trend with a widening band.

Invariant: a new server gets this forecast in its first minutes, so it must work from a single value, and one outlier
must not bend it. Every statistic is a median, and the history is compacted first, so that gaps have no effect.
Metrics with the transform "log1p" are treated as log1p(value), where their spread is even.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRICS, MetricDefinition

Floats = NDArray[np.float32]

TREND_WINDOW = 48  # ticks used for the trend; 4 minutes at 5 s
LEVEL_WINDOW = 5  # values whose median is the start of the forecast: one outlier does not move it
DAMPING = 0.85  # of the trend, per tick: in total the trend continues for 5.7 ticks
# scale(k) = scale(0) * sqrt(1 + k / VARIANCE_DOUBLING_TICKS)
VARIANCE_DOUBLING_TICKS = 24.0
# The prior spread weighs as much as this number of values. For a single value it is the only information.
PRIOR_WEIGHT = 6.0
# How far a metric plausibly moves within minutes:
PERCENT_SPREAD = 0.05  # a metric without transform: a share of its range, for a value in the middle of it
LOG_SPREAD = 0.3  # a "log1p" metric: a share of its value
MIN_SPREAD_SHARE = 0.1  # near a bound, at least this share of the spreads above; an error rate of 0 usually stays 0
_NORMAL_MAD = 1.4826  # standard deviation of a normal per median absolute deviation
_CHUNK_SERVERS = 64  # servers per pass: the arrays fit into the CPU cache


def heuristic_forecast(
    values: Floats, horizon: int, levels: Sequence[float], metrics: Sequence[MetricDefinition] = METRICS
) -> NDArray[np.float32]:
    """Quantiles of the next `horizon` ticks, [S, H, M, Q] in the metrics' units.

    The last row of `values` [S, L, M] is the newest tick, NaN where a value is missing; row k of the result is for
    the tick k + 1 later. The median is

        level + slope * (DAMPING + DAMPING^2 + ... + DAMPING^k)

    where the slope is Theil's incomplete estimate (the median of the pairwise differences between the first and
    second half of the window), reduced when it is small compared with its standard error. The other quantiles are
    normal around the median. Their scale combines the residuals from the trend (median absolute deviation) with the
    metric's prior spread, whose weight falls with every value, and it widens with sqrt(k). Quantiles stay within the
    metric's bounds and do not cross. A metric without any value is NaN.

    Raises:
        ValueError: `values` is not [S, L, M] for these metrics, or a level is not between 0 and 1.
    """
    if values.ndim != 3 or values.shape[2] != len(metrics):
        raise ValueError(f"values must be [servers, ticks, {len(metrics)} metrics], not {values.shape}")
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"quantile levels must be between 0 and 1, not {tuple(levels)}")
    scores = np.array([NormalDist().inv_cdf(level) for level in levels], dtype=np.float32)
    low, high = (np.array([getattr(metric, end) for metric in metrics], dtype=np.float32) for end in ("low", "high"))
    scales = _MetricScales(low, high, np.array([metric.transform == "log1p" for metric in metrics], dtype=np.bool_))
    result = np.empty((len(values), horizon, len(metrics), len(levels)), dtype=np.float32)
    for first in range(0, len(values), _CHUNK_SERVERS):
        chunk = slice(first, first + _CHUNK_SERVERS)
        _write_quantiles(_recent_values(scales.transform(values[chunk])), scales, scores, result[chunk])
    return result


@dataclass(frozen=True)
class _MetricScales:
    """The bounds of the metrics and whether they use log1p, as arrays [M]."""

    low: Floats
    high: Floats
    is_log: NDArray[np.bool_]

    def prior_spread(self, level: Floats) -> Floats:
        """[S, M] how far a metric plausibly moves from such a level, both on the scale of `transform`.

        A percentage moves like the share p of n: by sqrt(p (1 - p)), most in the middle. The others move by a share
        of their value, which in log1p(value) is that share times value / (1 + value).
        """
        share = (level - self.low) / (self.high - self.low)
        bounded = 2 * np.sqrt(np.clip(share * (1 - share), 0, None)) * (self.high - self.low)
        spread = np.where(self.is_log, LOG_SPREAD * np.maximum(-np.expm1(-np.maximum(level, 0)), MIN_SPREAD_SHARE),
                         PERCENT_SPREAD * np.maximum(bounded, MIN_SPREAD_SHARE * (self.high - self.low)))  # fmt: skip
        return spread.astype(np.float32)

    def transform(self, values: Floats) -> Floats:
        """[S, L, M] clipped to the bounds, and log1p of the metrics that use it."""
        transformed = np.clip(values, self.low, self.high)
        transformed[..., self.is_log] = np.log1p(transformed[..., self.is_log])
        return transformed

    def inverse_transform(self, values: Floats) -> Floats:
        """The inverse of `transform`, in place, clipped to the bounds."""
        capped = np.minimum(values[..., self.is_log], np.float32(80.0))  # exp(88) overflows float32
        values[..., self.is_log] = np.expm1(capped)
        return np.clip(values, self.low, self.high, out=values)


@dataclass(frozen=True)
class _RecentValues:
    """The newest values of each metric, compacted to the right: [S, M, W] values and ages in ticks, [S, M] counts."""

    values: Floats
    ages: Floats
    counts: NDArray[np.intp]

    def take(self, indices: NDArray[np.intp]) -> tuple[Floats, Floats]:
        """Values and ages at these indices [S, M, N] of the compacted window."""
        return np.take_along_axis(self.values, indices, axis=2), np.take_along_axis(self.ages, indices, axis=2)


def _recent_values(values: Floats) -> _RecentValues:
    """The values of the window without gaps; if a window is empty, the newest value before it."""
    length = values.shape[1]
    window = np.ascontiguousarray(values[:, max(0, length - TREND_WINDOW) :].transpose(0, 2, 1))
    ages = np.broadcast_to(np.arange(window.shape[2] - 1, -1, -1, dtype=np.float32), window.shape)
    present = ~np.isnan(window)
    counts = present.sum(axis=2)
    if not present.all():
        order = np.argsort(present, axis=2, kind="stable")
        window, ages = np.take_along_axis(window, order, axis=2), np.take_along_axis(ages, order, axis=2)
        if length > TREND_WINDOW and (empty := counts == 0).any():
            earlier = values[:, : length - TREND_WINDOW].transpose(0, 2, 1)[empty]
            present_earlier = ~np.isnan(earlier)
            last_index = earlier.shape[1] - 1 - np.argmax(present_earlier[:, ::-1], axis=1)
            ages = ages.copy()
            ages[empty, -1] = length - 1 - last_index
            window[empty, -1] = earlier[np.arange(len(earlier)), last_index]
            counts[empty] = present_earlier.any(axis=1)
    return _RecentValues(window, ages, counts)


def _write_quantiles(recent: _RecentValues, scales: _MetricScales, scores: Floats, result: NDArray[np.float32]) -> None:
    """Write the quantiles of one chunk of servers into `result` [S, H, M, Q]."""
    if recent.values.shape[2] == 0:
        result[...] = np.nan
        return
    slope = _theil_slope(recent)
    residuals = recent.values + slope[..., None] * recent.ages  # every value moved to the newest tick along the trend
    width = recent.values.shape[2]
    level = _nan_median(np.where(np.arange(width) >= width - LEVEL_WINDOW, residuals, np.nan))
    noise = np.float32(_NORMAL_MAD) * _nan_median(np.abs(residuals - _nan_median(residuals)[..., None]))
    noise = np.where(recent.counts > 1, noise, np.float32(0.0))
    prior = scales.prior_spread(level) * (PRIOR_WEIGHT / (recent.counts + PRIOR_WEIGHT - 1)).astype(np.float32)
    scale = np.sqrt(noise**2 + prior**2)
    # The error of the slope of a line through noise.
    error = scale * np.sqrt(12 / np.maximum(recent.counts, 2).astype(np.float32) ** 3)
    slope *= slope**2 / (slope**2 + error**2)  # a trend that noise alone could produce has little weight
    steps = np.arange(1, result.shape[1] + 1, dtype=np.float32)
    trend = np.float32(DAMPING) * (1 - np.float32(DAMPING) ** steps) / np.float32(1 - DAMPING)
    middle = level[:, None, :] + slope[:, None, :] * trend[None, :, None]
    steps_since_value = steps[None, :, None] + recent.ages[:, :, -1][:, None, :]
    step_scale = scale[:, None, :] * np.sqrt(1 + steps_since_value / np.float32(VARIANCE_DOUBLING_TICKS))
    step_scale[np.broadcast_to(recent.counts[:, None, :] == 0, step_scale.shape)] = np.nan
    for index, score in enumerate(scores):
        result[..., index] = scales.inverse_transform(middle + score * step_scale)


def _theil_slope(recent: _RecentValues) -> Floats:
    """[S, M] the change per tick: Theil's incomplete method on the compacted values; 0 for fewer than two values."""
    width = recent.values.shape[2]
    pair = np.arange(width // 2, dtype=np.intp)
    first = (width - recent.counts)[..., None] + pair
    second = first + ((recent.counts + 1) // 2)[..., None]
    valid = pair < (recent.counts // 2)[..., None]
    early_values, early_ages = recent.take(np.minimum(first, width - 1))
    late_values, late_ages = recent.take(np.minimum(second, width - 1))
    distance = np.where(valid, early_ages - late_ages, np.float32(1.0))
    slope = _nan_median(np.where(valid, (late_values - early_values) / distance, np.nan))
    return np.where(recent.counts > 1, slope, np.float32(0.0)).astype(np.float32)


def _nan_median(values: Floats) -> Floats:
    """The median along the last axis, ignoring NaN; NaN if all are NaN. (numpy's nanmedian warns then, and is slow.)"""
    if values.shape[-1] == 0:
        return np.full(values.shape[:-1], np.nan, dtype=np.float32)
    ordered = np.sort(values, axis=-1)  # NaN sorts last
    count = (~np.isnan(ordered)).sum(axis=-1)
    low, high = np.maximum(count - 1, 0) // 2, count // 2
    pick = np.minimum(np.stack([low, np.where(count > 0, high, 0)], axis=-1), values.shape[-1] - 1)
    middle: Floats = np.take_along_axis(ordered, pick, axis=-1).mean(axis=-1, dtype=np.float32)
    return middle
