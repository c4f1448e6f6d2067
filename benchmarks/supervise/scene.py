"""What every part stands on: questions to the demo bundle with their right answers, pools, and a record of their events."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Condition

import numpy as np

from benchmarks.forecast import BUNDLE
from forecastd.clock import SystemClock
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.events import EventKind, ProcessEvent
from forecastd.supervise.jobs import Job, predict_job
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.base import Forecast, ModelInput
from models.market.bundle import load_market_bundle
from models.market.engine import TOLERANCE, load_market_engine, relative_difference

CLOCK = SystemClock()
MEMORY = 1 << 30  # bytes of address space for a child: several times what the demo model needs
WAIT_SECONDS = 120.0  # seconds after which what was waited for counts as lost


@dataclass(frozen=True)
class ExpectedForecast:
    """An input and what the bundle answers to it, asked in this process."""

    inputs: ModelInput
    expected: Forecast

    def job(self, name: str, *, seconds: float = WAIT_SECONDS, attempts: int = 3) -> Job:
        """The question as a job for a child."""
        return predict_job(
            self.inputs,
            name=name,
            deadline=CLOCK.monotonic() + seconds,
            attempts=attempts,
            rows=self.expected.quantiles.shape[0],
            levels=self.expected.levels,
        )

    def matches(self, forecast: Forecast) -> bool:
        """Whether this is the answer, up to the rounding of another number of threads."""
        same_input = forecast.input_sha256 == self.expected.input_sha256
        return same_input and relative_difference(forecast.quantiles, self.expected.quantiles) <= TOLERANCE


def make_expected_forecasts(count: int, seed: int) -> list[ExpectedForecast]:
    """Different questions: the canary's input with its price shaken."""
    bundle, rng = load_market_bundle(BUNDLE), np.random.default_rng(seed)
    engine, canary = load_market_engine(bundle), bundle.canary.inputs
    inputs_list = [
        replace(canary, target=canary.target + rng.normal(0, 0.002, canary.target.shape).cumsum()) for _ in range(count)
    ]
    return [ExpectedForecast(inputs, engine.predict(inputs)) for inputs in inputs_list]


class TimedEventLog:
    """The events of a pool, each with the monotonic time at which it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[float, ProcessEvent]] = []
        self._condition = Condition()

    def __call__(self, event: ProcessEvent) -> None:
        with self._condition:
            self.events.append((time.monotonic(), event))
            self._condition.notify_all()

    def wait_matching(self, count: int, predicate: Callable[[ProcessEvent], bool]) -> tuple[float, ProcessEvent] | None:
        """The `number`-th event that fits, as soon as it is told; None when it never comes."""

        def found() -> list[tuple[float, ProcessEvent]]:
            return [entry for entry in self.events if predicate(entry[1])]

        with self._condition:
            self._condition.wait_for(lambda: len(found()) >= count, WAIT_SECONDS)
            return found()[count - 1] if len(found()) >= count else None

    def wait_kind(self, kind: EventKind, count: int = 1) -> tuple[float, ProcessEvent] | None:
        """As `wait`, for events of a kind."""
        return self.wait_matching(count, lambda event: event.kind == kind)

    def count(self, kind: EventKind) -> int:
        """How many events of a kind there were."""
        with self._condition:
            return sum(event.kind == kind for _, event in self.events)


def open_pool(
    event_log: TimedEventLog,
    limits: PhaseLimits,
    *,
    faults: str = "",
    faulty: int = 1,
    size: int = 1,
    standbys: int = 0,
    attempts: int = 3,
    quarantine_after: int = 3,
) -> ProcessPool:
    """A pool of children with the demo bundle."""
    policy = SupervisionPolicy(limits, attempts, standbys, MEMORY, quarantine_after)
    return ProcessPool(ChildSetup(BUNDLE, "demo", faults, faulty), policy, CLOCK, size=size, observer=event_log)


def seeded_random(seed: int, *key: object) -> random.Random:
    """The random choices of one trial, whichever trials run besides it."""
    return random.Random(f"{seed} {key}")
