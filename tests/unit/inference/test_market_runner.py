"""The messages of a market forecast: a result is read back as the forecast, or refused when it is not what was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from forecastd.inference.market_runner import forecast_result, predict_job
from forecastd.runtime.jobs import InvalidResult
from forecastd.supervise.protocol import ChildMessage, MessageDecoder, encode
from models.base import Forecast, ModelInput

INPUTS = ModelInput(1000, 10, np.zeros(4), np.zeros((4, 1)), np.zeros((6, 1)))
LEVELS = (0.1, 0.5, 0.9)
FORECAST = Forecast(1000, 10, LEVELS, np.tile([-0.1, 0.0, 0.1], (2, 1)), 0.0, INPUTS.sha256(), "b" * 64)


def read_result(**changes: Any) -> object:
    result = forecast_result(FORECAST)
    message = ChildMessage("result", "l", {**result.fields, "job": "j"}, result.arrays)
    quantiles = changes.pop("quantiles", None)
    if quantiles is not None:
        message.arrays["quantiles"] = quantiles
    for name, value in changes.items():
        message.fields[name] = value
    (decoded,) = MessageDecoder().feed(encode(message))
    return predict_job(INPUTS, name="f", deadline=0, attempts=1, rows=2, levels=LEVELS).read(decoded)


def test_result_is_read_back_as_forecast() -> None:
    result = read_result()
    assert isinstance(result, Forecast)
    np.testing.assert_array_equal(result.quantiles, FORECAST.quantiles)
    assert (result.end, result.step, result.levels, result.value) == (1000, 10, LEVELS, 0.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"quantiles": np.zeros((1, 3))},
        {"quantiles": np.zeros((2, 4))},
        {"quantiles": np.zeros(6)},
        {"quantiles": np.zeros((2, 3), dtype=np.int64)},
        {"quantiles": np.full((2, 3), np.nan)},
        {"quantiles": np.full((2, 3), np.inf)},
        {"value": None},
        {"value": "0.1"},
        {"value": 10**400},
        {"value": float("nan")},
        {"levels": [0.1, 0.5]},
        {"levels": [0.1, 0.5, 10**400]},
        {"levels": None},
        {"levels": [[]]},
        {"levels": {"a": 1}},
        {"end": 999},
        {"end": None},
        {"end": 10**400},
        {"step": 11},
        {"input_sha256": "another"},
        {"input_sha256": 7},
        {"bundle_sha256": []},
    ],
    ids=lambda changes: f"{next(iter(changes))}",
)
def test_result_that_does_not_match_job_is_invalid(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidResult):
        read_result(**changes)
