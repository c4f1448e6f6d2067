"""Reads a training history from a CSV file with one row per server and time, or one row per value.

Wide: `series,timestamp,cpu_percent,...`; long: `series,timestamp,metric,value`; `series,timestamp,value` is one
metric of that name. A `profile` column is optional. Metrics of the contract use its units and bounds; other metrics
are accepted as they are. Series from different times are shifted by whole days until they overlap, because a training run
splits all of them at the same times.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forecastd.errors import NeedsHuman
from forecastd.fleet import contract
from forecastd.fleet.history.training_data import CONTRACT_METRICS, allocate_values, make_data, safe_names
from models.fleet.dataset import FleetData
from models.fleet.manifest import ModelMetric

if TYPE_CHECKING:
    import pandas as pd

_METRIC_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
ID_COLUMNS = ("series", "timestamp", "profile")
# 99.9 % quantile over median, above which a metric that is never negative is modeled as log(1 + x)
_HEAVY_TAIL_RATIO = 10.0
_MAX_SPAN_RATIO = 1.5  # total span over the median span of a series, above which the series are from different times
_DAY_SECONDS = 86_400
_MAX_SECONDS = 1e11  # a time in seconds reaches this in the year 5138; larger values are milliseconds


def data_from_csv(path: Path, *, max_series: int, step: int | None = None) -> FleetData:
    """The history in a CSV file: the `max_series` series with the most rows.

    `step`: seconds between ticks; the file's own step by default.

    Raises:
        NeedsHuman: the file cannot be read, or is not such a table; the message names the column or the row.
    """
    rows = _read_rows(path)
    counts = rows["series"].value_counts()
    series = sorted(counts.index[:max_series])
    rows = rows[rows["series"].isin(series)]
    grid_step = step or _infer_step(rows)
    alignment_note = _align_by_days(rows)
    ticks = (rows["timestamp"].to_numpy() // grid_step).astype(np.int64)
    first, last = int(ticks.min()), int(ticks.max())
    names = [column for column in rows.columns if column not in ID_COLUMNS]
    metrics = tuple(_metric_definition(name, rows[name]) for name in names)
    values = allocate_values(len(series), last - first + 1, len(metrics))
    row_of = {name: row for row, name in enumerate(series)}
    values[rows["series"].map(row_of).to_numpy(), ticks - first] = rows[names].to_numpy(dtype=np.float32)
    profiles = dict(zip(rows["series"], rows["profile"], strict=True))
    return make_data(
        servers=safe_names(series),
        profiles=tuple(profiles[name] for name in series),
        metrics=metrics,
        first=first,
        step=grid_step,
        values=values,
        source=f"{path.name}, {len(series)} of {len(counts)} series{alignment_note}",
    )


def _read_rows(path: Path) -> pd.DataFrame:
    """One row per series and time: `series`, `timestamp` in unix seconds, `profile`, and a column per metric."""
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype={"series": str, "profile": str, "metric": str})
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise NeedsHuman(f"Cannot read {path} as CSV: {str(error).splitlines()[0]}") from None
    missing = [name for name in ("series", "timestamp") if name not in rows.columns]
    if missing or len(rows.columns) < 3:
        raise NeedsHuman(
            f"{path} has the columns {', '.join(map(str, rows.columns))}. A table of metrics needs series, timestamp and a "
            "column per metric, or series, timestamp, metric, value."
        )
    rows["timestamp"] = _parse_seconds(rows["timestamp"], path)
    if "profile" not in rows.columns:
        rows["profile"] = contract.DEFAULT_PROFILE
    rows["profile"] = rows["profile"].fillna(contract.DEFAULT_PROFILE)
    _check_names(rows, path)
    if {"metric", "value"} <= set(rows.columns):
        rows["value"] = _parse_numbers(rows["value"], path)
        index = ["series", "timestamp", "profile"]
        rows = rows.pivot_table(index=index, columns="metric", values="value", aggfunc="last").reset_index()
        rows.columns.name = None
    for name in rows.columns:
        if name not in ID_COLUMNS:
            rows[name] = _parse_numbers(rows[name], path)
    return rows.sort_values("timestamp", kind="stable").reset_index(drop=True)


def _parse_seconds(times: pd.Series[float] | pd.Series[str], path: Path) -> pd.Series[float]:
    """Unix seconds from seconds, milliseconds, or ISO 8601; a time without an offset is UTC."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(times):
        seconds = times.astype(float)
        seconds = seconds / 1000 if float(seconds.abs().median()) > _MAX_SECONDS else seconds
    else:
        timestamps = pd.to_datetime(times, utc=True, errors="coerce", format="ISO8601")
        seconds = (timestamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    _check_lines(path, times, ~np.isfinite(seconds.to_numpy()), "is not a time. Use unix seconds or ISO 8601.")
    return seconds


def _parse_numbers(values: pd.Series[float], path: Path) -> pd.Series[float]:
    """The column of a metric as numbers; an empty field is a missing value."""
    import pandas as pd

    numbers = pd.to_numeric(values, errors="coerce")
    _check_lines(path, values, (numbers.isna() & values.notna()).to_numpy(), f"is not a number for {values.name}.")
    return numbers.where(np.isfinite(numbers))


def _check_lines(path: Path, values: pd.Series[Any], is_invalid: NDArray[np.bool_], fault: str) -> None:
    """Raise NeedsHuman for the first invalid value."""
    if is_invalid.any():
        row = int(np.argmax(is_invalid))
        raise NeedsHuman(f"{path}, line {row + 2}: {contract.format_value(values.iloc[row])} {fault}")


def _check_names(rows: pd.DataFrame, path: Path) -> None:
    for profile in rows["profile"].unique():
        if not contract.PROFILE_PATTERN.fullmatch(profile):
            raise NeedsHuman(
                f"{path}: {contract.format_value(profile)} is not a profile name. Use lower-case letters, digits, - and _."
            )
    if rows["series"].isna().any():
        raise NeedsHuman(f"{path}, line {int(np.argmax(rows['series'].isna().to_numpy())) + 2}: the series is missing.")


def _infer_step(rows: pd.DataFrame) -> int:
    """The most frequent number of seconds between two rows of a series."""
    steps = rows.groupby("series")["timestamp"].diff().dropna().round().astype(int)
    steps = steps[steps > 0]
    if not len(steps):
        raise NeedsHuman("No series in the table has two rows at different times, so there is nothing to train on.")
    return int(steps.mode().iloc[0])


def _align_by_days(rows: pd.DataFrame) -> str:
    """Shift series from different times, in place, so that all end within one day; returns a note for the user."""
    ranges = rows.groupby("series")["timestamp"].agg(["min", "max"])
    total_span = float(ranges["max"].max() - ranges["min"].min())
    if total_span <= _MAX_SPAN_RATIO * max(float((ranges["max"] - ranges["min"]).median()), _DAY_SECONDS):
        return ""
    days = (float(ranges["max"].max()) - ranges["max"]) // _DAY_SECONDS
    rows["timestamp"] += rows["series"].map(days * _DAY_SECONDS)
    return ", shifted by whole days to overlap"


def _metric_definition(name: str, values: pd.Series[float]) -> ModelMetric:
    """The contract's definition; an unknown metric has no unit, and the bounds of the data with a wide margin."""
    if name in contract.METRIC_INDEX:
        return CONTRACT_METRICS[contract.METRIC_INDEX[name]]
    if not _METRIC_PATTERN.fullmatch(name):
        raise NeedsHuman(
            f"{contract.format_value(name)} is not a metric name. Rename the column: use letters, digits and _."
        )
    present = values.dropna().to_numpy()
    if not len(present):
        raise NeedsHuman(f"The column {name} has no numbers. Remove it.")
    low, high = float(present.min()), float(present.max())
    margin = 4 * (high - low) or abs(high) or 1.0
    is_non_negative = low >= 0
    is_heavy_tailed = is_non_negative and float(np.quantile(present, 0.999)) > _HEAVY_TAIL_RATIO * max(
        float(np.median(present)), 1e-9
    )
    return ModelMetric(
        name, "", 0.0 if is_non_negative else low - margin, high + margin, "log1p" if is_heavy_tailed else "none"
    )
