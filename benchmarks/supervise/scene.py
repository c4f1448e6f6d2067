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
from forecastd.supervise.detector import Limits
from forecastd.supervise.jobs import Job, predict_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.report import Event, Kind
from models.base import Forecast, ModelInput
from models.bundle import load_bundle
from models.engines import TOLERANCE, load_engine, relative_difference

CLOCK = SystemClock()
MEMORY = 1 << 30  # bytes of address space for a child: several times what the demo model needs
PATIENCE = 120.0  # seconds after which what was waited for counts as lost


@dataclass(frozen=True)
class Question:
    """An input and what the bundle answers to it, asked in this process."""

    inputs: ModelInput
    expected: Forecast

    def job(self, name: str, *, seconds: float = PATIENCE, attempts: int = 3) -> Job:
        """The question as a job for a child."""
        return predict_job(
            self.inputs,
            name=name,
            deadline=CLOCK.monotonic() + seconds,
            attempts=attempts,
            rows=self.expected.quantiles.shape[0],
            levels=self.expected.levels,
        )

    def answered_by(self, forecast: Forecast) -> bool:
        """Whether this is the answer, up to the rounding of another number of threads."""
        same_input = forecast.input_sha256 == self.expected.input_sha256
        return same_input and relative_difference(forecast.quantiles, self.expected.quantiles) <= TOLERANCE


def questions(number: int, seed: int) -> list[Question]:
    """Different questions: the canary's input with its price shaken."""
    bundle, shake = load_bundle(BUNDLE), np.random.default_rng(seed)
    engine, canary = load_engine(bundle), bundle.canary.inputs
    asked = [
        replace(canary, target=canary.target + shake.normal(0, 0.002, canary.target.shape).cumsum())
        for _ in range(number)
    ]
    return [Question(inputs, engine.predict(inputs)) for inputs in asked]


class Record:
    """The events of a pool, each with the monotonic time at which it was told."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self._news = Condition()

    def __call__(self, event: Event) -> None:
        with self._news:
            self.events.append((time.monotonic(), event))
            self._news.notify_all()

    def wait(self, number: int, fits: Callable[[Event], bool]) -> tuple[float, Event] | None:
        """The `number`-th event that fits, as soon as it is told; None when it never comes."""

        def found() -> list[tuple[float, Event]]:
            return [told for told in self.events if fits(told[1])]

        with self._news:
            self._news.wait_for(lambda: len(found()) >= number, PATIENCE)
            return found()[number - 1] if len(found()) >= number else None

    def wait_for(self, kind: Kind, number: int = 1) -> tuple[float, Event] | None:
        """As `wait`, for events of a kind."""
        return self.wait(number, lambda event: event.kind == kind)

    def number(self, kind: Kind) -> int:
        """How many events of a kind there were."""
        with self._news:
            return sum(event.kind == kind for _, event in self.events)


def open_pool(
    record: Record,
    limits: Limits,
    *,
    faults: str = "",
    faulty: int = 1,
    size: int = 1,
    standbys: int = 0,
    attempts: int = 3,
    strikes: int = 3,
) -> Pool:
    """A pool of children with the demo bundle."""
    policy = Policy(limits, attempts, standbys, MEMORY, strikes)
    return Pool(Setup(BUNDLE, "demo", faults, faulty), policy, CLOCK, size=size, observe=record)


def chance(seed: int, *what: object) -> random.Random:
    """The random choices of one trial, whichever trials run besides it."""
    return random.Random(f"{seed} {what}")
