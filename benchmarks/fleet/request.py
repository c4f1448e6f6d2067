"""The reference way to answer a forecast request: everything from the rows to the text, at every request.

The steps are those of the TFT inference daemon that this product replaces: its window is a list of records; a request
builds a frame of all of them, a data set of the frame, predictions of the data set, and then lists of numbers, a
trend and alerts for each server and metric in loops. Its faults are not reproduced: it gets rows for the horizon, and
each server's own scale.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.fleet.library import BATCH_SIZE, BaselineLibrary
from benchmarks.fleet.scene import STEP, ModelSize, Record
from models.fleet.manifest import known_reals
from models.fleet.scaling import calendar

REPORTED_LEVELS = (0.1, 0.5, 0.9)
TREND_STEPS = 12  # steps at each end that a trend compares


@dataclass(frozen=True)
class BaselineResponse:
    """The result of a request: the text, the quantiles `[S, H, Q]` of each metric, their index, and the seconds of
    its steps.
    """

    text: str
    outputs: list[NDArray[np.float32]]
    index: pd.DataFrame
    seconds: dict[str, float]


def answer_request(library: BaselineLibrary, window: list[Record], batch: int = BATCH_SIZE) -> BaselineResponse:
    """Answer one request."""
    times = [time.perf_counter()]
    rows, observed = prepare_frame(library.size, window)
    times.append(time.perf_counter())
    outputs, index = library.predict(rows, batch)
    times.append(time.perf_counter())
    document = format_response(library.size, observed, outputs, index)
    times.append(time.perf_counter())
    text = json.dumps(document)
    times.append(time.perf_counter())
    steps = ("frame", "from_dataset and predict", "formatting and alerts", "json")
    return BaselineResponse(text, outputs, index, dict(zip(steps, np.diff(times).tolist(), strict=True)))


def prepare_frame(size: ModelSize, window: list[Record]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The frame for the prediction, with rows for the horizon; and that of the observed rows."""
    observed = pd.DataFrame(window)
    observed["tick"] = observed["timestamp"] // STEP
    observed = observed.sort_values(["server", "tick"], ignore_index=True)
    last = observed.groupby("server", sort=False).tail(1)
    future = last.loc[last.index.repeat(size.horizon)].reset_index(drop=True)
    future["tick"] += np.tile(np.arange(1, size.horizon + 1), len(last))
    rows = pd.concat([observed, future], ignore_index=True).sort_values(["server", "tick"], ignore_index=True)
    calendar_values = calendar(size.cycles, STEP, rows["tick"].to_numpy())
    for column, name in enumerate(known_reals(size.cycles)):
        rows[name] = calendar_values[:, column]
    return rows, observed


def format_response(
    size: ModelSize, observed: pd.DataFrame, outputs: list[NDArray[np.float32]], index: pd.DataFrame
) -> dict[str, object]:
    """Forecasts and alerts as a document, server by server and metric by metric."""
    level_indices = [size.levels.index(level) for level in REPORTED_LEVELS]
    predictions, alerts = {}, []
    for row, server in enumerate(index["server"]):
        history = observed[observed["server"] == server]
        metrics = {}
        for metric_index, metric in enumerate(size.metrics):
            quantiles = outputs[metric_index][row]
            low, middle, high = (
                [float(quantiles[step, level_index]) for step in range(size.horizon)] for level_index in level_indices
            )
            current = float(history[metric.name].iloc[-1])
            trend = sum(middle[-TREND_STEPS:]) / TREND_STEPS - sum(middle[:TREND_STEPS]) / TREND_STEPS
            metrics[metric.name] = {"current": current, "p10": low, "p50": middle, "p90": high, "trend": trend}
            limit = 0.9 * metric.high
            if current > limit or max(high) > limit:
                ahead = next((step for step, value in enumerate(high) if value > limit), 0)
                alerts.append({"server": server, "metric": metric.name, "steps_ahead": ahead, "now": current > limit})
        predictions[server] = {"status": str(history["profile"].iloc[-1]), "metrics": metrics}
    return {"predictions": predictions, "alerts": alerts}
