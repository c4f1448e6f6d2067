"""The detector: every row of the table of hangs that can be told without a process, and random histories of messages."""

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
from forecastd.supervise.detector import Limits, Phase, Verdict, Watched, verdict

LIMITS = Limits(starting=5, loading=6, warming_up=7, predicting=8, training=9, post_processing=3, stopping=2, silence=4)
WORK = [phase for phase in Phase if phase not in {Phase.IDLE, Phase.STOPPING}]


def report(
    child: Watched,
    now: float,
    done: float,
    phase: Phase = Phase.PREDICTING,
    *,
    job: str | None = "j",
    launch: str = "l",
) -> Watched:
    return detector.progressed(child, now, launch=launch, job=job, phase=phase, done=done, total=100)


def at_work(now: float = 0.0) -> Watched:
    return detector.dispatched(detector.launched(now, "l"), now, "j", Phase.PREDICTING)


def beat(child: Watched, begin: float, end: float, do: Callable[[Watched, float], Watched]) -> Watched:
    """Every half second something is heard of the child."""
    now = begin
    while now <= end:
        child = do(child, now)
        now += 0.5
    return child


def alive(child: Watched, now: float) -> Watched:
    return detector.alive(child, now, "l")


@pytest.mark.parametrize("percent", [0, 1, 25, 50, 75, 99])
def test_a_stall_that_still_beats_is_hung_just_past_the_limit(percent: int) -> None:
    child = beat(report(at_work(), 1, percent), 1, 9, alive)
    since = 0 if percent == 0 else 1  # a report of nothing done is no progress
    assert verdict(since + 8, child, LIMITS).state == "slow"
    assert verdict(since + 8.001, child, LIMITS).state == "hung"


def test_silence_in_the_middle_is_hung_by_its_own_limit_whatever_the_phase_allows() -> None:
    child = report(at_work(), 1, 50)
    assert verdict(5, child, LIMITS).state == "slow"
    found = verdict(5.001, child, LIMITS)
    assert found.state == "hung"
    assert "silent" in found.reason


def test_silence_before_the_first_step_is_hung() -> None:
    assert verdict(4.001, at_work(), LIMITS).state == "hung"


def test_a_child_that_starts_cannot_speak_yet_and_has_the_limit_of_that_phase_alone() -> None:
    child = detector.launched(0, "l")
    assert verdict(4.9, child, LIMITS).state == "slow"
    assert verdict(5.001, child, LIMITS).state == "hung"


def test_going_back_and_forth_is_no_progress() -> None:
    child = report(report(at_work(), 1, 50), 1.1, 51)
    child = beat(child, 1.5, 9.5, lambda child, now: report(child, now, 50 + (now % 1 > 0)))
    assert verdict(9.05, child, LIMITS).state == "slow"
    assert verdict(9.2, child, LIMITS).state == "hung"


def test_idleness_has_no_deadline_and_the_job_after_it_starts_with_fresh_clocks() -> None:
    child = detector.finished(detector.launched(0, "l"), 1)
    child = beat(child, 1, 1200, alive)
    assert verdict(1200.5, child, LIMITS).state == "ok"
    child = detector.dispatched(child, 1203, "j", Phase.PREDICTING)  # last heard of three seconds ago
    assert verdict(1204.9, child, LIMITS).state == "ok"
    assert child.heard == child.progressed == 1203


def test_one_slow_step_below_the_limit_and_slow_post_processing_are_fine() -> None:
    child = beat(report(at_work(), 1, 50), 1, 8.5, alive)
    assert verdict(8.9, child, LIMITS).state == "slow"
    child = report(child, 8.9, 60)
    assert verdict(9, child, LIMITS).state == "ok"
    child = beat(report(child, 9, 0, Phase.POST_PROCESSING), 9, 12, alive)
    assert verdict(12, child, LIMITS).state == "slow"
    assert verdict(12.1, child, LIMITS).state == "hung"


def test_the_clocks_start_anew_after_a_sleep_and_a_true_hang_is_still_found() -> None:
    child = detector.woken(report(at_work(), 1, 50), 7200)
    assert verdict(7200, child, LIMITS).state == "ok"
    child = beat(child, 7200, 7208, alive)
    assert verdict(7208.1, child, LIMITS).state == "hung"
    assert detector.woken(child, 10) == child, "never back in time"


def test_a_message_of_an_earlier_launch_touches_no_clock() -> None:
    child = at_work()
    assert report(child, 3, 99, launch="earlier") is child
    assert detector.alive(child, 3, "earlier") is child


def test_another_jobs_progress_is_a_sign_of_life_and_no_more() -> None:
    child = report(at_work(), 3, 99, job="the job before")
    assert (child.heard, child.progressed, child.done) == (3, 0, 0)


def test_a_child_that_was_told_to_stop_is_judged_by_the_limit_for_stopping() -> None:
    child = detector.stopping(report(at_work(), 1, 50), 2)
    child = beat(child, 2, 4, lambda child, now: report(child, now, 10 * now))
    assert verdict(4.1, child, LIMITS).state == "hung"


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_what_is_no_number_counts_as_nothing_done(number: float) -> None:
    child = report(at_work(), 1, number)
    assert (child.done, child.progressed) == (0, 0)
    child = detector.progressed(
        at_work(), 1, launch="l", job="j", phase=Phase.POST_PROCESSING, done=number, total=number
    )
    assert (child.done, child.total, child.percent) == (0, 0, 0)


