"""Fakes for tests of code that uses forecastd."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np

from forecastd.inference.forecaster import Forecaster
from forecastd.market.candles import Candles
from forecastd.market.features import parse_features
from forecastd.settings import DEMO_MODEL
from models.base import Forecast
from models.market.manifest import MarketManifest


class ManualClock:
    """A `Clock` that stands still until it is set or advanced.

    `wall`: unix seconds. `elapsed`: monotonic seconds. Both may be assigned, to let the wall clock jump alone.
    """

    def __init__(self, wall: float = 1_600_000_000.0, elapsed: float = 1_000.0) -> None:
        self.wall, self.elapsed = wall, elapsed

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.elapsed

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self.wall += seconds
        self.elapsed += seconds


class FakeForecaster(Forecaster):
    """Real candles, checks and guards around a random forecast, without a child process.

    Its manifest is that of the demo bundle. Each forecast has a different value, so a second signature never equals the
    first by chance.
    """

    def __init__(self, before_forecast: Callable[[], None] = lambda: None) -> None:
        """`before_forecast` is called at the start of a forecast. An error that it raises is the model's failure."""
        self.manifest = MarketManifest.read(DEMO_MODEL)
        self.features = parse_features((*self.manifest.past, *self.manifest.known), "the demo bundle")
        self.warnings = ()
        self._before_forecast, self.fallback = before_forecast, None

    def check(self, over: Callable[[], bool] = lambda: False) -> str:
        return self.manifest.sha256

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        """Quantiles at 0.1, 0.5 and 0.9 that widen with the horizon, around a random log-return within 0.004 of zero."""
        self._before_forecast()
        levels = (0.1, 0.5, 0.9)
        value = random.SystemRandom().uniform(-0.004, 0.004)
        steps = np.linspace(0, 1, self.manifest.horizon + 1)[1:, None]
        quantiles = steps * (value + np.array([-0.01, 0.0, 0.01]))
        return Forecast(candles.end, candles.step, levels, quantiles, value, "0" * 64, self.manifest.sha256)

    def close(self) -> None:
        """Nothing to close."""
