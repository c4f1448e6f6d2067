"""Supervised children of the demo bundle: their jobs, their events, and whether their processes have ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Condition

import psutil

from forecastd.inference.market_runner import market_setup, predict_job
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import ChildSetup, Job
from models.market.bundle import MarketBundle, market_canary_input

WAIT_SECONDS = 120.0  # longer than anything takes on a slow machine


class EventLog:
    """An observer that keeps a pool's events, and the monotonic time of each."""

    def __init__(self) -> None:
        self.timed_events: list[tuple[float, ProcessEvent]] = []
        self._condition = Condition()

    def __call__(self, event: ProcessEvent) -> None:
        with self._condition:
            self.timed_events.append((time.monotonic(), event))
            self._condition.notify_all()

    @property
    def events(self) -> list[ProcessEvent]:
        with self._condition:
            return [event for _, event in self.timed_events]

    def by_kind(self, kind: str) -> list[ProcessEvent]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]

    def wait(self, kind: str, number: int = 1) -> list[ProcessEvent]:
        """Wait for `number` events of a kind and return all of that kind; AssertionError when they do not come."""

        def has_enough() -> bool:
            return sum(event.kind == kind for _, event in self.timed_events) >= number

        with self._condition:
            assert self._condition.wait_for(has_enough, WAIT_SECONDS), f"fewer than {number} events {kind!r}"
        return self.by_kind(kind)


def canary_job(
    bundle: MarketBundle,
    name: str = "forecast",
    *,
    seconds: float = WAIT_SECONDS,
    attempts: int = 3,
    monotonic: Callable[[], float] = time.monotonic,
) -> Job:
    """The forecast of the bundle's canary as a job with a deadline in `seconds`."""
    return predict_job(
        market_canary_input(bundle),
        name=name,
        deadline=monotonic() + seconds,
        attempts=attempts,
        rows=bundle.manifest.horizon,
        levels=bundle.manifest.levels,
    )


def child_setup(path: Path, faults: str = "", faulty_launches: int = 1) -> ChildSetup:
    """Children that load the bundle at `path`, the first ones with faults."""
    return market_setup(path, "demo", faults=faults, faulty_launches=faulty_launches)


def is_running(process: psutil.Process) -> bool:
    """Whether a process has not ended; a zombie has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
