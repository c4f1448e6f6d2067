"""Forecasts without a model, which a fleet model is compared with: persistence, the seasonal naive forecast and AutoETS.

The first two are in the groups' scales, for windows given as servers and origins. Their quantiles are those of their own
errors in the train part, for every step of the horizon and every metric. AutoETS of statsforecast is exponential smoothing
of each metric of a window, with prediction intervals. Invariant: no baseline reads anything after the origin of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from models.fleet.base import Floats, Indices

DAY_SECONDS = 86_400
MIN_DAYS = 3  # of the train part, for a season of a day: two whole days and their errors
SEASON_SECONDS = (300, 600, 900, 1_800, 3_600)  # shorter seasons, of which the best on the train part is used
_CHUNK_WINDOWS = 256


@dataclass(frozen=True, eq=False)
class SeasonalBaseline:
    """The value a whole number of seasons of `season` ticks before each step, at or before the origin; 0: the last value.

    errors: `[M, Q, H]`, quantiles of its errors in the train part
    """

    season: int
    errors: Floats

    def forecast(self, values: Floats, servers: Indices, origins: Indices) -> Floats:
        """Quantiles `[N, M, Q, H]` for windows of scaled values `[S, T, M]`, in which gaps are carried forward."""
        base = _repeat(values, servers, origins, self.season, self.errors.shape[2])
        return np.asarray(base[:, :, None] + self.errors, dtype=np.float32)


def fit_persistence(
    values: Floats, windows: tuple[Indices, Indices], horizon: int, levels: tuple[float, ...]
) -> SeasonalBaseline:
    """The last value, with the quantiles of its errors on these windows of the train part."""
    return _fit(values, windows, 0, horizon, levels)


def fit_seasonal(
    values: Floats, windows: tuple[Indices, Indices], horizon: int, levels: tuple[float, ...], *, step: int, ticks: int
) -> SeasonalBaseline:
    """The seasonal naive forecast: with the season of a day if the train part (`ticks`) has enough days.

    Otherwise with the shorter season that is best on these windows.
    """
    day = DAY_SECONDS // step
    if ticks >= MIN_DAYS * day and DAY_SECONDS % step == 0:
        return _fit(values, windows, day, horizon, levels)
    seasons = [seconds // step for seconds in SEASON_SECONDS if seconds % step == 0 and 4 * seconds // step <= ticks]
    baselines = [_fit(values, windows, season, horizon, levels) for season in seasons or [horizon]]
    return min(baselines, key=lambda baseline: float((baseline.errors[:, -1] - baseline.errors[:, 0]).mean()))


def outcome(values: Floats, servers: Indices, origins: Indices, horizon: int) -> Floats:
    """The outcomes `[N, M, H]`, NaN where nothing was observed."""
    rows = origins[:, None] + np.arange(1, horizon + 1)
    return np.asarray(values[servers[:, None], rows].swapaxes(1, 2))


def _fit(
    values: Floats, windows: tuple[Indices, Indices], season: int, horizon: int, levels: tuple[float, ...]
) -> SeasonalBaseline:
    servers, origins = windows
    usable = origins - season * -(-horizon // max(season, 1)) >= -1 if season else origins >= 0
    if not usable.any():
        usable = np.ones(len(origins), dtype=bool)
    servers, origins = servers[usable], origins[usable]
    errors = np.concatenate([
        outcome(values, servers[part], origins[part], horizon)
        - _repeat(values, servers[part], origins[part], season, horizon)
        for part in np.array_split(np.arange(len(servers)), -(-len(servers) // _CHUNK_WINDOWS))
    ])  # fmt: skip
    return SeasonalBaseline(season, np.nanquantile(errors, levels, axis=0).transpose(1, 0, 2).astype(np.float32))


def _repeat(values: Floats, servers: Indices, origins: Indices, season: int, horizon: int) -> Floats:
    """The repeated values `[N, M, H]`; the last value where a season before the step is not in the data."""
    last = values[servers, origins][:, :, None]
    if not season:
        return np.broadcast_to(last, (*last.shape[:2], horizon))
    ahead = np.arange(1, horizon + 1)
    rows = origins[:, None] + ahead - season * -(-ahead // season)
    repeated = values[servers[:, None], np.maximum(rows, 0)].swapaxes(1, 2)
    available = (rows >= 0)[:, None] & np.isfinite(repeated)
    return np.where(available, repeated, last)


def forecast_auto_ets(past: Floats, horizon: int, levels: tuple[float, ...]) -> Floats:
    """Quantiles `[M, Q, H]` of AutoETS for one window `[L, M]` of transformed metrics.

    Hyndman and Khandakar 2008, https://doi.org/10.18637/jss.v027.i03, as implemented by statsforecast. It selects error,
    trend and damping by AICc from the encoder of the window alone. It gets no season, because the seasons of a fleet (day,
    hour) are longer than an encoder, or than the 24 steps that it allows. It is slow, so it forecasts some windows only.
    """
    from statsforecast.models import AutoETS

    widths = [
        round(100 * abs(1 - 2 * level), 6) for level in levels
    ]  # of the interval that ends at each level, in percent
    intervals: list[Any] = sorted(set(widths) - {0.0})
    quantiles = np.empty((past.shape[1], len(levels), horizon), dtype=np.float32)
    for metric, series in enumerate(past.T.astype(np.float64)):
        if np.ptp(series) == 0:
            quantiles[metric] = series[-1]
            continue
        columns = AutoETS(season_length=1).forecast(y=series, h=horizon, level=intervals)
        for index, (level, width) in enumerate(zip(levels, widths, strict=True)):
            values = columns[f"{'lo' if level < 0.5 else 'hi'}-{width}" if width else "mean"]
            quantiles[metric, index] = np.where(np.isfinite(values), values, series[-1])
    return quantiles
