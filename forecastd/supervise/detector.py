"""Hang detection: pure functions that decide, from a child's messages and their times, whether it is healthy.

Silence (no message at all) and a stall (messages, but no progress) are separate conditions; a dead child is detected from
its process, not here. Progress is a new maximum of `done` in the current phase of the current job, or a later phase of that
job: 50, 51, 50, 51 is one step.

Invariant: all times are monotonic seconds given by the caller, so a jump of the wall clock has no effect.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal


class Phase(StrEnum):
    """What a child is doing, in the order in which a launch, and then each of its jobs, passes through the phases."""

    STARTING = "starting"
    LOADING = "loading"
    WARMING_UP = "warming_up"
    IDLE = "idle"  # waiting for a job has no limit
    PREDICTING = "predicting"
    TRAINING = "training"
    POST_PROCESSING = "post_processing"
    STOPPING = "stopping"


_PHASE_ORDER = {phase: index for index, phase in enumerate(Phase)}


@dataclass(frozen=True)
class PhaseLimits:
    """Seconds that each phase may go without progress. `heartbeat`: seconds without any message.

    A starting child cannot send messages yet, so only the limit of that phase applies to it.
    """

    starting: float = 30.0
    loading: float = 60.0
    warming_up: float = 60.0
    predicting: float = 30.0
    training: float = 900.0
    post_processing: float = 10.0
    stopping: float = 5.0
    heartbeat: float = 20.0

    def for_phase(self, phase: Phase) -> float:
        """The progress limit of a phase in seconds; infinite while idle."""
        return math.inf if phase is Phase.IDLE else float(getattr(self, phase.value))

    def heartbeat_limit(self, phase: Phase) -> float:
        """The heartbeat limit in a phase, in seconds; infinite while starting."""
        return math.inf if phase is Phase.STARTING else self.heartbeat

    @property
    def idle_heartbeat(self) -> float:
        """Seconds between two heartbeats of an idle child: several fit into the limit."""
        return max(1.0, self.heartbeat / 4)


@dataclass(frozen=True)
class ProcessState:
    """The last known state of one child. Every message gives a new value.

    `launch_id`: that of the child's launch. `last_heartbeat`, `last_progress`: monotonic seconds of its last message and of
    its last progress. `done` of `total`: the maximum reached in this phase of this job, in units of the work.
    """

    launch_id: str
    phase: Phase
    job: str | None
    last_heartbeat: float
    last_progress: float
    done: float = 0.0
    total: float = 0.0

    @property
    def percent(self) -> float:
        """The progress of the phase, 0 to 100."""
        return 100 * min(self.done / self.total, 1.0) if self.total > 0 else 0.0


@dataclass(frozen=True)
class ProcessVerdict:
    """`slow` past half of a limit, `hung` past the limit; `reason` names the limit."""

    state: Literal["ok", "slow", "hung"]
    reason: str = ""


OK = ProcessVerdict("ok")


def start(now: float, launch_id: str) -> ProcessState:
    """The state of a child that was just started."""
    return ProcessState(launch_id, Phase.STARTING, None, now, now)


def assign_job(state: ProcessState, now: float, job: str, phase: Phase) -> ProcessState:
    """Give the child a job. Its timers start again, however long it was idle or silent before."""
    return _enter(state, now, phase, job)


def finish_job(state: ProcessState, now: float) -> ProcessState:
    """The child became ready or finished its job, and is idle."""
    return _enter(state, now, Phase.IDLE, None)


def begin_stop(state: ProcessState, now: float) -> ProcessState:
    """The child was asked to stop."""
    return _enter(state, now, Phase.STOPPING, state.job)


def _enter(state: ProcessState, now: float, phase: Phase, job: str | None) -> ProcessState:
    return replace(state, phase=phase, job=job, last_heartbeat=now, last_progress=now, done=0.0, total=0.0)


def record_heartbeat(state: ProcessState, now: float, launch_id: str) -> ProcessState:
    """Record a message of the child. One of another launch is ignored."""
    return replace(state, last_heartbeat=now) if launch_id == state.launch_id else state


def record_progress(
    state: ProcessState, now: float, *, launch_id: str, job: str | None, phase: Phase, done: float, total: float
) -> ProcessState:
    """Record a progress report.

    A report of another launch is ignored. A report of another job, of an earlier phase or without a new maximum counts as a
    heartbeat only, and so does any report while the child is stopping or idle.
    """
    if launch_id != state.launch_id:
        return state
    updated = replace(state, last_heartbeat=now)
    if job != state.job or not {phase, state.phase}.isdisjoint({Phase.STOPPING, Phase.IDLE}):
        return updated
    # A child's numbers are not trusted: NaN, infinity and negative values count as 0.
    done, total = (number if math.isfinite(number) and number > 0 else 0.0 for number in (done, total))
    if _PHASE_ORDER[phase] > _PHASE_ORDER[state.phase] or (phase is state.phase and done > state.done):
        return replace(updated, phase=phase, last_progress=now, done=done, total=total)
    return updated


def reset_timers(state: ProcessState, now: float) -> ProcessState:
    """Restart the timers after the parent did not run for a while: the machine was suspended, or the parent stopped."""
    return replace(state, last_heartbeat=max(state.last_heartbeat, now), last_progress=max(state.last_progress, now))


def assess(now: float, state: ProcessState, limits: PhaseLimits) -> ProcessVerdict:
    """The health of the child at `now`."""
    limit, heartbeat_limit = limits.for_phase(state.phase), limits.heartbeat_limit(state.phase)
    since_progress, since_heartbeat = now - state.last_progress, now - state.last_heartbeat
    if since_heartbeat > heartbeat_limit:
        return ProcessVerdict("hung", f"no heartbeat for {since_heartbeat:.1f} s, the limit is {heartbeat_limit:g} s")
    if since_progress > limit:
        return ProcessVerdict(
            "hung", f"no progress for {since_progress:.1f} s, the limit in {state.phase} is {limit:g} s"
        )
    if since_progress > limit / 2:
        return ProcessVerdict("slow", f"no progress for {since_progress:.1f} s of {limit:g} s in {state.phase}")
    if since_heartbeat > heartbeat_limit / 2:
        return ProcessVerdict("slow", f"no heartbeat for {since_heartbeat:.1f} s of {heartbeat_limit:g} s")
    return OK


def next_change(now: float, state: ProcessState, limits: PhaseLimits) -> float:
    """The time until which the verdict of `now` holds if no message comes; infinite if it never changes."""
    limit, heartbeat_limit = limits.for_phase(state.phase), limits.heartbeat_limit(state.phase)
    changes = (
        state.last_progress + limit / 2,
        state.last_progress + limit,
        state.last_heartbeat + heartbeat_limit / 2,
        state.last_heartbeat + heartbeat_limit,
    )
    return min((time for time in changes if time >= now), default=math.inf)
