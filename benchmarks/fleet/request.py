"""The known way to answer a request for forecasts: everything, from the rows to the text, at every request.

The steps are those of the TFT inference daemon that this product replaces: its window is a list of records; a request makes a
frame of all of them, a data set of the frame, predictions of the data set, and then lists of numbers, a trend and alerts for
each server and metric in loops. Its faults are left out: it is given rows of the time to come, and each server's own scale.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.fleet.library import BATCH, Library
from benchmarks.fleet.scene import STEP, Record, Size
from models.fleet.manifest import known_reals
from models.fleet.scaling import calendar

SHOWN = (0.1, 0.5, 0.9)
TREND = 12  # steps that a trend is taken over


@dataclass(frozen=True)
class Answered:
    """What a request came to: the text, the quantiles `[S, H, Q]` of each metric behind it, whose they are, and the seconds
    of its steps."""

    text: str
    outputs: list[NDArray[np.float32]]
    index: pd.DataFrame
    seconds: dict[str, float]


def answer(library: Library, window: list[Record], batch: int = BATCH) -> Answered:
    """One request."""
    clock = [time.perf_counter()]
    rows, observed = prepare(library.size, window)
    clock.append(time.perf_counter())
    outputs, index = library.predict(rows, batch)
    clock.append(time.perf_counter())
    told = told_of(library.size, observed, outputs, index)
    clock.append(time.perf_counter())
    text = json.dumps(told)
    clock.append(time.perf_counter())
    steps = ("frame", "from_dataset and predict", "formatting and alerts", "json")
    return Answered(text, outputs, index, dict(zip(steps, np.diff(clock).tolist(), strict=True)))


def prepare(size: Size, window: list[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frame that is predicted from, with the steps to come appended; and that of what was observed."""
    observed = pd.DataFrame(window)
    observed["tick"] = observed["timestamp"] // STEP
    observed = observed.sort_values(["server", "tick"], ignore_index=True)
    last = observed.groupby("server", sort=False).tail(1)
    ahead = last.loc[last.index.repeat(size.horizon)].reset_index(drop=True)
    ahead["tick"] += np.tile(np.arange(1, size.horizon + 1), len(last))
    rows = pd.concat([observed, ahead], ignore_index=True).sort_values(["server", "tick"], ignore_index=True)
    known = calendar(size.cycles, STEP, rows["tick"].to_numpy())
    for at, name in enumerate(known_reals(size.cycles)):
        rows[name] = known[:, at]
    return rows, observed


def told_of(
    size: Size, observed: pd.DataFrame, outputs: list[NDArray[np.float32]], index: pd.DataFrame
) -> dict[str, object]:
    """Forecasts and alerts in words and lists, server by server and metric by metric."""
    chosen = [size.levels.index(level) for level in SHOWN]
    predictions, alerts = {}, []
    for row, server in enumerate(index["server"]):
        history = observed[observed["server"] == server]
        metrics = {}
        for place, metric in enumerate(size.metrics):
            quantiles = outputs[place][row]
            low, middle, high = ([float(quantiles[step, at]) for step in range(size.horizon)] for at in chosen)
            current = float(history[metric.name].iloc[-1])
            trend = sum(middle[-TREND:]) / TREND - sum(middle[:TREND]) / TREND
            metrics[metric.name] = {"current": current, "p10": low, "p50": middle, "p90": high, "trend": trend}
            limit = 0.9 * metric.high
            if current > limit or max(high) > limit:
                ahead = next((step for step, value in enumerate(high) if value > limit), 0)
                alerts.append({"server": server, "metric": metric.name, "steps_ahead": ahead, "now": current > limit})
        predictions[server] = {"status": str(history["profile"].iloc[-1]), "metrics": metrics}
    return {"predictions": predictions, "alerts": alerts}
