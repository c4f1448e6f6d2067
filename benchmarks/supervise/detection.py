"""How long after its limit a stalled child is found: from the last progress that was heard of to the verdict.

With real children, several at a time, which compete for the processor as they do when a daemon serves several topics.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from benchmarks.figures import Count, Figure
from benchmarks.supervise.scene import Question, Record, open_pool, questions
from forecastd.supervise.detector import Limits
from forecastd.supervise.report import Event

ALLOWED = 1.0  # seconds beyond the limit
AT_A_TIME = 3
SHORT = Limits(loading=2.0, predicting=1.0, post_processing=1.0, stopping=2.0)
SILENT = Limits(predicting=60.0, silence=2.0, stopping=2.0)


@dataclass(frozen=True)
class Case:
    """A stall, and the limit that must find it."""

    name: str
    fault: str
    limits: Limits = field(default=SHORT)
    seconds: float = 1.0


CASES = (
    *(Case(f"stalled at {place} %", f"hang@{place}") for place in (0, 1, 25, 50, 75, 99)),
    Case("oscillating at 50 %", "oscillate@50"),
    Case("beating for another launch", "stale@50"),
    Case("stalled while loading", "hang@loading", seconds=SHORT.loading),
    Case("stalled in post-processing", "hang@post_processing"),
    Case("silent at 50 %", "silent@50", SILENT, SILENT.silence),
)


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """10 trials a case, of which the worst is told; quick: 1."""
    trials = 1 if quick else 10
    asked = questions(trials, seed)
    tasks = [(case, question) for case in CASES for question in asked]
    with ThreadPoolExecutor(AT_A_TIME) as workers:
        found = list(workers.map(lambda task: _trial(*task), tasks))
    broken: list[str] = []
    for number, case in enumerate(CASES):
        beyond = [one for one in found[number * trials : (number + 1) * trials] if one is not None]
        if len(beyond) < trials:
            broken.append(f"{case.name}: {trials - len(beyond)} of {trials} were not found")
        if beyond:
            name = f"detection, {case.name}, beyond its {case.seconds:g} s, worst of {len(beyond)}"
            yield Figure(name, 1000 * max(beyond), 1000 * ALLOWED, "ms", "allowed", "ratio >= 1")
    counts = {"stalled children": len(tasks), "found hung": sum(one is not None for one in found)}
    yield Count("detection", counts, "every stall is found, every job goes on", tuple(broken))


def _trial(case: Case, question: Question) -> float | None:
    """Seconds beyond the limit; None when the child was not found to hang, or its job not answered by another."""
    record = Record()
    with open_pool(record, case.limits, faults=case.fault) as pool:
        answer = pool.run(question.job("detection"))
    hung = next(((at, event) for at, event in record.events if event.kind == "hung"), None)
    if hung is None or not question.answered_by(answer):
        return None
    stalled = next(at for at, event in record.events if _as_far(event, hung[1]))
    return hung[0] - stalled - case.seconds


def _as_far(event: Event, last: Event) -> bool:
    """Whether the child had got by this event as far as it was at the last."""
    return event.pid == last.pid and event.watched.progressed == last.watched.progressed
