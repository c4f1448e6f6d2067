"""`forecastd supervise`: run one bundle under supervision, with injected faults if asked for.

Children, detector and failover are those of a worker. Nothing is written to disk: behavior under injected faults says
nothing about the bundle, so a quarantine of such a run is not recorded in the bundle store.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Condition
from typing import Literal

from forecastd.clock import Clock
from forecastd.errors import ExitCode, NeedsHuman
from forecastd.inference.forecaster import gather_candles
from forecastd.inference.market_runner import market_setup, predict_job
from forecastd.inference.stages import describe_candles
from forecastd.market.features import build_model_input, parse_features
from forecastd.market.sources import open_source
from forecastd.market.window import RollingWindow
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.settings import Settings
from forecastd.supervise.detector import Phase
from forecastd.supervise.events import ProcessEvent, SupervisionCounts
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import SupervisionPolicy, policy_from_settings
from forecastd.supervise.pool import ProcessPool
from models.base import Forecast, ModelInput
from models.errors import ModelError
from models.market.bundle import load_market_bundle, market_canary_input
from models.market.manifest import MarketManifest

ListChildren = Callable[[], list[dict[str, object]]]
JobStatus = Literal["result", "refused", "failed"]

MAX_EVENTS, MAX_TEXT_LENGTH = 1000, 4000
_LOST_KINDS = {"hung", "died", "invalid_result", "deadline_exceeded", "exited"}


@dataclass(frozen=True)
class SupervisionPlan:
    """What to run. `faults`: in the syntax of `supervise/faults.py`, injected into the first `faulty_launches` children (0:
    into all). `deadline`: seconds for each job over all its attempts. `as_of`: unix seconds of the forecast, from candles of
    the data source; None for the bundle's own canary."""

    jobs: int = 1
    faults: str = ""
    faulty_launches: int = 1
    deadline: float | None = None
    as_of: float | None = None


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended and after how many seconds. `value`, `pid`: the forecast's point value and the process that made it."""

    name: str
    outcome: JobStatus
    seconds: float
    value: float | None = None
    pid: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class TimedEvent:
    """An event and its time, in seconds since the start of the run."""

    seconds: float
    event: ProcessEvent

    def as_json(self) -> dict[str, object]:
        event, state = self.event, self.event.state
        fields = {"kind": event.kind, "pid": event.pid, "job": event.job, "text": event.text[:MAX_TEXT_LENGTH]}
        progress = {"phase": str(state.phase), "percent": round(state.percent, 1)}
        return {"seconds": round(self.seconds, 3), **fields, **progress}


@dataclass(frozen=True)
class SupervisionReport:
    """The result of a run. `pids`: every started process. `slowest`: for each phase the longest time without progress that
    did not end in a hang, in seconds."""

    bundle: Path
    manifest: MarketManifest
    input_description: str
    policy: SupervisionPolicy
    plan: SupervisionPlan
    jobs: tuple[JobOutcome, ...]
    counts: SupervisionCounts
    events: tuple[TimedEvent, ...]
    pids: tuple[int, ...]
    slowest: Mapping[Phase, float]

    @property
    def exit_code(self) -> ExitCode:
        """The exit code of `supervise`: success when every job has its result."""
        return ExitCode.SUCCESS if all(job.outcome == "result" for job in self.jobs) else ExitCode.REFUSED

    @property
    def reason(self) -> str:
        """Why the first failed job has no result; empty when every job has one."""
        return next((job.reason for job in self.jobs if job.outcome != "result"), "")

    def as_json(self) -> dict[str, object]:
        """The whole report as one JSON object."""
        policy, plan = self.policy, self.plan
        return {
            "outcome": "skipped" if self.exit_code else "served",
            "reason": self.reason or None,
            "exit_code": self.exit_code,
            "bundle": {"path": str(self.bundle), "name": self.manifest.name, "sha256": self.manifest.sha256},
            "input": self.input_description,
            "settings": {
                "limits": asdict(policy.limits),
                "attempts": policy.attempts,
                "standbys": policy.standbys,
                "memory_mb": policy.memory >> 20,
                "deadline": plan.deadline,
                "faults": plan.faults,
                "faulty_launches": plan.faulty_launches,
            },
            "jobs": [asdict(job) for job in self.jobs],
            "counts": self.counts.as_json(),
            "slowest": {str(phase): round(seconds, 4) for phase, seconds in self.slowest.items()},
            "pids": list(self.pids),
            "events": [event.as_json() for event in self.events],
        }


