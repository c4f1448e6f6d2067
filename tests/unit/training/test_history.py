"""The fetched training history has exactly the requested number of hours, whatever the minute."""

from __future__ import annotations

import pytest

from forecastd.market.candles import HOUR
from forecastd.market.features import FeatureList
from forecastd.market.sources.sample import SampleSource
from forecastd.training.market import MarketTrainingRequest, fetch_rows
from models.training.config import TrainingConfig

NOW = 1_700_000_000 // HOUR * HOUR


@pytest.mark.parametrize("minutes", [0, 1, 59])
@pytest.mark.parametrize("until", [None, NOW - 99 * HOUR, NOW - 99 * HOUR + 1_000])
def test_history_has_requested_number_of_hours(minutes: int, until: float | None) -> None:
    request = MarketTrainingRequest(config=TrainingConfig(), until=until, hours=200)
    data = fetch_rows(SampleSource("btcusd"), FeatureList(("hour_sin",)), request, NOW + 60.0 * minutes)
    assert len(data) == 200
    assert data.time[-1] + HOUR == NOW if until is None else data.time[-1] + HOUR == NOW - 99 * HOUR