def test_it_reads_no_clock_of_its_own() -> None:
    tree = ast.parse(inspect.getsource(detector))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "math", "dataclasses", "enum", "typing"}


@dataclass(frozen=True)
class Word:
    """Something a child may say, after so many seconds."""

    wait: float
    kind: str
    phase: Phase
    done: float


WORDS = st.builds(
    Word,
    wait=st.floats(0, 3.9),
    kind=st.sampled_from(["alive", "same job", "same job", "other job", "earlier launch", "woken"]),
    phase=st.sampled_from(list(Phase)),
    done=st.one_of(st.floats(-10, 110), st.just(math.nan), st.just(math.inf), st.sampled_from([50.0, 51.0])),
)


def say(child: Watched, now: float, word: Word) -> Watched:
    if word.kind == "alive":
        return detector.alive(child, now, "l")
    if word.kind == "woken":
        return detector.woken(child, now)
    job = "another" if word.kind == "other job" else child.job
    launch = "e" if word.kind == "earlier launch" else "l"
    return report(child, now, word.done, word.phase, job=job, launch=launch)


@given(st.lists(WORDS, max_size=60), st.sampled_from(WORK))
def test_a_child_that_gets_on_in_time_is_never_hung_whatever_else_it_says(words: list[Word], phase: Phase) -> None:
    """True progress comes at least once in each limit; lies, echoes and noise come between."""
    job = None if phase in {Phase.STARTING, Phase.LOADING, Phase.WARMING_UP} else "j"
    child = detector.launched(0.0, "l")
    if job is not None or phase is not Phase.STARTING:
        child = detector.dispatched(child, 0.0, job, phase)  # type: ignore[arg-type]
    now, step, done = 0.0, 0.9 * min(LIMITS.of(phase), LIMITS.silence_in(phase)), 1000.0
    for word in words:
        if word.kind == "same job" and list(Phase).index(word.phase) > list(Phase).index(phase):
            continue  # a later phase of its own would change the limit; that is the next test
        later = now + min(word.wait, step)
        assert verdict(later, child, LIMITS).state != "hung"
        child, now = say(child, later, word), later
        assert verdict(now, child, LIMITS).state != "hung"
        done += 1
        child = report(child, now, done, phase, job=job)
        assert (child.progressed, child.done) == (now, done)


@given(st.lists(WORDS, max_size=80), st.sampled_from(WORK))
def test_progress_moves_only_forward_and_each_step_of_it_is_true(words: list[Word], phase: Phase) -> None:
    """Whatever is said: `progressed` moves only for a new maximum or a later phase of the same job and launch, or a sleep;
    so whatever does not get on is hung by the time that the limit has passed."""
    order = list(Phase)
    child, now = detector.dispatched(detector.launched(0.0, "l"), 0.0, "j", phase), 0.0
    for word in words:
        now += word.wait
        before, child = child, say(child, now, word)
        assert order.index(child.phase) >= order.index(before.phase)
        moved = child.progressed != before.progressed
        further = child.phase is before.phase and child.done > before.done
        later = order.index(child.phase) > order.index(before.phase)
        assert not moved or word.kind == "woken" or (word.kind == "same job" and (further or later))
        assert child.heard in {before.heard, now}
        assert (child.launch, child.job) == ("l", "j")
        past = child.progressed + LIMITS.of(child.phase) + 1e-6
        assert verdict(past, detector.alive(child, past, "l"), LIMITS).state == "hung"


@given(
    st.sampled_from(list(Phase)),
    st.floats(0, 1e6),
    st.floats(0, 20),
    st.floats(0, 20),
    st.floats(0, 20),
)
def test_slow_from_half_a_limit_and_the_verdict_holds_until_it_is_due(
    phase: Phase, start: float, idle: float, silent: float, look: float
) -> None:
    now = start + 20
    child = Watched("l", phase, "j", now - silent, now - idle)
    found = verdict(now, child, LIMITS)
    limit = LIMITS.of(phase)
    worst = max((now - child.progressed) / limit, (now - child.heard) / LIMITS.silence_in(phase))
    wanted = "hung" if worst > 1 else "slow" if worst > 0.5 else "ok"
    if abs(worst - 1) > 1e-6 and abs(worst - 0.5) > 1e-6:
        assert found.state == wanted
    until = detector.due(now, child, LIMITS)
    assert until >= now
    later = min(now + look, until)
    assert verdict(later - 1e-6 if later > now else now, child, LIMITS).state == found.state
    if found.state == "hung":
        return
    assert until < math.inf
    steps = []
    while until < math.inf:  # from one change to the next, and there is the hang
        now = until + 1e-6
        steps.append(verdict(now, child, LIMITS).state)
        until = detector.due(now, child, LIMITS)
    assert steps[-1] == "hung"
    assert steps == sorted(steps, key=["ok", "slow", "hung"].index)


def test_every_phase_but_waiting_has_a_limit() -> None:
    assert {phase for phase in Phase if LIMITS.of(phase) == math.inf} == {Phase.IDLE}
    assert verdict(0, at_work(), LIMITS) == Verdict("ok")
