"""AutoETS of statsforecast as a baseline: exponential smoothing of each metric of a window, with prediction intervals.

It selects error, trend and damping by AICc from the encoder of the window alone. It gets no season, because the
seasons of a fleet (day, hour) are longer than an encoder, or than the 24 steps that it allows. It is slow, so it
forecasts some windows only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.fleet.base import Floats


def forecast_auto_ets(past: Floats, horizon: int, levels: tuple[float, ...]) -> Floats:
    """Quantiles `[M, Q, H]` for one window `[L, M]` of transformed metrics.

    Hyndman and Khandakar 2008, https://doi.org/10.18637/jss.v027.i03, as implemented by statsforecast.
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
    """The column of this quantile in the result of statsforecast."""
    interval = round(100 * abs(1 - 2 * level), 6)
    if not interval:
        return "mean"
    return f"{'lo' if level < 0.5 else 'hi'}-{interval}"


def _fill_missing(values: NDArray[np.float64], last: float) -> NDArray[np.float64]:
    return np.where(np.isfinite(values), values, last)
