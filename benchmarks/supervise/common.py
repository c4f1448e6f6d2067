"""Shared by all parts: forecasts of the demo bundle with their expected results, and pools that serve it."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.forecast import BUNDLE
from forecastd.clock import SystemClock
from forecastd.inference.market_runner import predict_job
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.base import Forecast, ModelInput
from models.bundle.canary import range_difference
from models.market.bundle import load_market_bundle, market_canary_input
from models.market.engine import TOLERANCE, MarketEngine
from tests.support.supervision import WAIT_SECONDS, EventLog, child_setup

CLOCK = SystemClock()
MEMORY = 1 << 30  # bytes of address space for a child; several times what the demo model needs


@dataclass(frozen=True)
class ExpectedForecast:
    """A model input and its forecast by the demo bundle in this process."""

    inputs: ModelInput
    expected: Forecast

    def job(self, name: str, *, seconds: float = WAIT_SECONDS, attempts: int = 3) -> Job:
        """A job for a child with this input."""
        return predict_job(
            self.inputs,
            name=name,
            deadline=CLOCK.monotonic() + seconds,
            attempts=attempts,
            rows=self.expected.quantiles.shape[0],
            levels=self.expected.levels,
        )

    def matches(self, forecast: Forecast) -> bool:
        """Whether a child's forecast equals the expected one, up to the rounding of another number of threads."""
        same_input = forecast.input_sha256 == self.expected.input_sha256
        return same_input and range_difference(forecast.quantiles.T, self.expected.quantiles.T) <= TOLERANCE


def make_expected_forecasts(count: int, seed: int) -> list[ExpectedForecast]:
    """Different inputs: the canary's input with random changes of its price."""
    bundle, rng = load_market_bundle(BUNDLE), np.random.default_rng(seed)
    engine, canary = MarketEngine(bundle), market_canary_input(bundle)
    inputs_list = [
        replace(canary, target=canary.target + rng.normal(0, 0.002, canary.target.shape).cumsum()) for _ in range(count)
    ]
    return [ExpectedForecast(inputs, engine.predict(inputs)) for inputs in inputs_list]


def open_pool(
    event_log: EventLog,
    limits: PhaseLimits,
    *,
    faults: str = "",
    faulty: int = 1,
    size: int = 1,
    standbys: int = 0,
    attempts: int = 3,
    quarantine_after: int = 3,
) -> ProcessPool:
    """A pool of children with the demo bundle, the first `faulty` of them with faults."""
    policy = SupervisionPolicy(limits, attempts, standbys, MEMORY, quarantine_after)
    return ProcessPool(child_setup(BUNDLE, faults, faulty), policy, CLOCK, size=size, observer=event_log)


def seeded_random(seed: int, *key: object) -> random.Random:
    """The random generator of one trial, independent of the other trials."""
    return random.Random(f"{seed} {key}")
