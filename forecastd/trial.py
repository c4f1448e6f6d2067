"""`supervise`: one bundle under supervision on demand, with the faults that it is asked to have.

The children, the detector and the hand-over are those of a worker. Nothing is written: what a bundle does under faults that
were asked for says nothing about it, so no quarantine of a trial reaches the shelf.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Condition
from typing import Literal

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman
from forecastd.features import model_input, parse_features
from forecastd.forecaster import gather
from forecastd.settings import Settings
from forecastd.sources import open_source
from forecastd.stages import describe_candles
from forecastd.supervise.detector import Phase
from forecastd.supervise.jobs import Job, predict_job
from forecastd.supervise.policy import Policy, Setup, policy_of
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.report import Counts, Event
from forecastd.window import RollingWindow
from models.base import Forecast, ModelInput
from models.bundle import load_bundle
from models.errors import ModelError
from models.manifest import Manifest

Children = Callable[[], list[dict[str, object]]]
Ending = Literal["result", "refused", "failed"]

KEPT_EVENTS, KEPT_TEXT = 1000, 4000
SKIPPED = 4
_LOST = {"hung", "died", "bad", "late", "gone"}


@dataclass(frozen=True)
class Plan:
    """What to try. `faults` in the writing of `supervise/faults.py`, borne by the first `faulty` launches (0: by all);
    `deadline`: seconds for each job over all its attempts; `candles_at`: unix seconds at which to take candles from the
    data source, None for the bundle's own canary."""

    jobs: int = 1
    faults: str = ""
    faulty: int = 1
    deadline: float | None = None
    candles_at: float | None = None


@dataclass(frozen=True)
class JobEnd:
    """How a job ended, after how many seconds; the forecast's point value and the process that made it, or the reason."""

    name: str
    outcome: Ending
    seconds: float
    value: float | None = None
    pid: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Seen:
    """An event, and how many seconds after the start of the trial it came."""

    at: float
    event: Event

    def as_json(self) -> dict[str, object]:
        event = self.event
        told = {"kind": event.kind, "pid": event.pid, "job": event.job, "text": event.text[:KEPT_TEXT]}
        watched = event.watched
        return {"at": round(self.at, 3), **told, "phase": str(watched.phase), "percent": round(watched.percent, 1)}


@dataclass(frozen=True)
class Trial:
    """What came of it. `pids`: every process that was started; `slowest`: the longest that each phase went without
    progress and then went on, in seconds."""

    bundle: Path
    manifest: Manifest
    inputs: str
    policy: Policy
    plan: Plan
    jobs: tuple[JobEnd, ...]
    counts: Counts
    events: tuple[Seen, ...]
    pids: tuple[int, ...]
    slowest: Mapping[Phase, float]

    @property
    def exit_code(self) -> int:
        """0 when every job got its result."""
        return 0 if all(job.outcome == "result" for job in self.jobs) else SKIPPED

    @property
    def reason(self) -> str:
        """Why the first job without a result has none; empty when all have one."""
        return next((job.reason for job in self.jobs if job.outcome != "result"), "")

    def as_json(self) -> dict[str, object]:
        """The whole trial as one JSON object."""
        policy, plan = self.policy, self.plan
        return {
            "outcome": "skipped" if self.exit_code else "served",
            "reason": self.reason or None,
            "exit_code": self.exit_code,
            "bundle": {"path": str(self.bundle), "name": self.manifest.name, "sha256": self.manifest.sha256},
            "input": self.inputs,
            "settings": {
                "limits": asdict(policy.limits),
                "attempts": policy.attempts,
                "standbys": policy.standbys,
                "memory_mb": policy.memory >> 20,
                "deadline": plan.deadline,
                "faults": plan.faults,
                "faulty": plan.faulty,
            },
            "jobs": [asdict(job) for job in self.jobs],
            "counts": self.counts.as_json(),
            "slowest": {str(phase): round(seconds, 4) for phase, seconds in self.slowest.items()},
            "pids": list(self.pids),
            "events": [seen.as_json() for seen in self.events],
        }


class Recorder:
    """Keeps what a pool tells for the report, and hands it on. Called from the observer's thread."""

    def __init__(self, clock: Clock, observe: Callable[[Event], None]) -> None:
        self.events: deque[Seen] = deque(maxlen=KEPT_EVENTS)
        self.pids: list[int] = []
        self.slowest: dict[Phase, float] = {}
        self.finished: dict[str, int] = {}
        self._clock, self._observe, self._start = clock, observe, clock.monotonic()
        self._changed = Condition()
        self._last: dict[int, Event] = {}
        self._ready: set[int] = set()
        self._settled = False

    def __call__(self, event: Event) -> None:
        with self._changed:
            self._take(event)
            self._changed.notify_all()
        self._observe(event)

    def wait_for_all(self, wanted: int, seconds: float) -> None:
        """Wait until so many children are ready, or it is clear that they will not be soon."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready) >= wanted or self._settled, seconds)

    def _take(self, event: Event) -> None:
        pid = event.pid
        if event.kind == "launched":
            self.pids.append(pid)
        elif event.kind in {"progress", "ready", "finished"}:
            self._measure(event)
        if event.kind == "ready":
            self._ready.add(pid)
        elif event.kind == "finished":
            self.finished[event.job] = pid
        elif event.kind in _LOST:
            self._ready.discard(pid)
        elif event.kind in {"quarantined", "refused", "backing_off"}:
            self._settled = True
        if event.kind != "progress":
            self.events.append(Seen(self._clock.monotonic() - self._start, event))
        self._last[pid] = event

    def _measure(self, event: Event) -> None:
        """How long the child went without progress before this: what a phase's limit has to leave room for."""
        before, now = self._last.get(event.pid), event.watched
        if before is None or before.watched.launch != now.launch:
            return
        phase, since = before.watched.phase, before.watched.progressed
        until = now.progressed if event.kind == "progress" else now.heard
        if phase is not Phase.IDLE:
            self.slowest[phase] = max(self.slowest.get(phase, 0.0), until - since)


