"""Random faults of every kind, at random places, in pools of every shape: each job ends exactly once, nothing is left over.

Apart from the injected faults, children are killed and stopped by signals at random times. Some jobs are invalid, some have
little time, and some pools are closed while jobs run. Every result is compared with the engine's result in this process.
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

from benchmarks.figures import PremiseCount
from benchmarks.supervise.common import (
    CLOCK,
    ExpectedForecast,
    make_expected_forecasts,
    open_pool,
    seeded_random,
)
from benchmarks.supervise.resources import current_resources
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise.detector import Phase, PhaseLimits
from forecastd.supervise.faults import FAULT_KINDS, parse_faults
from forecastd.supervise.jobs import Job, check_job
from forecastd.supervise.pool import ProcessPool
from tests.support.supervision import EventLog

CONCURRENCY = 4
SETTLE_SECONDS = 60.0  # after its deadline; a job that has not ended by then is lost
LIMITS = PhaseLimits(
    starting=15, loading=3, warming_up=3, predicting=0.8, post_processing=0.8, stopping=1.5, heartbeat=2.5
)  # fmt: skip
VALUE_RANGES = {"exit": (0, 255), "slow": (0, 1), "print": (1, 2048), "nan": (0, 3)}
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP}


@dataclass(frozen=True)
class FaultTrial:
    """One random pool. `kind`: the kind of its fault, or a signal that one child gets after `signal_after` seconds.

    `faults`: injected into the first `faulty` children. `jobs`: the kind of each job and its seconds. `close_after`:
    close the pool after so many seconds; None waits for all jobs.
    """

    kind: str
    faults: str
    faulty: int
    size: int
    standbys: int
    attempts: int
    jobs: tuple[tuple[str, float], ...]
    signal_after: float
    close_after: float | None

    @property
    def injected(self) -> int:
        """The number of children that get a fault for certain."""
        return min(self.faulty, self.size + self.standbys)


@dataclass
class TrialResult:
    """The outcomes of one trial."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """500 faults; quick: 25."""
    trials = plan_trials(25 if quick else 500, seed)
    forecasts = make_expected_forecasts(16, seed)
    before = current_resources()
    with ThreadPoolExecutor(CONCURRENCY) as workers:
        results = list(workers.map(lambda number: _run_trial(number, trials[number], forecasts), range(len(trials))))
    after = current_resources()
    faults = Counter[str]()
    outcomes: dict[str, Counter[str]] = {}
    for trial, result in zip(trials, results, strict=True):
        faults[trial.kind] += trial.injected
        outcomes.setdefault(trial.kind, Counter()).update(result.outcomes)
    totals = sum(outcomes.values(), Counter[str]())
    counts: dict[str, int | str] = {"faults": faults.total(), "pools": len(trials)}
    counts |= {name: totals[name] for name in ("jobs", "results", "named failures", "lost", "doubled", "wrong")}
    counts |= after.count_added(before)
    counts |= {f"{kind}, {faults[kind]} faults": _describe(outcomes[kind]) for kind in sorted(outcomes)}
    violations = [evidence for result in results for evidence in result.violations]
    violations += [
        f"{label}: {', '.join(sorted(leftovers))}"
        for label, leftovers in after.added_since(before).items()
        if leftovers
    ]
    yield PremiseCount(
        f"random faults, seed {seed}", counts, "each job ends once, nothing is left over", tuple(violations)
    )


def _describe(outcomes: Counter[str]) -> str:
    shown = ("jobs", "named failures")
    names = [f"{number} {name}" for name, number in sorted(outcomes.items()) if name not in shown]
    return f"{outcomes['jobs']} jobs: {', '.join(names)}"


def plan_trials(faults: int, seed: int) -> list[FaultTrial]:
    """Trials that together inject at least `faults` faults, each kind about equally often."""
    kinds = [*FAULT_KINDS, *SIGNALS]
    trials: list[FaultTrial] = []
    while sum(trial.injected for trial in trials) < faults:
        number = len(trials)
        if number % len(kinds) == 0:
            seeded_random(seed, "order", number).shuffle(kinds)
        trials.append(_make_trial(kinds[number % len(kinds)], seeded_random(seed, "trial", number)))
    return trials


def _make_trial(kind: str, rng: random.Random) -> FaultTrial:
    size, standbys = rng.choice((1, 1, 2)), rng.choice((0, 1))
    faults = "" if kind in SIGNALS else _random_fault(kind, rng)
    if rng.random() < 0.2:
        faults = ",".join(filter(None, (faults, rng.choice(("ignore-term", "fork", "print:256", "slow:0.05")))))
    job_kinds = rng.choices(("forecast", "check", "misfit"), (6, 1, 1), k=rng.randint(1, 6))
    return FaultTrial(
        kind=kind,
        faults=faults,
        faulty=1 if kind in SIGNALS else rng.choice((1, 1, 2, 1000)),
        size=size,
        standbys=standbys,
        attempts=rng.randint(1, 3),
        jobs=tuple((job_kind, rng.choice((1.5, 10.0, 20.0))) for job_kind in job_kinds),
        signal_after=rng.uniform(0, 1.5),
        close_after=rng.uniform(0.2, 3) if rng.random() < 0.1 else None,
    )


def _random_fault(kind: str, rng: random.Random) -> str:
    """A fault of this kind in the syntax of `faults.py`, with a random value and place where it takes them."""
    value = f":{round(rng.uniform(*VALUE_RANGES[kind]), 2 if kind == 'slow' else None)}" if kind in VALUE_RANGES else ""
    places = ["", *(f"@{percent}" for percent in (0, 1, 25, rng.randint(0, 100), 75, 99)), *(f"@{p}" for p in Phase)]
    return f"{kind}{value}{rng.choice([place for place in places if _is_valid(f'{kind}{value}{place}')])}"


def _is_valid(text: str) -> bool:
    try:
        parse_faults(text)
    except ValueError:
        return False
    return True


def _run_trial(number: int, trial: FaultTrial, forecasts: Sequence[ExpectedForecast]) -> TrialResult:
    """Open the pool, run its jobs, and record how they end."""
    result, event_log, rng = TrialResult(), EventLog(), random.Random(number)
    futures: dict[str, tuple[Future[Any], ExpectedForecast]] = {}
    callbacks: Counter[str] = Counter()
    with open_pool(
        event_log,
        LIMITS,
        faults=trial.faults,
        faulty=trial.faulty,
        size=trial.size,
        standbys=trial.standbys,
        attempts=trial.attempts,
    ) as pool:
        for index, (job_kind, seconds) in enumerate(trial.jobs):
            name, expected = f"{job_kind} {number}.{index}", rng.choice(forecasts)
            futures[name] = pool.submit(_make_job(job_kind, name, seconds, trial, expected)), expected
            futures[name][0].add_done_callback(lambda _, name=name: callbacks.update([name]))  # type: ignore[misc]
        if trial.kind in SIGNALS:
            threading.Event().wait(trial.signal_after)
            _send_signal(pool, SIGNALS[trial.kind], rng)
        longest = max(seconds for _, seconds in trial.jobs) + SETTLE_SECONDS
        wait([future for future, _ in futures.values()], longest if trial.close_after is None else trial.close_after)
    wait([future for future, _ in futures.values()], SETTLE_SECONDS)
    result.outcomes["jobs"] += len(futures)
    for name, (future, expected) in futures.items():
        _record_outcome(result, name, future, expected)
        finished = sum(
            event.kind in {"finished", "refused"} and event.job == name for _, event in event_log.timed_events
        )
        if max(callbacks[name], finished) > 1:
            result.outcomes["doubled"] += 1
            result.violations.append(f"{name}: ended {max(callbacks[name], finished)} times")
    recorded = pool.counts.jobs.total()
    if recorded != len(futures):
        result.violations.append(f"pool {number}: {len(futures)} jobs, and {recorded} ends were counted")
    return replace(result, violations=[f"{evidence} ({trial})" for evidence in result.violations])


def _make_job(job_kind: str, name: str, seconds: float, trial: FaultTrial, expected: ExpectedForecast) -> Job:
    if job_kind == "check":
        return replace(check_job(CLOCK.monotonic() + seconds, trial.attempts), name=name)
    if job_kind == "misfit":  # the model must refuse it with a reason
        expected = replace(expected, inputs=replace(expected.inputs, past=expected.inputs.past[:, 1:]))
    return expected.job(name, seconds=seconds, attempts=trial.attempts)


def _send_signal(pool: ProcessPool, number: signal.Signals, rng: random.Random) -> None:
    """Send a signal to a random child of the pool, if there is one."""
    pids = [int(str(child["pid"])) for child in pool.children()]
    pid = rng.choice(pids) if pids else 0
    if pid and psutil.pid_exists(pid) and psutil.Process(pid).ppid() == os.getpid():
        os.kill(pid, number)


def _record_outcome(result: TrialResult, name: str, future: Future[Any], expected: ExpectedForecast) -> None:
    """Record how a job ended."""
    try:
        error = future.exception(0)
    except FutureTimeout:
        result.outcomes["lost"] += 1
        result.violations.append(f"{name}: has not ended")
        return
    if error is None:
        is_correct = isinstance(future.result(), str) or expected.matches(future.result())
        result.outcomes["results" if is_correct else "wrong"] += 1
        if not is_correct:
            result.violations.append(f"{name}: its result is wrong")
    elif isinstance(error, ChildFailed | ModelFailed) and str(error):
        result.outcomes["named failures"] += 1
        result.outcomes[f"failed ({type(error).__name__})"] += 1
    else:
        result.outcomes["lost"] += 1
        result.violations.append(f"{name}: ended with {error!r}")
