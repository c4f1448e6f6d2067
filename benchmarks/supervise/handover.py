"""How soon a hung child's job runs again: on a standby, and beside it with a child that has to be started for it.

Both in turns, on the same model. A job runs when its new child has reported the first step of it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

from benchmarks.figures import Count, Figure
from benchmarks.supervise.scene import Question, Record, open_pool, questions
from forecastd.supervise.detector import Limits, Phase
from forecastd.supervise.process import ChildFailed
from forecastd.supervise.report import Event

WITH_STANDBY = Limits(predicting=1.0, stopping=2.0)
WITHOUT = Limits(predicting=2.0, stopping=2.0)  # half of it is enough to start another


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """40 hand-overs and cold starts in turns; quick: 3."""
    trials = 3 if quick else 40
    moved: dict[int, list[float]] = {1: [], 0: []}
    cold: list[float] = []
    broken: list[str] = []
    for number, question in enumerate(questions(trials, seed)):
        cold.append(_cold_start(question))
        for standbys, times in moved.items():
            try:
                times.append(_hand_over(question, standbys))
            except (ChildFailed, AssertionError) as error:
                broken.append(f"trial {number} with {standbys} standbys: {error}")
    names = {
        1: "hand-over, verdict to the job running on the standby",
        0: "hand-over without a standby, to a child started when the first was slow",
    }
    for standbys, times in moved.items():
        if times:
            middle, usual = 1000 * statistics.median(times), 1000 * statistics.median(cold)
            yield Figure(f"{names[standbys]}, median of {len(times)}", middle, usual, "ms", "cold start", "ratio >= 10")
            yield Figure(f"{names[standbys]}, the worst", 1000 * max(times), 500.0, "ms", "allowed", "ratio >= 1")
    counts = {"hung children": 2 * trials, "their jobs answered by another": sum(map(len, moved.values()))}
    yield Count("hand-over", counts, "every job goes on", tuple(broken))


def _hand_over(question: Question, standbys: int) -> float:
    """Seconds from the verdict to the first step on another child. Raises ChildFailed, AssertionError when there is none."""
    record = Record()
    limits = WITH_STANDBY if standbys else WITHOUT
    with open_pool(record, limits, faults="hang@50", standbys=standbys) as pool:
        assert record.wait_for("ready", 1 + standbys), "no child became ready"
        answer = pool.run(question.job("hand-over"))
    assert question.answered_by(answer), "the answer is wrong"
    hung = next((at for at, event in record.events if event.kind == "hung"), None)
    assert hung is not None, "the child was not found to hang"
    return next(at for at, event in record.events if at > hung and _first_step(event)) - hung


def _cold_start(question: Question) -> float:
    """Seconds from the start of a child to the first step of its job."""
    record = Record()
    started = time.monotonic()
    with open_pool(record, WITHOUT) as pool:
        pool.run(question.job("cold start"))
    return next(at for at, event in record.events if _first_step(event)) - started


def _first_step(event: Event) -> bool:
    """The child tells that it has done a step of a job, not only that it was given one."""
    return event.kind == "progress" and event.watched.phase is Phase.PREDICTING and event.watched.done > 0