def run_trial(
    settings: Settings,
    plan: Plan,
    clock: Clock,
    *,
    observe: Callable[[Event], None] = lambda _: None,
    watch: Callable[[Children], None] = lambda _: None,
) -> Trial:
    """Run the settings' bundle as `plan` says; every child is gone when this returns or raises.

    `observe` hears of every event from a thread of its own and must return at once. `watch` is given, once, what tells what
    each child is at.

    Raises:
        NeedsHuman: the bundle is no good, or its candles are of another step than the source's.
        SkipEpoch, RetryLater: as the source does, when candles are asked for.
    """
    path = settings.model_path
    try:
        bundle = load_bundle(path)
    except ModelError as error:
        raise NeedsHuman(str(error)) from error
    manifest, policy = bundle.manifest, policy_of(settings, standbys=settings.standbys)
    inputs, told = bundle.canary.inputs, "the bundle's canary"
    if plan.candles_at is not None:
        inputs, told = _from_candles(settings, manifest, plan.candles_at)
    if plan.deadline is None:
        plan = replace(plan, deadline=policy.forecast_seconds)  # as a cycle has it
    counts, recorder = Counts(), Recorder(clock, observe)

    def make(name: str, deadline: float) -> Job:
        rows, levels = manifest.horizon, manifest.levels
        return predict_job(inputs, name=name, deadline=deadline, attempts=policy.attempts, rows=rows, levels=levels)

    setup = Setup(path, manifest.name, plan.faults, plan.faulty or sys.maxsize)
    with Pool(setup, policy, clock, counts=counts, observe=recorder) as pool:
        watch(pool.children)
        jobs = _run(pool, recorder, policy, plan, make, clock=clock)
    return Trial(
        path, manifest, told, policy, plan, jobs, counts, tuple(recorder.events), tuple(recorder.pids), recorder.slowest
    )


def _from_candles(settings: Settings, manifest: Manifest, now: float) -> tuple[ModelInput, str]:
    """What the model would see at `now`, from the data source; and where it came from, in words."""
    features = parse_features((*manifest.past, *manifest.known), "The bundle")
    source = open_source(settings.data_source, settings)
    if source.step != manifest.step:
        raise NeedsHuman(
            f"The model wants candles of {manifest.step} s, {source.name} gives {source.step} s. "
            "Choose another source, or leave --source out: the bundle's own canary needs none."
        )
    with RollingWindow.open(settings.state / "window.sqlite") as window:
        candles, _ = gather(manifest, source, window, now)
    inputs = model_input(features, candles, manifest.encoder_length, manifest.horizon)
    return inputs, describe_candles(candles, source.name, now)


def _run(
    pool: Pool, recorder: Recorder, policy: Policy, plan: Plan, make: Callable[[str, float], Job], *, clock: Clock
) -> tuple[JobEnd, ...]:
    """Wait until all children are ready, standbys too, then run one job after the other."""
    names = [f"forecast {number}" for number in range(1, plan.jobs + 1)]
    seconds, start = policy.ready_seconds, clock.monotonic()
    try:
        pool.ready(seconds)
    except ModelFailed as error:
        raise NeedsHuman(str(error)) from error
    except ChildFailed as error:
        return tuple(JobEnd(name, "failed", clock.monotonic() - start, reason=str(error)) for name in names)
    recorder.wait_for_all(1 + policy.standbys, seconds)
    ends = []
    for name in names:
        start = clock.monotonic()
        ending, reason, value = _end(pool, make(name, start + (plan.deadline or 0.0)))
        pid = recorder.finished.get(name) if ending == "result" else None
        ends.append(JobEnd(name, ending, clock.monotonic() - start, value, pid, reason))
    return tuple(ends)


def _end(pool: Pool, job: Job) -> tuple[Ending, str, float | None]:
    """How the job ended, why it did without a result, and the forecast's point value."""
    try:
        forecast: Forecast = pool.run(job)
    except ModelFailed as error:
        return "refused", str(error), None
    except ChildFailed as error:
        return "failed", str(error), None
    return "result", "", forecast.value