class SupervisionRecorder:
    """Records a pool's events for the report and passes them on. Called from the observer's thread."""

    def __init__(self, clock: Clock, observer: Callable[[ProcessEvent], None]) -> None:
        self.events: deque[TimedEvent] = deque(maxlen=MAX_EVENTS)
        self.pids: list[int] = []
        self.slowest: dict[Phase, float] = {}
        self.finished: dict[str, int] = {}
        self._clock, self._observer, self._start = clock, observer, clock.monotonic()
        self._changed = Condition()
        self._last_events: dict[int, ProcessEvent] = {}
        self._ready_pids: set[int] = set()
        self._startup_over = False

    def __call__(self, event: ProcessEvent) -> None:
        with self._changed:
            self._record(event)
            self._changed.notify_all()
        self._observer(event)

    def wait_until_ready(self, count: int, seconds: float) -> None:
        """Wait until `count` children are ready, or it is clear that they will not be soon."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._ready_pids) >= count or self._startup_over, seconds)

    def _record(self, event: ProcessEvent) -> None:
        pid = event.pid
        if event.kind == "launched":
            self.pids.append(pid)
        elif event.kind in {"progress", "ready", "finished"}:
            self._measure(event)
        if event.kind == "ready":
            self._ready_pids.add(pid)
        elif event.kind == "finished":
            self.finished[event.job] = pid
        elif event.kind in _LOST_KINDS:
            self._ready_pids.discard(pid)
        elif event.kind in {"quarantined", "refused", "backing_off"}:
            self._startup_over = True
        if event.kind != "progress":
            self.events.append(TimedEvent(self._clock.monotonic() - self._start, event))
        self._last_events[pid] = event

    def _measure(self, event: ProcessEvent) -> None:
        """Record the time without progress before this event, which the limit of the phase must exceed."""
        previous, now = self._last_events.get(event.pid), event.state
        if previous is None or previous.state.launch_id != now.launch_id:
            return
        phase, start = previous.state.phase, previous.state.last_progress
        end = now.last_progress if event.kind == "progress" else now.last_heartbeat
        if phase is not Phase.IDLE:
            self.slowest[phase] = max(self.slowest.get(phase, 0.0), end - start)


def run_supervision(
    settings: Settings,
    plan: SupervisionPlan,
    clock: Clock,
    *,
    observer: Callable[[ProcessEvent], None] = lambda _: None,
    on_start: Callable[[ListChildren], None] = lambda _: None,
) -> SupervisionReport:
    """Run the bundle of the settings as `plan` says. Every child has exited when this returns or raises.

    `observer` gets every event from a thread of its own and must return at once. `on_start` is called once, with the function
    that lists the children.

    Raises:
        NeedsHuman: the bundle is invalid, or its step differs from the source's.
        SkipEpoch, RetryLater: a fault of the source, when candles are used.
    """
    path = settings.model_path
    try:
        bundle = load_market_bundle(path)
    except ModelError as error:
        raise NeedsHuman(str(error)) from error
    manifest, policy = bundle.manifest, policy_from_settings(settings, standbys=settings.supervision.standbys)
    inputs, description = market_canary_input(bundle), "the bundle's canary"
    if plan.as_of is not None:
        inputs, description = _inputs_from_candles(settings, manifest, plan.as_of)
    seconds = plan.deadline or policy.forecast_seconds  # as in a cycle

    def make_job(name: str) -> Job:
        deadline, rows, levels = clock.monotonic() + seconds, manifest.horizon, manifest.levels
        return predict_job(inputs, name=name, deadline=deadline, attempts=policy.attempts, rows=rows, levels=levels)

    counts, recorder = SupervisionCounts(), SupervisionRecorder(clock, observer)
    faulty_launches = plan.faulty_launches or sys.maxsize
    setup = market_setup(path, manifest.name, faults=plan.faults, faulty_launches=faulty_launches)
    names = [f"forecast {number}" for number in range(1, plan.jobs + 1)]
    with ProcessPool(setup, policy, clock, counts=counts, observer=recorder) as pool:
        on_start(pool.children)
        jobs = _run_jobs(pool, recorder, policy, names, make_job, clock=clock)
    return SupervisionReport(
        path, manifest, description, policy, replace(plan, deadline=seconds), jobs, counts, tuple(recorder.events),
        tuple(recorder.pids), recorder.slowest,
    )  # fmt: skip


def _inputs_from_candles(settings: Settings, manifest: MarketManifest, now: float) -> tuple[ModelInput, str]:
    """The model input at `now` from the data source, and a description of it."""
    features = parse_features((*manifest.past, *manifest.known), "The bundle")
    source = open_source(settings.source.name, settings)
    if source.step != manifest.step:
        raise NeedsHuman(
            f"The model needs candles of {manifest.step} s, but {source.name} has candles of {source.step} s. "
            "Choose another source, or omit --source to use the bundle's own canary."
        )
    with RollingWindow.open(settings.state_path / "window.sqlite") as window:
        candles, _ = gather_candles(manifest, source, window, now)
    inputs = build_model_input(features, candles, manifest.encoder_length, manifest.horizon)
    return inputs, describe_candles(candles, source.name, now)


def _run_jobs(
    pool: ProcessPool,
    recorder: SupervisionRecorder,
    policy: SupervisionPolicy,
    names: Sequence[str],
    make_job: Callable[[str], Job],
    *,
    clock: Clock,
) -> tuple[JobOutcome, ...]:
    """Wait until all children are ready, including standbys, then run the jobs one after the other."""
    start = clock.monotonic()
    try:
        pool.wait_ready(policy.ready_seconds)
    except ModelFailed as error:
        raise NeedsHuman(str(error)) from error
    except ChildFailed as error:
        return tuple(JobOutcome(name, "failed", clock.monotonic() - start, reason=str(error)) for name in names)
    recorder.wait_until_ready(1 + policy.standbys, policy.ready_seconds)
    outcomes = []
    for name in names:
        start = clock.monotonic()
        try:
            forecast: Forecast = pool.run(make_job(name))
        except (ModelFailed, ChildFailed) as error:
            status: JobStatus = "refused" if isinstance(error, ModelFailed) else "failed"
            outcomes.append(JobOutcome(name, status, clock.monotonic() - start, reason=str(error)))
        else:
            seconds, pid = clock.monotonic() - start, recorder.finished.get(name)
            outcomes.append(JobOutcome(name, "result", seconds, forecast.value, pid))
    return tuple(outcomes)
