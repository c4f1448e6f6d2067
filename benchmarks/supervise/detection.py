"""Detection delay: the time from a stalled child's last progress to the verdict, beyond its limit.

Several real children run at a time and compete for the CPU, as when a daemon serves several topics.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.figures import Figure, PremiseCount
from benchmarks.supervise.common import ExpectedForecast, make_expected_forecasts, open_pool
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.events import ProcessEvent
from tests.support.supervision import EventLog

MAX_DELAY_SECONDS = 1.0  # beyond the limit
CONCURRENCY = 3
SHORT_LIMITS = PhaseLimits(loading=2.0, predicting=1.0, post_processing=1.0, stopping=2.0)
SILENCE_LIMITS = PhaseLimits(predicting=60.0, heartbeat=2.0, stopping=2.0)


@dataclass(frozen=True)
class StallCase:
    """A stall, and the limit that must detect it."""

    name: str
    fault: str
    limits: PhaseLimits = field(default=SHORT_LIMITS)
    seconds: float = 1.0


STALL_CASES = (
    *(StallCase(f"stalled at {place} %", f"hang@{place}") for place in (0, 1, 25, 50, 75, 99)),
    StallCase("oscillating at 50 %", "oscillate@50"),
    StallCase("progress of another launch", "stale@50"),
    StallCase("stalled while loading", "hang@loading", seconds=SHORT_LIMITS.loading),
    StallCase("stalled in post-processing", "hang@post_processing"),
    StallCase("silent at 50 %", "silent@50", SILENCE_LIMITS, SILENCE_LIMITS.heartbeat),
)


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """10 trials of each case, of which the worst is reported; quick: 1."""
    trials = 1 if quick else 10
    forecasts = make_expected_forecasts(trials, seed)
    tasks = [(case, expected) for case in STALL_CASES for expected in forecasts]
    with ThreadPoolExecutor(CONCURRENCY) as workers:
        delays = list(workers.map(lambda task: _measure_delay(*task), tasks))
    violations: list[str] = []
    for number, case in enumerate(STALL_CASES):
        measured = [delay for delay in delays[number * trials : (number + 1) * trials] if delay is not None]
        if len(measured) < trials:
            violations.append(f"{case.name}: {trials - len(measured)} of {trials} were not detected")
        if measured:
            name = f"detection, {case.name}, beyond its {case.seconds:g} s, worst of {len(measured)}"
            yield Figure(name, 1000 * max(measured), 1000 * MAX_DELAY_SECONDS, "ms", "allowed", "ratio >= 1")
    counts = {"stalled children": len(tasks), "detected": sum(delay is not None for delay in delays)}
    yield PremiseCount("detection", counts, "every stall is detected, every job fails over", tuple(violations))


def _measure_delay(case: StallCase, expected: ExpectedForecast) -> float | None:
    """Seconds beyond the limit; None when the hang was not detected, or no other child completed the job."""
    event_log = EventLog()
    with open_pool(event_log, case.limits, faults=case.fault) as pool:
        result = pool.run(expected.job("detection"))
    hung = next(((time, event) for time, event in event_log.timed_events if event.kind == "hung"), None)
    if hung is None or not expected.matches(result):
        return None
    stall_time = next(time for time, event in event_log.timed_events if _same_progress(event, hung[1]))
    return hung[0] - stall_time - case.seconds


def _same_progress(event: ProcessEvent, last: ProcessEvent) -> bool:
    """Whether the child had made its last progress by this event."""
    return event.pid == last.pid and event.state.last_progress == last.state.last_progress
