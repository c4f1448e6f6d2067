"""False alarms: healthy children of very different speed, none of which may be considered hung.

Slow children add a fixed time to each progress report. The first report of a job is no progress, so up to 70 % of a limit
passes without any. One pool idles longer than any limit between its jobs. All pools run at the same time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from benchmarks.figures import PremiseCount
from benchmarks.supervise.common import ExpectedForecast, make_expected_forecasts, open_pool
from forecastd.runtime.jobs import ChildFailed
from forecastd.supervise.detector import PhaseLimits
from tests.support.supervision import EventLog

LIMITS = PhaseLimits(predicting=4.0, post_processing=4.0, heartbeat=10.0, stopping=2.0)
CONCURRENCY = 8  # jobs of a pool that wait or run at a time


@dataclass(frozen=True)
class PoolSpeed:
    """A pool: its `share` of all jobs, `slow` extra seconds for each step, `pause` seconds after each job."""

    share: float
    slow: float = 0.0
    size: int = 1
    standbys: int = 0
    pause: float = 0.0


SPEEDS = (
    PoolSpeed(0.60, size=2),
    PoolSpeed(0.3613, standbys=1),
    PoolSpeed(0.03, slow=0.01, size=2),
    PoolSpeed(0.004, slow=0.1, size=2),
    PoolSpeed(0.002, slow=0.5, size=2, standbys=1),
    PoolSpeed(0.0012, slow=1.15, size=2),
    PoolSpeed(0.001, slow=1.4, size=2),
    PoolSpeed(0.0005, pause=11.0),
)


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """10,000 jobs; quick: 300."""
    jobs = 300 if quick else 10_000
    forecasts = make_expected_forecasts(16, seed)
    with ThreadPoolExecutor(len(SPEEDS)) as workers:
        pools = list(workers.map(lambda speed: _run_pool(speed, max(1, round(speed.share * jobs)), forecasts), SPEEDS))
    totals = sum((pool_counts for pool_counts, _ in pools), Counter[str]())
    names = (
        "jobs",
        "correct results",
        "hung",
        "died",
        "other failures",
        "wrong results",
        "slow warnings",
        "recovered stalls",
    )
    counts = {name: totals[name] for name in names}
    violations = [f"{counts[name]} {name}" for name in ("other failures", "wrong results") if counts[name]]
    violations += [evidence for _, failures in pools for evidence in failures]
    slowest = 2 * max(speed.slow for speed in SPEEDS)
    title = f"false alarms, up to {slowest:g} s without progress of {LIMITS.predicting:g} s allowed"
    yield PremiseCount(title, counts, "no healthy child is considered hung", tuple(violations))


def _run_pool(speed: PoolSpeed, jobs: int, forecasts: Sequence[ExpectedForecast]) -> tuple[Counter[str], list[str]]:
    """Run the jobs of one pool, a few at a time: the counts, and why children were replaced."""
    event_log, counts = EventLog(), Counter({"jobs": jobs})
    fault = f"slow:{speed.slow}@predicting" if speed.slow else ""
    with (
        open_pool(event_log, LIMITS, faults=fault, faulty=1 << 30, size=speed.size, standbys=speed.standbys) as pool,
        ThreadPoolExecutor(1 if speed.pause else CONCURRENCY) as callers,
    ):

        def run_job(number: int) -> str:
            expected = forecasts[number % len(forecasts)]
            try:
                is_correct = expected.matches(pool.run(expected.job(f"job {number}", seconds=3600)))
            except ChildFailed:
                return "other failures"
            Event().wait(speed.pause)
            return "correct results" if is_correct else "wrong results"

        counts.update(callers.map(run_job, range(jobs)))
        counts["recovered stalls"] += pool.counts.recovered_stalls
    counts["hung"] += len(event_log.by_kind("hung"))
    counts["died"] += len(event_log.by_kind("died")) + len(event_log.by_kind("invalid_result"))
    counts["slow warnings"] += len(event_log.by_kind("slow"))
    lost = [event for _, event in event_log.timed_events if event.kind in {"hung", "died", "invalid_result"}]
    return counts, [f"{speed}: {event.text}, at {event.state.percent:.0f} % of {event.state.phase}" for event in lost]
