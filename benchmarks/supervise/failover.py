"""Failover time of a hung child's job: to a standby, and to a child that has to be started.

Both in turns, with the same model. The job runs again when its new child has reported the first step.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.figures import Figure, PremiseCount
from benchmarks.supervise.common import ExpectedForecast, make_expected_forecasts, open_pool
from forecastd.runtime.jobs import ChildFailed
from forecastd.supervise.detector import Phase, PhaseLimits
from forecastd.supervise.events import ProcessEvent
from tests.support.supervision import EventLog

STANDBY_LIMITS = PhaseLimits(predicting=1.0, stopping=2.0)
NO_STANDBY_LIMITS = PhaseLimits(predicting=2.0, stopping=2.0)  # half of it is enough to start a child


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """40 failovers and cold starts in turns; quick: 3."""
    trials = 3 if quick else 40
    failovers: dict[int, list[float]] = {1: [], 0: []}
    cold_starts: list[float] = []
    violations: list[str] = []
    for number, expected in enumerate(make_expected_forecasts(trials, seed)):
        cold_starts.append(_measure_cold_start(expected))
        for standbys, times in failovers.items():
            try:
                times.append(_measure_failover(expected, standbys))
            except (ChildFailed, AssertionError) as error:
                violations.append(f"trial {number} with {standbys} standbys: {error}")
    names = {
        1: "failover, from the verdict to the job running on the standby",
        0: "failover without a standby, to a child started when the first was slow",
    }
    for standbys, times in failovers.items():
        if times:
            median_ms, cold_ms = 1000 * statistics.median(times), 1000 * statistics.median(cold_starts)
            yield Figure(
                f"{names[standbys]}, median of {len(times)}", median_ms, cold_ms, "ms", "cold start", "ratio >= 10"
            )
            yield Figure(f"{names[standbys]}, the worst", 1000 * max(times), 500.0, "ms", "allowed", "ratio >= 1")
    counts = {"hung children": 2 * trials, "jobs completed by another child": sum(map(len, failovers.values()))}
    yield PremiseCount("failover", counts, "every job fails over", tuple(violations))


def _measure_failover(expected: ExpectedForecast, standbys: int) -> float:
    """Seconds from the verdict to the first step on another child. Raises ChildFailed or AssertionError without one."""
    event_log = EventLog()
    limits = STANDBY_LIMITS if standbys else NO_STANDBY_LIMITS
    with open_pool(event_log, limits, faults="hang@50", standbys=standbys) as pool:
        assert event_log.wait("ready", 1 + standbys)
        result = pool.run(expected.job("failover"))
    assert expected.matches(result), "the result is wrong"
    hung = next((event_time for event_time, event in event_log.timed_events if event.kind == "hung"), None)
    assert hung is not None, "the hang was not detected"
    return (
        next(event_time for event_time, event in event_log.timed_events if event_time > hung and _is_first_step(event))
        - hung
    )


def _measure_cold_start(expected: ExpectedForecast) -> float:
    """Seconds from the start of a child to the first step of its job."""
    event_log = EventLog()
    started = time.monotonic()
    with open_pool(event_log, NO_STANDBY_LIMITS) as pool:
        pool.run(expected.job("cold start"))
    return next(event_time for event_time, event in event_log.timed_events if _is_first_step(event)) - started


def _is_first_step(event: ProcessEvent) -> bool:
    """Whether the child has completed a step of a job, not only received it."""
    return event.kind == "progress" and event.state.phase is Phase.PREDICTING and event.state.done > 0
