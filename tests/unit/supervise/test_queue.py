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
from forecastd.supervise.event_dispatcher import MAX_PENDING_EVENTS, EventDispatcher
from forecastd.supervise.events import ProcessEvent, SupervisionCounts
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import BACKOFF_WINDOW_SECONDS, MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS, SlotBackoff
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.queue import BundleQuarantined, JobQueue, WorkItem, resolve

ATTEMPTS, QUARANTINE_AFTER = 3, 3


def make_job(kind: Any = "predict", name: str = "forecast") -> Job:
    return Job(kind, name, 100.0, ATTEMPTS, lambda message: message)


def make_item(name: str = "a", kind: Any = "predict", deadline: float = 100.0) -> WorkItem:
    return WorkItem(name, make_job(kind, name), Future(), ATTEMPTS, deadline)


def make_queue() -> JobQueue:
    return JobQueue(SupervisionCounts(), "demo", QUARANTINE_AFTER)


class JobQueueMachine(RuleBasedStateMachine):
    """Every order of what may happen to jobs: each ends once, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = SupervisionCounts()
        self.queue = JobQueue(self.counts, "demo", QUARANTINE_AFTER)
        self.now = 0.0
        self.items: list[WorkItem] = []
        self.taken: list[WorkItem] = []
        self.end_counts: dict[str, int] = {}
        self.waiting: list[Future[str]] = []

    @rule(kind=st.sampled_from(["predict", "check", "train"]), seconds=st.floats(-1, 20))
    def submit(self, kind: str, seconds: float) -> None:
        item = make_item(f"t{len(self.items)}", kind, self.now + seconds)
        item.future.add_done_callback(
            lambda _: self.end_counts.update({item.name: self.end_counts.get(item.name, 0) + 1})
        )
        self.items.append(item)
        self.queue.submit(item)

    @rule()
    def take(self) -> None:
        if (taken := self.queue.take()) is not None:
            assert taken not in self.taken
            assert taken.future.running()
            self.taken.append(taken)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), how=st.sampled_from(["back", "answer", "refuse", "fail"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        item = data.draw(st.sampled_from(self.taken))
        self.taken.remove(item)
        if ending == "back":
            left = item.attempts_left
            waits = self.queue.requeue(item, "its child died", self.now)
            assert waits == (item in self.queue.pending)
            assert item.attempts_left == left - 1
            if waits:
                assert self.queue.pending[0] is item, "at the front"
                assert self.queue.can_start or self.queue.closed, "somebody is started for it"
        elif ending == "answer":
            self.queue.complete(item, 1.5)
        elif ending == "refuse":
            self.queue.reject(item, ModelFailed("no", "data", ""))
        else:
            self.queue.fail(item, "why")

    @rule(seconds=st.floats(0, 10))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.queue.expire(self.now)
        assert all(item.deadline > self.now for item in self.queue.pending)

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.items)).future.cancel()

    @precondition(lambda self: len(self.tasks) > 4)
    @rule()
    def record_failure(self) -> None:
        self.queue.record_failure("it crashed")

    @rule()
    def reject_bundle(self) -> None:
        self.queue.bundle_error = ModelFailed("cut off", "bundle", "hash")
        self.queue.fail_all(self.queue.bundle_error)

    @rule()
    def add_ready_waiter(self) -> None:
        self.waiting.append(Future())
        self.queue.add_ready_waiter(self.waiting[-1])

    @rule()
    def notify_ready(self) -> None:
        self.queue.notify_ready("b" * 64)

    @precondition(lambda self: self.taken)
    @rule()
    def close(self) -> None:
        self.queue.close()

    @invariant()
    def each_job_ends_once(self) -> None:
        for item in self.items:
            holders = (item in self.taken) + (item in self.queue.pending)
            if item.future.cancelled():
                continue
            assert self.end_counts.get(item.name, 0) <= 1
            assert holders == (0 if item.future.done() else 1), item.name
            if item.future.done() and (error := item.future.exception()) is not None:
                assert isinstance(error, ChildFailed | ModelFailed)
                assert str(error)
        assert sum(self.counts.jobs.values()) >= sum(
            item.future.done() and not item.future.cancelled() for item in self.items
        )

    @invariant()
    def nothing_waits_after_close(self) -> None:
        if self.queue.closed is not None or self.queue.quarantine_error is not None:
            assert not self.queue.can_start
            assert all(future.done() for future in self.waiting)
            requeued = {item.name for item in self.queue.pending}
            assert not requeued


test_job_queue_ends_each_job_once = JobQueueMachine.TestCase


def test_three_failures_without_result_quarantine_bundle() -> None:
    queue = make_queue()
    assert not queue.record_failure("a")
    queue.complete(make_item(), 1)
    assert not queue.record_failure("b")
    assert not queue.record_failure("c")
    waiting: Future[str] = Future()
    queue.add_ready_waiter(waiting)
    queued = make_item()
    queue.submit(queued)
    assert queue.record_failure("d")
    assert not queue.record_failure("e"), "it is told once"
    for future in (waiting, queued.future):
        assert isinstance(future.exception(), BundleQuarantined)
    late = make_item()
    queue.submit(late)
    assert isinstance(late.future.exception(), BundleQuarantined)


def test_passed_check_does_not_reset_failures() -> None:
    """A model that hangs on today's data passes its canary each time."""
    queue = make_queue()
    quarantined = []
    for _ in range(QUARANTINE_AFTER):
        queue.complete(make_item(kind="check"), "sha")
        quarantined.append(queue.record_failure("it hung"))
    assert quarantined == [False, False, True]


