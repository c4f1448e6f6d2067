"""Hang detection without processes: each kind of hang, and random histories of messages."""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.supervise import detector
from forecastd.supervise.detector import Phase, PhaseLimits, ProcessState, ProcessVerdict, assess

LIMITS = PhaseLimits(
    starting=5, loading=6, warming_up=7, predicting=8, training=9, post_processing=3, stopping=2, heartbeat=4
)
WORK_PHASES = [phase for phase in Phase if phase not in {Phase.IDLE, Phase.STOPPING}]


def report_progress(
    state: ProcessState,
    now: float,
    done: float,
    phase: Phase = Phase.PREDICTING,
    *,
    job: str | None = "j",
    launch_id: str = "l",
) -> ProcessState:
    return detector.record_progress(state, now, launch_id=launch_id, job=job, phase=phase, done=done, total=100)


def working_state(now: float = 0.0) -> ProcessState:
    return detector.assign_job(detector.start(now, "l"), now, "j", Phase.PREDICTING)


def repeat(
    state: ProcessState, begin: float, end: float, step: Callable[[ProcessState, float], ProcessState]
) -> ProcessState:
    """Apply `step` every half second from `begin` to `end`."""
    now = begin
    while now <= end:
        state = step(state, now)
        now += 0.5
    return state


def heartbeat(state: ProcessState, now: float) -> ProcessState:
    return detector.record_heartbeat(state, now, "l")


@pytest.mark.parametrize("percent", [0, 1, 25, 50, 75, 99])
def test_stalled_child_with_heartbeat_is_hung_past_limit(percent: int) -> None:
    state = repeat(report_progress(working_state(), 1, percent), 1, 9, heartbeat)
    since = 0 if percent == 0 else 1  # a report of 0 is no progress
    assert assess(since + 8, state, LIMITS).state == "slow"
    assert assess(since + 8.001, state, LIMITS).state == "hung"


def test_silent_child_is_hung_past_silence_limit() -> None:
    state = report_progress(working_state(), 1, 50)
    assert assess(5, state, LIMITS).state == "slow"
    result = assess(5.001, state, LIMITS)
    assert result.state == "hung"
    assert "no heartbeat" in result.reason


def test_silent_child_is_hung_before_first_step() -> None:
    assert assess(4.001, working_state(), LIMITS).state == "hung"


def test_starting_child_has_only_the_starting_limit() -> None:
    state = detector.start(0, "l")
    assert assess(4.9, state, LIMITS).state == "slow"
    assert assess(5.001, state, LIMITS).state == "hung"


def test_oscillating_progress_is_no_progress() -> None:
    state = report_progress(report_progress(working_state(), 1, 50), 1.1, 51)
    state = repeat(state, 1.5, 9.5, lambda state, now: report_progress(state, now, 50 + (now % 1 > 0)))
    assert assess(9.05, state, LIMITS).state == "slow"
    assert assess(9.2, state, LIMITS).state == "hung"


def test_idle_child_has_no_limit_and_next_job_resets_timers() -> None:
    state = detector.finish_job(detector.start(0, "l"), 1)
    state = repeat(state, 1, 1200, heartbeat)
    assert assess(1200.5, state, LIMITS).state == "ok"
    state = detector.assign_job(state, 1203, "j", Phase.PREDICTING)  # its last heartbeat was three seconds ago
    assert assess(1204.9, state, LIMITS).state == "ok"
    assert state.last_heartbeat == state.last_progress == 1203


def test_slow_step_below_limit_is_not_hung() -> None:
    state = repeat(report_progress(working_state(), 1, 50), 1, 8.5, heartbeat)
    assert assess(8.9, state, LIMITS).state == "slow"
    state = report_progress(state, 8.9, 60)
    assert assess(9, state, LIMITS).state == "ok"
    state = repeat(report_progress(state, 9, 0, Phase.POST_PROCESSING), 9, 12, heartbeat)
    assert assess(12, state, LIMITS).state == "slow"
    assert assess(12.1, state, LIMITS).state == "hung"


def test_reset_timers_after_suspend_still_detects_hang() -> None:
    state = detector.reset_timers(report_progress(working_state(), 1, 50), 7200)
    assert assess(7200, state, LIMITS).state == "ok"
    state = repeat(state, 7200, 7208, heartbeat)
    assert assess(7208.1, state, LIMITS).state == "hung"
    assert detector.reset_timers(state, 10) == state, "timers never move back"


def test_message_of_earlier_launch_is_ignored() -> None:
    state = working_state()
    assert report_progress(state, 3, 99, launch_id="earlier") is state
    assert detector.record_heartbeat(state, 3, "earlier") is state


def test_progress_of_another_job_counts_as_heartbeat_only() -> None:
    state = report_progress(working_state(), 3, 99, job="the job before")
    assert (state.last_heartbeat, state.last_progress, state.done) == (3, 0, 0)


def test_stopping_child_has_the_stopping_limit() -> None:
    state = detector.begin_stop(report_progress(working_state(), 1, 50), 2)
    state = repeat(state, 2, 4, lambda state, now: report_progress(state, now, 10 * now))
    assert assess(4.1, state, LIMITS).state == "hung"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_non_finite_progress_counts_as_zero(number: float) -> None:
    state = report_progress(working_state(), 1, number)
    assert (state.done, state.last_progress) == (0, 0)
    state = detector.record_progress(
        working_state(), 1, launch_id="l", job="j", phase=Phase.POST_PROCESSING, done=number, total=number
    )
    assert (state.done, state.total, state.percent) == (0, 0, 0)


