"""Whether a child is well: a pure function of what was heard of it, and when.

Three things that are easily mixed are told apart here: a child that has died (the process tells), one that is silent, and
one that is alive and makes no progress. Progress is a new maximum of `done` in this phase of this job, or a later phase of
it; 50, 51, 50, 51 is none. All times are monotonic seconds, so no jump of the wall clock can be seen here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal


class Phase(StrEnum):
    """What a child is at, in the order in which a launch, and then each of its jobs, goes through them."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    IDLE = "idle"  # waiting for a turn is no work and has no deadline
    PREDICTING = "predicting"
    TRAINING = "training"
    POST_PROCESSING = "post_processing"
    STOPPING = "stopping"


_PHASE_ORDER = {phase: place for place, phase in enumerate(Phase)}


@dataclass(frozen=True)
class PhaseLimits:
    """How many seconds each phase may go without progress; `silence`: how long without any sign of life.

    While it starts, a child cannot give one yet: the limit of that phase is the only one.
    """

    starting: float = 30.0
    loading: float = 60.0
    warming_up: float = 60.0
    predicting: float = 30.0
    training: float = 900.0
    post_processing: float = 10.0
    stopping: float = 5.0
    silence: float = 20.0

    def for_phase(self, phase: Phase) -> float:
        """The phase's limit in seconds; infinite for waiting."""
        return math.inf if phase is Phase.IDLE else float(getattr(self, phase.value))

    def silence_for(self, phase: Phase) -> float:
        """The limit of silence in a phase, in seconds."""
        return math.inf if phase is Phase.STARTING else self.silence


@dataclass(frozen=True)
class ProcessState:
    """What is known of one child. Frozen: every message gives a new one.

    `heard`: when its last message came. `progressed`: when it last got on. `done` of `total`: the most that this phase of
    this job has reached, in whatever the work counts.
    """

    launch: str
    phase: Phase
    job: str | None
    last_heartbeat: float
    last_progress: float
    done: float = 0.0
    total: float = 0.0

    @property
    def percent(self) -> float:
        """How far the phase is, 0 to 100."""
        return 100 * min(self.done / self.total, 1.0) if self.total > 0 else 0.0


@dataclass(frozen=True)
class ProcessVerdict:
    """`slow` past half of a limit, `hung` past all of it; `reason` says which limit."""

    state: Literal["ok", "slow", "hung"]
    reason: str = ""


OK = ProcessVerdict("ok")


def start(now: float, launch: str) -> ProcessState:
    """A child that was started just now."""
    return ProcessState(launch, Phase.STARTING, None, now, now)


def assign_job(state: ProcessState, now: float, job: str, phase: Phase) -> ProcessState:
    """A job was given to the child: its clocks start anew, however long it was idle or unheard before."""
    return replace(state, phase=phase, job=job, last_heartbeat=now, last_progress=now, done=0.0, total=0.0)


def finish_job(state: ProcessState, now: float) -> ProcessState:
    """The child became ready, or ended its job: it waits for a turn."""
    return replace(state, phase=Phase.IDLE, job=None, last_heartbeat=now, last_progress=now, done=0.0, total=0.0)


def begin_stop(state: ProcessState, now: float) -> ProcessState:
    """The child was told to stop."""
    return replace(state, phase=Phase.STOPPING, last_heartbeat=now, last_progress=now, done=0.0, total=0.0)


def record_heartbeat(state: ProcessState, now: float, launch: str) -> ProcessState:
    """A sign of life came. One of another launch touches nothing."""
    return replace(state, last_heartbeat=now) if launch == state.launch else state


def record_progress(
    state: ProcessState, now: float, *, launch: str, job: str | None, phase: Phase, done: float, total: float
) -> ProcessState:
    """A report of progress came.

    One of another launch touches nothing; one of another job, of an earlier phase or without a new maximum is a sign of
    life and no more. A child that was told to stop, or waits, has no work to get on with.
    """
    if launch != state.launch:
        return state
    updated = replace(state, last_heartbeat=now)
    if job != state.job or state.phase in {Phase.STOPPING, Phase.IDLE} or phase in {Phase.STOPPING, Phase.IDLE}:
        return updated
    if _PHASE_ORDER[phase] > _PHASE_ORDER[state.phase]:
        return replace(
            updated, phase=phase, last_progress=now, done=_finite_or_zero(done), total=_finite_or_zero(total)
        )
    if phase is state.phase and _finite_or_zero(done) > state.done:
        return replace(updated, last_progress=now, done=_finite_or_zero(done), total=_finite_or_zero(total))
    return updated


def reset_timers(state: ProcessState, now: float) -> ProcessState:
    """Nobody watched for a while (the machine slept, the parent was stopped): the clocks start anew."""
    return replace(state, last_heartbeat=max(state.last_heartbeat, now), last_progress=max(state.last_progress, now))


def assess(now: float, state: ProcessState, limits: PhaseLimits) -> ProcessVerdict:
    """How the child is at `now`."""
    limit, silence = limits.for_phase(state.phase), limits.silence_for(state.phase)
    since_progress, since_heartbeat = now - state.last_progress, now - state.last_heartbeat
    if since_heartbeat > silence:
        return ProcessVerdict("hung", f"silent for {since_heartbeat:.1f} s, {silence:g} s are allowed")
    if since_progress > limit:
        return ProcessVerdict("hung", f"no progress for {since_progress:.1f} s, {state.phase} may take {limit:g} s")
    if since_progress > limit / 2:
        return ProcessVerdict(
            "slow", f"no progress for {since_progress:.1f} s of the {limit:g} s that {state.phase} may take"
        )
    if since_heartbeat > silence / 2:
        return ProcessVerdict("slow", f"silent for {since_heartbeat:.1f} s of the {silence:g} s allowed")
    return OK


def next_change(now: float, state: ProcessState, limits: PhaseLimits) -> float:
    """Until when the verdict of `now` holds for sure if nothing more is heard of the child; infinite for ever."""
    limit, silence = limits.for_phase(state.phase), limits.silence_for(state.phase)
    changes = (
        state.last_progress + limit / 2,
        state.last_progress + limit,
        state.last_heartbeat + silence / 2,
        state.last_heartbeat + silence,
    )
    return min((time for time in changes if time >= now), default=math.inf)


def _finite_or_zero(number: float) -> float:
    """What a child reports is not to be trusted: what is no number counts as nothing."""
    return number if math.isfinite(number) and number > 0 else 0.0
