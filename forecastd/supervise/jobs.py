"""What children are asked to do, and how what they answer becomes a value again.

A job says how its answer is read; an answer that cannot be read, or is not what it must be, counts against the child that
gave it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from forecastd.supervise.protocol import ChildMessage, InvalidMessage, printable
from models.base import Forecast, ModelInput


class InvalidResult(Exception):
    """A child's answer is not what the job asked for."""


@dataclass(frozen=True, eq=False)
class Job:
    """One piece of work for a child.

    `name`: for people. `deadline`: monotonic seconds after which nobody wants the answer. `attempts`: on how many children
    it may be tried. `read`: from the answer to the value; raises BadAnswer.
    """

    kind: Literal["predict", "fleet", "check", "train"]
    name: str
    deadline: float
    attempts: int
    read: Callable[[ChildMessage], Any]
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


def predict_job(
    inputs: ModelInput, *, name: str, deadline: float, attempts: int, rows: int, levels: tuple[float, ...]
) -> Job:
    """The forecast of one series: quantiles of `rows` steps at `levels`."""
    return Job(
        kind="predict",
        name=name,
        deadline=deadline,
        attempts=attempts,
        read=lambda message: _read_forecast(message, inputs, rows, levels),
        fields={"end": inputs.end, "step": inputs.step},
        arrays={"target": inputs.target, "past": inputs.past, "known": inputs.known},
    )


def check_job(deadline: float, attempts: int) -> Job:
    """Have a child prove its model once more, by its canary; gives the bundle's sha256."""
    return Job("check", "model check", deadline, attempts, lambda message: printable(message.text("bundle_sha256")))


def read_model_input(message: ChildMessage) -> ModelInput:
    """The input of a `predict` message."""
    fields, arrays = message.fields, message.arrays
    return ModelInput(fields["end"], fields["step"], arrays["target"], arrays["past"], arrays["known"])


def forecast_message(forecast: Forecast, launch: str, job: str) -> ChildMessage:
    """The answer that bears a forecast."""
    fields = {
        "job": job,
        "end": forecast.end,
        "step": forecast.step,
        "levels": list(forecast.levels),
        "value": forecast.value,
        "input_sha256": forecast.input_sha256,
        "bundle_sha256": forecast.bundle_sha256,
    }
    return ChildMessage("result", launch, fields, {"quantiles": forecast.quantiles})


def _read_forecast(message: ChildMessage, inputs: ModelInput, rows: int, levels: tuple[float, ...]) -> Forecast:
    """The forecast in an answer, held against what was asked."""
    try:
        forecast = Forecast(
            end=int(message.number("end")),
            step=int(message.number("step")),
            levels=tuple(float(level) for level in message.fields["levels"]),
            quantiles=message.arrays["quantiles"],
            value=message.number("value"),
            input_sha256=message.text("input_sha256"),
            bundle_sha256=message.text("bundle_sha256"),
        )
    except (KeyError, TypeError, ValueError, OverflowError, InvalidMessage) as error:
        raise InvalidResult(f"its answer lacks or garbles {error}") from error
    shape = rows, len(levels)
    if forecast.quantiles.dtype.kind != "f":
        raise InvalidResult("its quantiles are whole numbers")
    if forecast.quantiles.shape != shape:
        raise InvalidResult(f"its quantiles have shape {forecast.quantiles.shape}, not {shape}")
    if forecast.levels != levels:
        raise InvalidResult("its quantiles are at other levels than the model's")
    if not np.isfinite(forecast.quantiles).all():
        raise InvalidResult("its forecast holds a number that is not finite")
    if (forecast.end, forecast.step, forecast.input_sha256) != (inputs.end, inputs.step, inputs.sha256()):
        raise InvalidResult("its answer is to another question")
    return forecast