def test_detector_imports_no_clock() -> None:
    tree = ast.parse(inspect.getsource(detector))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "math", "dataclasses", "enum", "typing"}


@dataclass(frozen=True)
class ChildInput:
    """A message of a child, or a timer reset, `wait` seconds after the previous one."""

    wait: float
    kind: str
    phase: Phase
    done: float


CHILD_INPUTS = st.builds(
    ChildInput,
    wait=st.floats(0, 3.9),
    kind=st.sampled_from(["heartbeat", "same job", "same job", "other job", "earlier launch", "reset"]),
    phase=st.sampled_from(list(Phase)),
    done=st.one_of(st.floats(-10, 110), st.just(math.nan), st.just(math.inf), st.sampled_from([50.0, 51.0])),
)


def apply_input(state: ProcessState, now: float, child_input: ChildInput) -> ProcessState:
    if child_input.kind == "heartbeat":
        return detector.record_heartbeat(state, now, "l")
    if child_input.kind == "reset":
        return detector.reset_timers(state, now)
    job = "another" if child_input.kind == "other job" else state.job
    launch_id = "e" if child_input.kind == "earlier launch" else "l"
    return report_progress(state, now, child_input.done, child_input.phase, job=job, launch_id=launch_id)


@given(st.lists(CHILD_INPUTS, max_size=60), st.sampled_from(WORK_PHASES))
def test_child_with_timely_progress_is_never_hung(inputs: list[ChildInput], phase: Phase) -> None:
    """Real progress comes at least once within each limit, with other messages in between."""
    job = None if phase in {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP} else "j"
    state = detector.start(0.0, "l")
    if job is not None or phase is not Phase.STARTING:
        state = detector.assign_job(state, 0.0, job, phase)  # type: ignore[arg-type]
    now, step, done = 0.0, 0.9 * min(LIMITS.for_phase(phase), LIMITS.heartbeat_limit(phase)), 1000.0
    for child_input in inputs:
        if child_input.kind == "same job" and list(Phase).index(child_input.phase) > list(Phase).index(phase):
            continue  # a later phase would change the limit; the next test covers that
        later = now + min(child_input.wait, step)
        assert assess(later, state, LIMITS).state != "hung"
        state, now = apply_input(state, later, child_input), later
        assert assess(now, state, LIMITS).state != "hung"
        done += 1
        state = report_progress(state, now, done, phase, job=job)
        assert (state.last_progress, state.done) == (now, done)


@given(st.lists(CHILD_INPUTS, max_size=80), st.sampled_from(WORK_PHASES))
def test_progress_only_advances_on_new_maximum_or_phase(inputs: list[ChildInput], phase: Phase) -> None:
    """`last_progress` moves only for a new maximum or a later phase of the same job and launch, or a timer reset. So a child
    without progress is hung when its limit has passed."""
    order = list(Phase)
    state, now = detector.assign_job(detector.start(0.0, "l"), 0.0, "j", phase), 0.0
    for child_input in inputs:
        now += child_input.wait
        before, state = state, apply_input(state, now, child_input)
        assert order.index(state.phase) >= order.index(before.phase)
        moved = state.last_progress != before.last_progress
        further = state.phase is before.phase and state.done > before.done
        later = order.index(state.phase) > order.index(before.phase)
        assert not moved or child_input.kind == "reset" or (child_input.kind == "same job" and (further or later))
        assert state.last_heartbeat in {before.last_heartbeat, now}
        assert (state.launch_id, state.job) == ("l", "j")
        past = state.last_progress + LIMITS.for_phase(state.phase) + 1e-6
        assert assess(past, detector.record_heartbeat(state, past, "l"), LIMITS).state == "hung"


@given(
    st.sampled_from(list(Phase)),
    st.floats(0, 1e6),
    st.floats(0, 20),
    st.floats(0, 20),
    st.floats(0, 20),
)
def test_verdict_holds_until_next_change(
    phase: Phase, start: float, since_progress: float, since_heartbeat: float, delay: float
) -> None:
    now = start + 20
    state = ProcessState("l", phase, "j", now - since_heartbeat, now - since_progress)
    result = assess(now, state, LIMITS)
    limit = LIMITS.for_phase(phase)
    worst_ratio = max((now - state.last_progress) / limit, (now - state.last_heartbeat) / LIMITS.heartbeat_limit(phase))
    expected = "hung" if worst_ratio > 1 else "slow" if worst_ratio > 0.5 else "ok"
    if abs(worst_ratio - 1) > 1e-6 and abs(worst_ratio - 0.5) > 1e-6:
        assert result.state == expected
    until = detector.next_change(now, state, LIMITS)
    assert until >= now
    later = min(now + delay, until)
    assert assess(later - 1e-6 if later > now else now, state, LIMITS).state == result.state
    if result.state == "hung":
        return
    assert until < math.inf
    steps = []
    while until < math.inf:  # step through the changes until the hang
        now = until + 1e-6
        steps.append(assess(now, state, LIMITS).state)
        until = detector.next_change(now, state, LIMITS)
    assert steps[-1] == "hung"
    assert steps == sorted(steps, key=["ok", "slow", "hung"].index)


def test_every_phase_but_idle_has_a_limit() -> None:
    assert {phase for phase in Phase if LIMITS.for_phase(phase) == math.inf} == {Phase.IDLE}
    assert assess(0, working_state(), LIMITS) == ProcessVerdict("ok")
