"""Jobs end exactly once, whatever becomes of their children; a slot backs off; whoever watches cannot harm."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forecastd.supervise import detector
from forecastd.supervise.audience import BACKLOG, Audience
from forecastd.supervise.board import Board, Quarantined, Task, settle
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import BACK_OFF_FIRST, BACK_OFF_MOST, BACK_OFF_WITHIN, BackOff
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.report import Counts, Event

ATTEMPTS, STRIKES = 3, 3


def job(kind: Any = "predict", name: str = "forecast") -> Job:
    return Job(kind, name, 100.0, ATTEMPTS, lambda message: message)


def task(name: str = "a", kind: Any = "predict", deadline: float = 100.0) -> Task:
    return Task(name, job(kind, name), Future(), ATTEMPTS, deadline)


def board() -> Board:
    return Board(Counts(), "demo", STRIKES)


class Jobs(RuleBasedStateMachine):
    """Every order of what may happen to jobs: each ends once, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.board = Board(self.counts, "demo", STRIKES)
        self.now = 0.0
        self.tasks: list[Task] = []
        self.taken: list[Task] = []
        self.ends: dict[str, int] = {}
        self.waiting: list[Future[str]] = []

    @rule(kind=st.sampled_from(["predict", "check", "train"]), seconds=st.floats(-1, 20))
    def enter(self, kind: str, seconds: float) -> None:
        new = task(f"t{len(self.tasks)}", kind, self.now + seconds)
        new.future.add_done_callback(lambda _: self.ends.update({new.name: self.ends.get(new.name, 0) + 1}))
        self.tasks.append(new)
        self.board.enter(new)

    @rule()
    def take(self) -> None:
        if (taken := self.board.take()) is not None:
            assert taken not in self.taken
            assert taken.future.running()
            self.taken.append(taken)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), how=st.sampled_from(["back", "answer", "refuse", "fail"]))
    def end(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from(self.taken))
        self.taken.remove(one)
        if how == "back":
            left = one.left
            waits = self.board.back(one, "its child died", self.now)
            assert waits == (one in self.board.queue)
            assert one.left == left - 1
            if waits:
                assert self.board.queue[0] is one, "at the front"
                assert self.board.may_start or self.board.closed, "somebody is started for it"
        elif how == "answer":
            self.board.answer(one, 1.5)
        elif how == "refuse":
            self.board.refuse(one, ModelFailed("no", "data", ""))
        else:
            self.board.fail(one, "why")

    @rule(seconds=st.floats(0, 10))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.board.expire(self.now)
        assert all(one.deadline > self.now for one in self.board.queue)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.tasks)).future.cancel()

    @precondition(lambda self: len(self.tasks) > 4)
    @rule()
    def strike(self) -> None:
        self.board.strike("it crashed")

    @rule()
    def refused_bundle(self) -> None:
        self.board.refusal = ModelFailed("cut off", "bundle", "hash")
        self.board.release(self.board.refusal)

    @rule()
    def await_ready(self) -> None:
        self.waiting.append(Future())
        self.board.await_ready(self.waiting[-1])

    @rule()
    def ready(self) -> None:
        self.board.ready("b" * 64)

    @precondition(lambda self: self.taken)
    @rule()
    def close(self) -> None:
        self.board.close()

    @invariant()
    def each_ends_once_and_none_is_lost(self) -> None:
        for one in self.tasks:
            held = (one in self.taken) + (one in self.board.queue)
            if one.future.cancelled():
                continue
            assert self.ends.get(one.name, 0) <= 1
            assert held == (0 if one.future.done() else 1), one.name
            if one.future.done() and (error := one.future.exception()) is not None:
                assert isinstance(error, ChildFailed | ModelFailed)
                assert str(error)
        assert sum(self.counts.jobs.values()) >= sum(
            one.future.done() and not one.future.cancelled() for one in self.tasks
        )

    @invariant()
    def after_its_end_nothing_waits(self) -> None:
        if self.board.closed is not None or self.board.given_up is not None:
            assert not self.board.may_start
            assert all(future.done() for future in self.waiting)
            taken_back = {one.name for one in self.board.queue}
            assert not taken_back


test_each_job_ends_once_whatever_the_order = Jobs.TestCase


def test_three_failures_with_no_answer_between_are_a_quarantine() -> None:
    one = board()
    assert not one.strike("a")
    one.answer(task(), 1)
    assert not one.strike("b")
    assert not one.strike("c")
    waiting: Future[str] = Future()
    one.await_ready(waiting)
    queued = task()
    one.enter(queued)
    assert one.strike("d")
    assert not one.strike("e"), "it is told once"
    for future in (waiting, queued.future):
        assert isinstance(future.exception(), Quarantined)
    late = task()
    one.enter(late)
    assert isinstance(late.future.exception(), Quarantined)


def test_a_check_that_passes_does_not_make_up_for_forecasts_that_hang() -> None:
    """A model that hangs on today's data passes its canary each time."""
    one = board()
    struck = []
    for _ in range(STRIKES):
        one.answer(task(kind="check"), "sha")
        struck.append(one.strike("it hung"))
    assert struck == [False, False, True]


