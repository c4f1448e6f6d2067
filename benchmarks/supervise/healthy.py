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

from benchmarks.figures import Count
from benchmarks.supervise.scene import Question, Record, open_pool, questions
from forecastd.supervise.detector import Limits
from forecastd.supervise.process import ChildFailed

LIMITS = Limits(predicting=4.0, post_processing=4.0, silence=10.0, stopping=2.0)
UNDER_WAY = 8  # jobs of a pool that wait or are worked at


@dataclass(frozen=True)
class Speed:
    """A pool: of all jobs it has `share`, `slow` seconds longer for each step, `pause` seconds after each job."""

    share: float
    slow: float = 0.0
    size: int = 1
    standbys: int = 0
    pause: float = 0.0


SPEEDS = (
    Speed(0.60, size=2),
    Speed(0.3613, standbys=1),
    Speed(0.03, slow=0.01, size=2),
    Speed(0.004, slow=0.1, size=2),
    Speed(0.002, slow=0.5, size=2, standbys=1),
    Speed(0.0012, slow=1.15, size=2),
    Speed(0.001, slow=1.4, size=2),
    Speed(0.0005, pause=11.0),
)


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """10,000 jobs; quick: 300."""
    jobs = 300 if quick else 10_000
    asked = questions(16, seed)
    with ThreadPoolExecutor(len(SPEEDS)) as workers:
        pools = list(workers.map(lambda speed: _work(speed, max(1, round(speed.share * jobs)), asked), SPEEDS))
    found = sum((counted for counted, _ in pools), Counter[str]())
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
    counts = {name: found[name] for name in names}
    broken = [f"{counts[name]} {name}" for name in ("other failures", "wrong answers") if counts[name]]
    broken += [evidence for _, told in pools for evidence in told]
    slowest = 2 * max(speed.slow for speed in SPEEDS)
    title = f"false alarms, up to {slowest:g} s without progress of {LIMITS.predicting:g} s allowed"
    yield Count(title, counts, "no healthy child is found to hang", tuple(broken))


def _work(speed: Speed, jobs: int, asked: Sequence[Question]) -> tuple[Counter[str], list[str]]:
    """One pool's jobs, a few of them under way at a time: what was counted, and why a child was ended."""
    record, found = Record(), Counter({"jobs": jobs})
    fault = f"slow:{speed.slow}@predicting" if speed.slow else ""
    with (
        open_pool(record, LIMITS, faults=fault, faulty=1 << 30, size=speed.size, standbys=speed.standbys) as pool,
        ThreadPoolExecutor(1 if speed.pause else UNDER_WAY) as callers,
    ):

        def ask(number: int) -> str:
            question = asked[number % len(asked)]
            try:
                right = question.answered_by(pool.run(question.job(f"job {number}", seconds=3600)))
            except ChildFailed:
                return "other failures"
            Event().wait(speed.pause)
            return "right answers" if right else "wrong answers"

        found.update(callers.map(ask, range(jobs)))
        found["slow but fine"] += pool.counts.slow_but_fine
    found["hung"] += record.number("hung")
    found["died"] += record.number("died") + record.number("bad")
    found["slow, and warned of"] += record.number("slow")
    ended = [event for _, event in record.events if event.kind in {"hung", "died", "bad"}]
    return found, [
        f"{speed}: {event.text}, at {event.watched.percent:.0f} % of {event.watched.phase}" for event in ended
    ]
