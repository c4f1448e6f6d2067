"""The forecast of one market series: the job that the parent sends, and its runner in the child."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from forecastd.inference.runner import ProgressReport, Runner, RunnerResult, StepReport, child_setup
from forecastd.runtime.jobs import InvalidResult
from forecastd.supervise.detector import Phase
from forecastd.supervise.jobs import ChildSetup, Job
from forecastd.supervise.protocol import ChildMessage, InvalidMessage
from models.base import Forecast, ModelInput
from models.market.bundle import MarketBundle, load_market_bundle
from models.market.engine import MarketEngine, verify_market_canary


def market_setup(bundle: Path, name: str, **fields: Any) -> ChildSetup:
    """Children that load the market model `name` from `bundle`."""
    return child_setup("market", name=name, options={"bundle": str(bundle.resolve())}, **fields)


def predict_job(
    inputs: ModelInput, *, name: str, deadline: float, attempts: int, rows: int, levels: tuple[float, ...]
) -> Job:
    """The forecast of one series: quantiles `[rows, len(levels)]`. The job's value is a `Forecast`."""
    return Job(
        kind="run",
        name=name,
        deadline=deadline,
        attempts=attempts,
        read=lambda message: _read_forecast(message, inputs, rows, levels),
        fields={"end": inputs.end, "step": inputs.step},
        arrays={"target": inputs.target, "past": inputs.past, "known": inputs.known},
    )


class MarketRunner(Runner):
    """Loads a market bundle, and forecasts one series a job."""

    _bundle: MarketBundle
    _engine: MarketEngine

    def load(self, options: ChildMessage, report: ProgressReport) -> str:
        report(Phase.LOADING, 1, 3)
        self._bundle = load_market_bundle(Path(options.text("bundle")))
        report(Phase.LOADING, 2, 3)
        self._engine = MarketEngine(self._bundle)
        return self._bundle.sha256

    def check(self, report: StepReport) -> None:
        verify_market_canary(self._bundle, self._engine, report)

    def run(self, job: ChildMessage, report: ProgressReport) -> RunnerResult:
        report(Phase.PREDICTING, 0, 1)
        inputs = ModelInput(
            job.fields["end"], job.fields["step"], job.arrays["target"], job.arrays["past"], job.arrays["known"]
        )
        forecast = self._engine.predict(inputs, lambda done, total: report(Phase.PREDICTING, done, total))
        report(Phase.POST_PROCESSING, 0, 1)
        result = forecast_result(forecast)
        report(Phase.POST_PROCESSING, 1, 1)
        return result


def forecast_result(forecast: Forecast) -> RunnerResult:
    """The result of a job."""
    fields = {
        "end": forecast.end,
        "step": forecast.step,
        "levels": list(forecast.levels),
        "value": forecast.value,
        "input_sha256": forecast.input_sha256,
        "bundle_sha256": forecast.bundle_sha256,
    }
    return RunnerResult(fields, {"quantiles": forecast.quantiles})


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
