"""AutoETS of statsforecast as a baseline: exponential smoothing of each window's metric by itself, with its own intervals.

It chooses error, trend and damping by AICc from the window's encoder alone, as anybody would who wants a forecast without a
model; a season it is not told, since those of a fleet (the day, the hour) are longer than an encoder, or than the 24 steps
that it takes. It is slow, so only some windows are given to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import Floats


def forecast_auto_ets(past: Floats, horizon: int, levels: tuple[float, ...]) -> Floats:
    """Quantiles `[M, Q, H]` for one window `[L, M]` of transformed metrics.

    Hyndman and Khandakar 2008, https://doi.org/10.18637/jss.v027.i03, as statsforecast has it.
    """
    from statsforecast.models import AutoETS

    intervals: list[Any] = sorted({round(100 * abs(1 - 2 * level), 6) for level in levels} - {0.0})
    quantiles = np.empty((past.shape[1], len(levels), horizon), dtype=np.float32)
    for metric in range(past.shape[1]):
        series = past[:, metric].astype(np.float64)
        if np.ptp(series) == 0:
            quantiles[metric] = series[-1]
            continue
        columns = AutoETS(season_length=1).forecast(y=series, h=horizon, level=intervals)
        for index, level in enumerate(levels):
            quantiles[metric, index] = _fill_missing(columns[_column_name(level)], series[-1])
    return quantiles


def _column_name(level: float) -> str:
    """The column of statsforecast's answer that holds this quantile."""
    interval = round(100 * abs(1 - 2 * level), 6)
    if not interval:
        return "mean"
    return f"{'lo' if level < 0.5 else 'hi'}-{interval}"


def _fill_missing(values: NDArray[np.float64], last: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, last)
