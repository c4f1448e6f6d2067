"""Healthy children of very different speed, none of which may be found to hang: forecasts from 10 ms to three times a limit.

The slow ones take a fixed time longer for each report of progress; the first of a job tells nothing new, so that up to
70 % of what a step may take passes without any. One pool is left idle for longer than any limit between its jobs. All pools
work at the same time, on however many cores there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event

from benchmarks.figures import PremiseCount
from benchmarks.supervise.scene import ExpectedForecast, TimedEventLog, make_expected_forecasts, open_pool
from forecastd.supervise.detector import PhaseLimits
from forecastd.supervise.process import ChildFailed

LIMITS = PhaseLimits(predicting=4.0, post_processing=4.0, silence=10.0, stopping=2.0)
CONCURRENCY = 8  # jobs of a pool that wait or are worked at


@dataclass(frozen=True)
class PoolSpeed:
    """A pool: of all jobs it has `share`, `slow` seconds longer for each step, `pause` seconds after each job."""

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
        "right answers",
        "hung",
        "died",
        "other failures",
        "wrong answers",
        "slow, and warned of",
        "slow but fine",
    )
    counts = {name: totals[name] for name in names}
    violations = [f"{counts[name]} {name}" for name in ("other failures", "wrong answers") if counts[name]]
    violations += [evidence for _, failures in pools for evidence in failures]
    slowest = 2 * max(speed.slow for speed in SPEEDS)
    title = f"false alarms, up to {slowest:g} s without progress of {LIMITS.predicting:g} s allowed"
    yield PremiseCount(title, counts, "no healthy child is found to hang", tuple(violations))


def _run_pool(speed: PoolSpeed, jobs: int, forecasts: Sequence[ExpectedForecast]) -> tuple[Counter[str], list[str]]:
    """One pool's jobs, a few of them under way at a time: what was counted, and why a child was ended."""
    event_log, counts = TimedEventLog(), Counter({"jobs": jobs})
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
            return "right answers" if is_correct else "wrong answers"

        counts.update(callers.map(run_job, range(jobs)))
        counts["slow but fine"] += pool.counts.recovered_stalls
    counts["hung"] += event_log.count("hung")
    counts["died"] += event_log.count("died") + event_log.count("bad")
    counts["slow, and warned of"] += event_log.count("slow")
    lost = [event for _, event in event_log.events if event.kind in {"hung", "died", "bad"}]
    return counts, [f"{speed}: {event.text}, at {event.state.percent:.0f} % of {event.state.phase}" for event in lost]
