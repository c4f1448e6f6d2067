"""The forecast of one market series, and the check of a loaded model, as jobs for a child: messages of both sides."""

from __future__ import annotations

import numpy as np

from forecastd.supervise.jobs import InvalidResult, Job
from forecastd.supervise.protocol import ChildMessage, InvalidMessage, printable
from models.base import Forecast, ModelInput


def predict_job(
    inputs: ModelInput, *, name: str, deadline: float, attempts: int, rows: int, levels: tuple[float, ...]
) -> Job:
    """The forecast of one series: quantiles `[rows, len(levels)]`. The job's value is a `Forecast`."""
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
    """Run the canary of the loaded model again. The job's value is the bundle's sha256."""
    return Job("check", "model check", deadline, attempts, lambda message: printable(message.text("bundle_sha256")))


def read_model_input(message: ChildMessage) -> ModelInput:
    """The model input of a `predict` message."""
    fields, arrays = message.fields, message.arrays
    return ModelInput(fields["end"], fields["step"], arrays["target"], arrays["past"], arrays["known"])


def forecast_message(forecast: Forecast, launch_id: str, job: str) -> ChildMessage:
    """The result message of a `predict` job."""
    fields = {
        "job": job,
        "end": forecast.end,
        "step": forecast.step,
        "levels": list(forecast.levels),
        "value": forecast.value,
        "input_sha256": forecast.input_sha256,
        "bundle_sha256": forecast.bundle_sha256,
    }
    return ChildMessage("result", launch_id, fields, {"quantiles": forecast.quantiles})


def _read_forecast(message: ChildMessage, inputs: ModelInput, rows: int, levels: tuple[float, ...]) -> Forecast:
    """The forecast of a result message, checked against the job's inputs. Raises InvalidResult."""
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
        raise InvalidResult(f"a field is missing or invalid: {error}") from error
    shape = rows, len(levels)
    if forecast.quantiles.dtype.kind != "f":
        raise InvalidResult("the quantiles are integers")
    if forecast.quantiles.shape != shape:
        raise InvalidResult(f"the quantiles have shape {forecast.quantiles.shape}, expected {shape}")
    if forecast.levels != levels:
        raise InvalidResult("the quantile levels differ from the model's")
    if not np.isfinite(forecast.quantiles).all():
        raise InvalidResult("the quantiles are not finite")
    if (forecast.end, forecast.step, forecast.input_sha256) != (inputs.end, inputs.step, inputs.sha256()):
        raise InvalidResult("the forecast is for other inputs")
    return forecast
