"""Random faults of every kind, at random places, in pools of every shape: each job ends exactly once, nothing stays behind.

Besides the faults that a child brings on itself, children are killed and stopped from outside at random moments. Some jobs
cannot be done, some have little time, some pools are closed while jobs are under way. Every result is held against what
the engine gives in this process.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from benchmarks.figures import Count
from benchmarks.supervise.leftovers import holdings
from benchmarks.supervise.scene import CLOCK, Question, Record, chance, open_pool, questions
from forecastd.supervise.detector import Limits, Phase
from forecastd.supervise.faults import KINDS, parse_faults
from forecastd.supervise.jobs import Job, check_job
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed

AT_A_TIME = 4
SETTLED = 60.0  # seconds after its deadline by which a job has ended, or is lost
LIMITS = Limits(
    starting=15, loading=3, warming_up=3, predicting=0.8, post_processing=0.8, stopping=1.5, silence=2.5
)  # fmt: skip
VALUES = {"exit": (0, 255), "slow": (0, 1), "print": (1, 2048), "nan": (0, 3)}
OUTSIDE = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


@dataclass(frozen=True)
class Trial:
    """One pool, made up at random. `kind` is its fault's, or a signal's that one child gets after `after` seconds.

    `faults` are brought on by the first `faulty` children; `asked`: of each job what it is and its seconds.
    """

    kind: str
    faults: str
    faulty: int
    size: int
    standbys: int
    attempts: int
    asked: tuple[tuple[str, float], ...]
    after: float
    leave: float | None

    @property
    def injected(self) -> int:
        """How many children have a fault brought on them for sure."""
        return min(self.faulty, self.size + self.standbys)


@dataclass
class Found:
    """What one trial came to."""

    ends: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """500 faults; quick: 25."""
    trials = plan(25 if quick else 500, seed)
    asked = questions(16, seed)
    before = holdings()
    with ThreadPoolExecutor(AT_A_TIME) as workers:
        found = list(workers.map(lambda number: _try(number, trials[number], asked), range(len(trials))))
    after = holdings()
    faults = Counter[str]()
    ends: dict[str, Counter[str]] = {}
    for trial, one in zip(trials, found, strict=True):
        faults[trial.kind] += trial.injected
        ends.setdefault(trial.kind, Counter()).update(one.ends)
    whole = sum(ends.values(), Counter[str]())
    counts: dict[str, int | str] = {"faults": faults.total(), "pools": len(trials)}
    counts |= {name: whole[name] for name in ("jobs", "results", "named failures", "lost", "doubled", "wrong")}
    counts |= after.counts(before)
    counts |= {f"{kind}, {faults[kind]} faults": _told(ends[kind]) for kind in sorted(ends)}
    broken = [evidence for one in found for evidence in one.broken]
    broken += [f"{what}: {', '.join(sorted(left))}" for what, left in after.beyond(before).items() if left]
    yield Count(f"random faults, seed {seed}", counts, "each job ends once, nothing is left behind", tuple(broken))


def _told(ends: Counter[str]) -> str:
    known = ("jobs", "named failures")
    names = [f"{number} {name}" for name, number in sorted(ends.items()) if name not in known]
    return f"{ends['jobs']} jobs: {', '.join(names)}"


def plan(faults: int, seed: int) -> list[Trial]:
    """As many trials as bring on that many faults, every kind about as often."""
    kinds = [*KINDS, *OUTSIDE]
    trials: list[Trial] = []
    while sum(trial.injected for trial in trials) < faults:
        number = len(trials)
        if number % len(kinds) == 0:
            chance(seed, "order", number).shuffle(kinds)
        trials.append(_trial(kinds[number % len(kinds)], chance(seed, "trial", number)))
    return trials


def _trial(kind: str, rng: random.Random) -> Trial:
    size, standbys = rng.choice((1, 1, 2)), rng.choice((0, 1))
    faults = "" if kind in OUTSIDE else _fault(kind, rng)
    if rng.random() < 0.2:
        faults = ",".join(filter(None, (faults, rng.choice(("ignore-term", "fork", "print:256", "slow:0.05")))))
    asked = rng.choices(("forecast", "check", "misfit"), (6, 1, 1), k=rng.randint(1, 6))
    return Trial(
        kind=kind,
        faults=faults,
        faulty=1 if kind in OUTSIDE else rng.choice((1, 1, 2, 1000)),
        size=size,
        standbys=standbys,
        attempts=rng.randint(1, 3),
        asked=tuple((what, rng.choice((1.5, 10.0, 20.0))) for what in asked),
        after=rng.uniform(0, 1.5),
        leave=rng.uniform(0.2, 3) if rng.random() < 0.1 else None,
    )


def _fault(kind: str, rng: random.Random) -> str:
    """A fault of this kind in the writing of `faults.py`, with a random value and at a random place where it takes them."""
    value = f":{round(rng.uniform(*VALUES[kind]), 2 if kind == 'slow' else None)}" if kind in VALUES else ""
    places = ["", *(f"@{percent}" for percent in (0, 1, 25, rng.randint(0, 100), 75, 99)), *(f"@{p}" for p in Phase)]
    return f"{kind}{value}{rng.choice([place for place in places if _reads(f'{kind}{value}{place}')])}"


def _reads(text: str) -> bool:
    try:
        parse_faults(text)
    except ValueError:
        return False
    return True


def _try(number: int, trial: Trial, asked: Sequence[Question]) -> Found:
    """Open the pool, have its jobs done, and see how they end."""
    found, record, rng = Found(), Record(), random.Random(number)
    futures: dict[str, tuple[Future[Any], Question]] = {}
    told: Counter[str] = Counter()
    with open_pool(
        record,
        LIMITS,
        faults=trial.faults,
        faulty=trial.faulty,
        size=trial.size,
        standbys=trial.standbys,
        attempts=trial.attempts,
    ) as pool:
        for place, (what, seconds) in enumerate(trial.asked):
            name, question = f"{what} {number}.{place}", rng.choice(asked)
            futures[name] = pool.submit(_job(what, name, seconds, trial, question)), question
            futures[name][0].add_done_callback(lambda _, name=name: told.update([name]))  # type: ignore[misc]
        if trial.kind in OUTSIDE:
            threading.Event().wait(trial.after)
            _signal(pool, OUTSIDE[trial.kind], rng)
        longest = max(seconds for _, seconds in trial.asked) + SETTLED
        wait([future for future, _ in futures.values()], longest if trial.leave is None else trial.leave)
    wait([future for future, _ in futures.values()], SETTLED)
    found.ends["jobs"] += len(futures)
    for name, (future, question) in futures.items():
        _ended(found, name, future, question)
        finished = sum(event.kind in {"finished", "refused"} and event.job == name for _, event in record.events)
        if max(told[name], finished) > 1:
            found.ends["doubled"] += 1
            found.broken.append(f"{name}: ended {max(told[name], finished)} times")
    counted = pool.counts.jobs.total()
    if counted != len(futures):
        found.broken.append(f"pool {number}: {len(futures)} jobs, and {counted} ends were counted")
    return replace(found, broken=[f"{evidence} ({trial})" for evidence in found.broken])


def _job(what: str, name: str, seconds: float, trial: Trial, question: Question) -> Job:
    if what == "check":
        return replace(check_job(CLOCK.monotonic() + seconds, trial.attempts), name=name)
    if what == "misfit":  # a model must refuse it, and say why
        question = replace(question, inputs=replace(question.inputs, past=question.inputs.past[:, 1:]))
    return question.job(name, seconds=seconds, attempts=trial.attempts)


def _signal(pool: Pool, number: signal.Signals, rng: random.Random) -> None:
    """Send a signal to one of the pool's children, if there is one."""
    pids = [int(str(child["pid"])) for child in pool.children()]
    pid = rng.choice(pids) if pids else 0
    if pid and psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid():
        os.kill(pid, number)


def _ended(found: Found, name: str, future: Future[Any], question: Question) -> None:
    """Count how a job ended."""
    try:
        error = future.exception(0)
    except FutureTimeout:
        found.ends["lost"] += 1
        found.broken.append(f"{name}: has not ended")
        return
    if error is None:
        right = isinstance(future.result(), str) or question.answered_by(future.result())
        found.ends["results" if right else "wrong"] += 1
        if not right:
            found.broken.append(f"{name}: its answer is wrong")
    elif isinstance(error, ChildFailed | ModelFailed) and str(error):
        found.ends["named failures"] += 1
        found.ends[f"failed ({type(error).__name__})"] += 1
    else:
        found.ends["lost"] += 1
        found.broken.append(f"{name}: ended with {error!r}")