def test_requeued_job_clears_bundle_error() -> None:
    queue, item = make_queue(), make_item()
    queue.submit(item)
    assert queue.take() is item
    queue.bundle_error = ModelFailed("cut off", "bundle", "hash")
    assert not queue.can_start
    assert queue.requeue(item, "its child died", 0)
    assert queue.can_start


def test_requeue_on_closed_queue_fails_job() -> None:
    queue, item = make_queue(), make_item()
    queue.submit(item)
    queue.take()
    queue.close()
    assert not queue.requeue(item, "its child died", 0)
    assert isinstance(item.future.exception(), ChildFailed)


def test_resolve_twice_or_after_cancel_has_no_effect() -> None:
    future: Future[int] = Future()
    resolve(future, 1)
    resolve(future, ValueError("late"))
    assert future.result() == 1
    cancelled: Future[int] = Future()
    cancelled.cancel()
    resolve(cancelled, 1)
    with pytest.raises(CancelledError):
        cancelled.result()


def test_third_replacement_in_five_minutes_backs_off_exponentially() -> None:
    backoff, now, waits = SlotBackoff(), 1000.0, []
    for _ in range(14):  # each child dies as soon as it is started
        waits.append(backoff.record_replacement(now))
        now = max(now, backoff.not_before) + 1
    assert waits[:2] == [0, 0]
    assert waits[2:8] == [MIN_BACKOFF_SECONDS * 2**power for power in range(6)]
    assert set(waits[9:]) == {MAX_BACKOFF_SECONDS}


def test_long_lived_child_resets_backoff() -> None:
    backoff = SlotBackoff()
    waits = [backoff.record_replacement(now) for now in (0, 1, 2)]
    assert waits == [0, 0, MIN_BACKOFF_SECONDS]
    now = backoff.not_before + BACKOFF_WINDOW_SECONDS + 1
    assert backoff.record_replacement(now) == 0
    assert backoff.record_replacement(now + 1) == 0
    assert backoff.record_replacement(now + 2) == MIN_BACKOFF_SECONDS


@given(st.lists(st.floats(0.1, 2000), min_size=1, max_size=40))
def test_backoff_is_bounded_and_rare_replacements_do_not_wait(gaps: list[float]) -> None:
    backoff, now, times = SlotBackoff(), 0.0, []
    for gap in gaps:
        now = max(now, backoff.not_before) + gap
        wait = backoff.record_replacement(now)
        assert wait == 0 or MIN_BACKOFF_SECONDS <= wait <= MAX_BACKOFF_SECONDS
        assert wait == 0 or backoff.not_before == now + wait
        times.append(now)
        if len(times) < 3 or gap > BACKOFF_WINDOW_SECONDS:
            assert wait == 0


def make_event(kind: Any = "launched", text: str = "") -> ProcessEvent:
    return ProcessEvent(kind, 1, detector.start(0, "l"), text=text)


def test_observer_receives_events_in_order_until_close() -> None:
    delivered: list[str] = []
    threads: set[threading.Thread] = set()

    def observe(event: ProcessEvent) -> None:
        delivered.append(event.text)
        threads.add(threading.current_thread())

    dispatcher = EventDispatcher(observe)
    for number in range(100):
        dispatcher.publish(make_event(text=str(number)))
    dispatcher.flush(60)
    assert delivered == [str(number) for number in range(100)]
    dispatcher.close(60)
    dispatcher.publish(make_event(text="late"))
    assert len(delivered) == 100
    assert threads
    assert threading.current_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)


def test_stuck_observer_drops_progress_events_first() -> None:
    release = threading.Event()
    delivered: list[str] = []

    def observe(event: ProcessEvent) -> None:
        release.wait(60)
        delivered.append(event.kind)

    dispatcher = EventDispatcher(observe)
    for _ in range(2 * MAX_PENDING_EVENTS):
        dispatcher.publish(make_event("progress"))
    dispatcher.publish(make_event("hung"))
    for _ in range(2 * MAX_PENDING_EVENTS):
        dispatcher.publish(make_event("launched"))
    release.set()
    dispatcher.flush(60)
    assert "hung" in delivered
    assert len(delivered) <= MAX_PENDING_EVENTS + 1
    dispatcher.close(60)


def test_raising_observer_is_detached(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    raised: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: raised.append(arguments.exc_value))
    delivered: list[str] = []

    def observe(event: ProcessEvent) -> None:
        delivered.append(event.text)
        raise ZeroDivisionError

    dispatcher = EventDispatcher(observe)
    with caplog.at_level(logging.ERROR):
        dispatcher.publish(make_event(text="first"))
        dispatcher.flush(60)
        dispatcher.publish(make_event(text="second"))
        dispatcher.flush(60)
        dispatcher.close(60)
    assert delivered == ["first"]
    assert isinstance(raised[0], ZeroDivisionError)
    assert "they go on as ever" in caplog.text


def test_flush_from_observer_thread_does_not_deadlock() -> None:
    done = threading.Event()

    def observe(_: ProcessEvent) -> None:
        dispatcher.flush(60)
        done.set()

    dispatcher = EventDispatcher(observe)
    dispatcher.publish(make_event())
    assert done.wait(60)
    dispatcher.close(60)


def test_counts_serialize_to_one_json_object() -> None:
    counts = SupervisionCounts(launches=3)
    counts.hangs["predicting", "abc"] += 2
    counts.jobs["result"] += 1
    document = counts.as_json()
    assert document["launches"] == 3
    assert document["hangs"] == [{"phase": "predicting", "bundle": "abc", "count": 2}]
    assert document["jobs"] == {"result": 1}
