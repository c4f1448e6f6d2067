"""The job queue: each job ends exactly once, whatever becomes of its children; consecutive failures quarantine the bundle."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.jobs import Job
from forecastd.supervise.queue import BundleQuarantined, JobQueue, WorkItem, resolve

ATTEMPTS, QUARANTINE_AFTER = 3, 3


def make_job(kind: Any = "run", name: str = "forecast") -> Job:
    return Job(kind, name, 100.0, ATTEMPTS, lambda message: message)


def make_item(name: str = "a", kind: Any = "run", deadline: float = 100.0) -> WorkItem:
    return WorkItem(name, make_job(kind, name), Future(), ATTEMPTS, deadline)


def make_queue() -> JobQueue:
    return JobQueue(SupervisionCounts(), "demo", QUARANTINE_AFTER)


class JobQueueMachine(RuleBasedStateMachine):
    """Any order of operations: each job ends once, and none is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = SupervisionCounts()
        self.queue = JobQueue(self.counts, "demo", QUARANTINE_AFTER)
        self.now = 0.0
        self.items: list[WorkItem] = []
        self.taken: list[WorkItem] = []
        self.end_counts: dict[str, int] = {}
        self.waiting: list[Future[str]] = []

    @rule(kind=st.sampled_from(["run", "check"]), seconds=st.floats(-1, 20))
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
    @rule(data=st.data(), ending=st.sampled_from(["requeue", "complete", "reject", "fail"]))
    def end(self, data: st.DataObject, ending: str) -> None:
        item = data.draw(st.sampled_from(self.taken))
        self.taken.remove(item)
        if ending == "requeue":
            left = item.attempts_left
            waits = self.queue.requeue(item, "its child died", self.now)
            assert waits == (item in self.queue.pending)
            assert item.attempts_left == left - 1
            if waits:
                assert self.queue.pending[0] is item, "at the front"
                assert self.queue.can_start or self.queue.closed, "a child is started for it"
        elif ending == "complete":
            self.queue.complete(item, 1.5)
        elif ending == "reject":
            self.queue.reject(item, ModelFailed("no", "data", ""))
        else:
            self.queue.fail(item, "why")

    @rule(seconds=st.floats(0, 10))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.queue.expire(self.now)
        assert all(item.deadline > self.now for item in self.queue.pending)

    @precondition(lambda self: self.items)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.items)).future.cancel()

    @precondition(lambda self: len(self.items) > 4)
    @rule()
    def record_failure(self) -> None:
        self.queue.record_failure_and_quarantine("it crashed")

    @rule()
    def reject_bundle(self) -> None:
        self.queue.bundle_error = ModelFailed("truncated", "bundle", "hash")
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
    assert not queue.record_failure_and_quarantine("a")
    queue.complete(make_item(), 1)
    assert not queue.record_failure_and_quarantine("b")
    assert not queue.record_failure_and_quarantine("c")
    waiting: Future[str] = Future()
    queue.add_ready_waiter(waiting)
    queued = make_item()
    queue.submit(queued)
    assert queue.record_failure_and_quarantine("d")
    assert not queue.record_failure_and_quarantine("e"), "it is reported once"
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
        quarantined.append(queue.record_failure_and_quarantine("it hung"))
    assert quarantined == [False, False, True]


def test_requeued_job_clears_bundle_error() -> None:
    queue, item = make_queue(), make_item()
    queue.submit(item)
    assert queue.take() is item
    queue.bundle_error = ModelFailed("truncated", "bundle", "hash")
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
