"""A table of servers' metrics as a training's history: CSV, one row a server and time, or one row a value.

Wide: `series,timestamp,cpu_percent,...`; long: `series,timestamp,metric,value`; `series,timestamp,value` is one metric of
that name. A `profile` column may be there. Metrics of the contract have its units and bounds; others are taken as they come.
Series of different times are laid over each other by whole days: a training cuts the time of all of them alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from forecastd.errors import NeedsHuman
from forecastd.fleet import contract
from forecastd.fleet.past import CONTRACT, hashed, room, safe_names
from forecastd.fleet.readiness import MAX_GAP
from models.fleet.data import FleetData
from models.fleet.manifest import Metric

if TYPE_CHECKING:
    import pandas as pd

_METRIC = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
FIXED = ("series", "timestamp", "profile")
_HEAVY_TAIL = (
    10.0  # the 99.9 % quantile over the median, from which on a metric that is never negative is told as log(1 + x)
)
_APART = 1.5  # times the span of a usual series that all may span together; else they are of different times
_DAY = 86_400
_MILLISECONDS = 1e11  # no time in seconds is this large before the year 5138


def from_table(path: Path, *, most: int, step: int | None = None) -> FleetData:
    """The history in a CSV file, of the `most` series of which there is the most, on a grid of `step` seconds, or its own.

    Raises:
        NeedsHuman: it cannot be read, or is no such table; the message names the column or the row.
    """
    rows = _rows(path)
    counts = rows["series"].value_counts()
    series = sorted(counts.index[:most])
    rows = rows[rows["series"].isin(series)]
    grid = step or _own_step(rows)
    laid = _laid_over(rows)
    ticks = (rows["timestamp"].to_numpy() // grid).astype(np.int64)
    first, last = int(ticks.min()), int(ticks.max())
    names = [column for column in rows.columns if column not in FIXED]
    metrics = tuple(_metric(name, rows[name]) for name in names)
    values = room(len(series), last - first + 1, len(metrics))
    place = {name: row for row, name in enumerate(series)}
    values[rows["series"].map(place).to_numpy(), ticks - first] = rows[names].to_numpy(dtype=np.float32)
    profiles = dict(zip(rows["series"], rows["profile"], strict=True))
    return hashed(
        FleetData(
            servers=safe_names(series),
            profiles=tuple(profiles[name] for name in series),
            metrics=metrics,
            first=first,
            step=grid,
            values=values,
            max_gap=MAX_GAP,
            data_sha256="",
            source=f"{path.name}, {len(series)} of {len(counts)} series{laid}",
            synthetic=False,
        )
    )


def _rows(path: Path) -> pd.DataFrame:
    """One row a series and time: `series`, `timestamp` in unix seconds, `profile`, and a column a metric."""
    import pandas as pd

    try:
        rows = pd.read_csv(path, dtype={"series": str, "profile": str, "metric": str})
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise NeedsHuman(f"{path} cannot be read as CSV: {str(error).splitlines()[0]}") from None
    lacking = [name for name in ("series", "timestamp") if name not in rows.columns]
    if lacking or len(rows.columns) < 3:
        raise NeedsHuman(
            f"{path} has the columns {', '.join(map(str, rows.columns))}. A table of metrics has series, timestamp and a "
            "column a metric, or series, timestamp, metric, value."
        )
    rows["timestamp"] = _seconds(rows["timestamp"], path)
    if "profile" not in rows.columns:
        rows["profile"] = contract.DEFAULT_PROFILE
    rows["profile"] = rows["profile"].fillna(contract.DEFAULT_PROFILE)
    _check_names(rows, path)
    if {"metric", "value"} <= set(rows.columns):
        rows["value"] = _numbers(rows["value"], path)
        index = ["series", "timestamp", "profile"]
        rows = rows.pivot_table(index=index, columns="metric", values="value", aggfunc="last").reset_index()
        rows.columns.name = None
    for name in rows.columns:
        if name not in FIXED:
            rows[name] = _numbers(rows[name], path)
    return rows.sort_values("timestamp", kind="stable").reset_index(drop=True)


def _seconds(times: pd.Series[float] | pd.Series[str], path: Path) -> pd.Series[float]:
    """Unix seconds of times that are seconds, milliseconds, or ISO 8601; one without an offset is UTC."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(times):
        found = times.astype(float)
        found = found / 1000 if float(found.abs().median()) > _MILLISECONDS else found
    else:
        when = pd.to_datetime(times, utc=True, errors="coerce", format="ISO8601")
        found = (when - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    bad = ~np.isfinite(found.to_numpy())
    if bad.any():
        row = int(np.argmax(bad))
        raise NeedsHuman(
            f"{path}, line {row + 2}: {contract.clip(times.iloc[row])} is no time. Write unix seconds or ISO 8601."
        )
    return found


def _numbers(values: pd.Series[float], path: Path) -> pd.Series[float]:
    """A metric's column as numbers; an empty field is a missing value."""
    import pandas as pd

    found = pd.to_numeric(values, errors="coerce")
    bad = (found.isna() & values.notna()).to_numpy()
    if bad.any():
        row = int(np.argmax(bad))
        raise NeedsHuman(f"{path}, line {row + 2}: {contract.clip(values.iloc[row])} is no number of {values.name}.")
    return found.where(np.isfinite(found))


def _check_names(rows: pd.DataFrame, path: Path) -> None:
    for profile in rows["profile"].unique():
        if not contract.PROFILE.fullmatch(profile):
            raise NeedsHuman(f"{path}: {contract.clip(profile)} is no name of a profile: letters, digits, - and _.")
    if rows["series"].isna().any():
        raise NeedsHuman(f"{path}, line {int(np.argmax(rows['series'].isna().to_numpy())) + 2}: the series is missing.")


def _own_step(rows: pd.DataFrame) -> int:
    """The most frequent number of seconds between two rows of a series."""
    steps = rows.groupby("series")["timestamp"].diff().dropna().round().astype(int)
    steps = steps[steps > 0]
    if not len(steps):
        raise NeedsHuman("No series of the table has two rows at different times: there is nothing to be learnt.")
    return int(steps.mode().iloc[0])


def _laid_over(rows: pd.DataFrame) -> str:
    """Move series of different times, in place, so that all end within one day; what was done, for a person."""
    ends = rows.groupby("series")["timestamp"].agg(["min", "max"])
    whole = float(ends["max"].max() - ends["min"].min())
    if whole <= _APART * max(float((ends["max"] - ends["min"]).median()), _DAY):
        return ""
    days = (float(ends["max"].max()) - ends["max"]) // _DAY
    rows["timestamp"] += rows["series"].map(days * _DAY)
    return " laid over each other by whole days"


def _metric(name: str, values: pd.Series[float]) -> Metric:
    """As the contract has it; one that it does not know has no unit, and the bounds of what is seen, with much room."""
    if name in contract.INDEX:
        return CONTRACT[contract.INDEX[name]]
    if not _METRIC.fullmatch(name):
        raise NeedsHuman(f"{contract.clip(name)} is no name of a metric: letters, digits and _. Rename the column.")
    there = values.dropna().to_numpy()
    if not len(there):
        raise NeedsHuman(f"The column {name} has no number in it. Leave it out.")
    low, high = float(there.min()), float(there.max())
    room_around = 4 * (high - low) or abs(high) or 1.0
    positive = low >= 0
    heavy = positive and float(np.quantile(there, 0.999)) > _HEAVY_TAIL * max(float(np.median(there)), 1e-9)
    return Metric(name, "", 0.0 if positive else low - room_around, high + room_around, "log1p" if heavy else "none")
