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


_ORDER = {phase: place for place, phase in enumerate(Phase)}


@dataclass(frozen=True)
class Limits:
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

    def of(self, phase: Phase) -> float:
        """The phase's limit in seconds; infinite for waiting."""
        return math.inf if phase is Phase.IDLE else float(getattr(self, phase.value))

    def silence_in(self, phase: Phase) -> float:
        """The limit of silence in a phase, in seconds."""
        return math.inf if phase is Phase.STARTING else self.silence


@dataclass(frozen=True)
class Watched:
    """What is known of one child. Frozen: every message gives a new one.

    `heard`: when its last message came. `progressed`: when it last got on. `done` of `total`: the most that this phase of
    this job has reached, in whatever the work counts.
    """

    launch: str
    phase: Phase
    job: str | None
    heard: float
    progressed: float
    done: float = 0.0
    total: float = 0.0

    @property
    def percent(self) -> float:
        """How far the phase is, 0 to 100."""
        return 100 * min(self.done / self.total, 1.0) if self.total > 0 else 0.0


@dataclass(frozen=True)
class Verdict:
    """`slow` past half of a limit, `hung` past all of it; `reason` says which limit."""

    state: Literal["ok", "slow", "hung"]
    reason: str = ""


OK = Verdict("ok")


def launched(now: float, launch: str) -> Watched:
    """A child that was started just now."""
    return Watched(launch, Phase.STARTING, None, now, now)


def dispatched(child: Watched, now: float, job: str, phase: Phase) -> Watched:
    """A job was given to the child: its clocks start anew, however long it was idle or unheard before."""
    return replace(child, phase=phase, job=job, heard=now, progressed=now, done=0.0, total=0.0)


def finished(child: Watched, now: float) -> Watched:
    """The child became ready, or ended its job: it waits for a turn."""
    return replace(child, phase=Phase.IDLE, job=None, heard=now, progressed=now, done=0.0, total=0.0)


def stopping(child: Watched, now: float) -> Watched:
    """The child was told to stop."""
    return replace(child, phase=Phase.STOPPING, heard=now, progressed=now, done=0.0, total=0.0)


def alive(child: Watched, now: float, launch: str) -> Watched:
    """A sign of life came. One of another launch touches nothing."""
    return replace(child, heard=now) if launch == child.launch else child


def progressed(
    child: Watched, now: float, *, launch: str, job: str | None, phase: Phase, done: float, total: float
) -> Watched:
    """A report of progress came.

    One of another launch touches nothing; one of another job, of an earlier phase or without a new maximum is a sign of
    life and no more. A child that was told to stop, or waits, has no work to get on with.
    """
    if launch != child.launch:
        return child
    heard = replace(child, heard=now)
    if job != child.job or child.phase in {Phase.STOPPING, Phase.IDLE} or phase in {Phase.STOPPING, Phase.IDLE}:
        return heard
    if _ORDER[phase] > _ORDER[child.phase]:
        return replace(heard, phase=phase, progressed=now, done=_counted(done), total=_counted(total))
    if phase is child.phase and _counted(done) > child.done:
        return replace(heard, progressed=now, done=_counted(done), total=_counted(total))
    return heard


def woken(child: Watched, now: float) -> Watched:
    """Nobody watched for a while (the machine slept, the parent was stopped): the clocks start anew."""
    return replace(child, heard=max(child.heard, now), progressed=max(child.progressed, now))


def verdict(now: float, child: Watched, limits: Limits) -> Verdict:
    """How the child is at `now`."""
    limit, silence = limits.of(child.phase), limits.silence_in(child.phase)
    idle, silent = now - child.progressed, now - child.heard
    if silent > silence:
        return Verdict("hung", f"silent for {silent:.1f} s, {silence:g} s are allowed")
    if idle > limit:
        return Verdict("hung", f"no progress for {idle:.1f} s, {child.phase} may take {limit:g} s")
    if idle > limit / 2:
        return Verdict("slow", f"no progress for {idle:.1f} s of the {limit:g} s that {child.phase} may take")
    if silent > silence / 2:
        return Verdict("slow", f"silent for {silent:.1f} s of the {silence:g} s allowed")
    return OK


def due(now: float, child: Watched, limits: Limits) -> float:
    """Until when the verdict of `now` holds for sure if nothing more is heard of the child; infinite for ever."""
    limit, silence = limits.of(child.phase), limits.silence_in(child.phase)
    changes = (
        child.progressed + limit / 2,
        child.progressed + limit,
        child.heard + silence / 2,
        child.heard + silence,
    )
    return min((at for at in changes if at >= now), default=math.inf)


def _counted(number: float) -> float:
    """What a child reports is not to be trusted: what is no number counts as nothing."""
    return number if math.isfinite(number) and number > 0 else 0.0
