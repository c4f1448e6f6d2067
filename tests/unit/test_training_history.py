"""The history that a training asks for: as many hours as were asked for, whatever the minute."""

from __future__ import annotations

import pytest

from forecastd.candles import HOUR
from forecastd.features import FeatureList
from forecastd.sources.sample import SampleSource
from forecastd.training import Request, _gather
from models.config import TrainingConfig

NOW = 1_700_000_000 // HOUR * HOUR


@pytest.mark.parametrize("minutes", [0, 1, 59])
@pytest.mark.parametrize("until", [None, NOW - 99 * HOUR, NOW - 99 * HOUR + 1_000])
def test_as_many_hours_come_as_were_asked_for(minutes: int, until: float | None) -> None:
    request = Request(TrainingConfig(), until=until, hours=200)
    data = _gather(SampleSource("btcusd"), FeatureList(("hour_sin",)), request, NOW + 60.0 * minutes, "")
    assert len(data) == 200
    assert data.time[-1] + HOUR == NOW if until is None else data.time[-1] + HOUR == NOW - 99 * HOUR