def test_a_job_that_comes_back_has_a_refused_bundle_tried_again() -> None:
    one, mine = board(), task()
    one.enter(mine)
    assert one.take() is mine
    one.refusal = ModelFailed("cut off", "bundle", "hash")
    assert not one.may_start
    assert one.back(mine, "its child died", 0)
    assert one.may_start


def test_a_job_that_comes_back_to_a_closed_board_ends() -> None:
    one, mine = board(), task()
    one.enter(mine)
    one.take()
    one.close()
    assert not one.back(mine, "its child died", 0)
    assert isinstance(mine.future.exception(), ChildFailed)


def test_settling_twice_or_after_a_cancel_changes_nothing() -> None:
    future: Future[int] = Future()
    settle(future, 1)
    settle(future, ValueError("late"))
    assert future.result() == 1
    gone: Future[int] = Future()
    gone.cancel()
    settle(gone, 1)
    with pytest.raises(CancelledError):
        gone.result()


def test_the_third_replacement_in_five_minutes_waits_and_each_after_it_twice_as_long() -> None:
    back_off, now, waits = BackOff(), 1000.0, []
    for _ in range(14):  # each child dies as soon as it is started
        waits.append(back_off.replaced(now))
        now = max(now, back_off.not_before) + 1
    assert waits[:2] == [0, 0]
    assert waits[2:8] == [BACK_OFF_FIRST * 2**power for power in range(6)]
    assert set(waits[9:]) == {BACK_OFF_MOST}


def test_a_child_that_lasts_has_earlier_ones_forgotten() -> None:
    back_off = BackOff()
    waits = [back_off.replaced(now) for now in (0, 1, 2)]
    assert waits == [0, 0, BACK_OFF_FIRST]
    now = back_off.not_before + BACK_OFF_WITHIN + 1
    assert back_off.replaced(now) == 0
    assert back_off.replaced(now + 1) == 0
    assert back_off.replaced(now + 2) == BACK_OFF_FIRST


@given(st.lists(st.floats(0.1, 2000), min_size=1, max_size=40))
def test_waits_are_bounded_and_rare_replacements_never_wait(gaps: list[float]) -> None:
    back_off, now, at = BackOff(), 0.0, []
    for gap in gaps:
        now = max(now, back_off.not_before) + gap
        wait = back_off.replaced(now)
        assert wait == 0 or BACK_OFF_FIRST <= wait <= BACK_OFF_MOST
        assert wait == 0 or back_off.not_before == now + wait
        at.append(now)
        if len(at) < 3 or gap > BACK_OFF_WITHIN:
            assert wait == 0


def event(kind: Any = "launched", text: str = "") -> Event:
    return Event(kind, 1, detector.launched(0, "l"), text=text)


def test_an_observer_hears_everything_in_order_from_a_thread_that_is_gone_after_the_close() -> None:
    heard: list[str] = []
    threads: set[threading.Thread] = set()

    def observe(told: Event) -> None:
        heard.append(told.text)
        threads.add(threading.current_thread())

    audience = Audience(observe)
    for number in range(100):
        audience.tell(event(text=str(number)))
    audience.settle(60)
    assert heard == [str(number) for number in range(100)]
    audience.close(60)
    audience.tell(event(text="late"))
    assert len(heard) == 100
    assert threads
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_a_stuck_observer_costs_bounded_memory_and_misses_progress_first() -> None:
    go = threading.Event()
    heard: list[str] = []

    def observe(told: Event) -> None:
        go.wait(60)
        heard.append(told.kind)

    audience = Audience(observe)
    for _ in range(2 * BACKLOG):
        audience.tell(event("progress"))
    audience.tell(event("hung"))
    for _ in range(2 * BACKLOG):
        audience.tell(event("launched"))
    go.set()
    audience.settle(60)
    assert "hung" in heard
    assert len(heard) <= BACKLOG + 1
    audience.close(60)


def test_an_observer_that_raises_hears_no_more_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))
    heard: list[str] = []

    def observe(told: Event) -> None:
        heard.append(told.text)
        raise ZeroDivisionError

    audience = Audience(observe)
    with caplog.at_level(logging.ERROR):
        audience.tell(event(text="first"))
        audience.settle(60)
        audience.tell(event(text="second"))
        audience.settle(60)
        audience.close(60)
    assert heard == ["first"]
    assert isinstance(raised[0], ZeroDivisionError)
    assert "they go on as ever" in caplog.text


def test_an_observer_may_wait_for_itself_without_end() -> None:
    done = threading.Event()

    def observe(_: Event) -> None:
        audience.settle(60)
        done.set()

    audience = Audience(observe)
    audience.tell(event())
    assert done.wait(60)
    audience.close(60)


def test_counts_are_one_json_object() -> None:
    counts = Counts(launches=3)
    counts.hangs["predicting", "abc"] += 2
    counts.jobs["result"] += 1
    told = counts.as_json()
    assert told["launches"] == 3
    assert told["hangs"] == [{"phase": "predicting", "bundle": "abc", "count": 2}]
    assert told["jobs"] == {"result": 1}
