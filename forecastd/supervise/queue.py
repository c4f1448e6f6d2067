"""The jobs of a pool, from their entry to their one end, and what is held against its bundle.

A job waits here, is taken, comes back when its child was lost, and ends once: with a value or a named failure.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.jobs import Job
from forecastd.supervise.process import ChildFailed, ModelFailed


class BundleQuarantined(ChildFailed):
    """The bundle hung or crashed its children too often in a row: none is started with it any more."""


@dataclass(eq=False)
class WorkItem:
    """A job on its way. `name` is unique; `left` counts attempts; `deadline` may come forward; `told` is why the last
    attempt failed."""

    name: str
    job: Job
    future: Future[Any]
    attempts_left: int
    deadline: float
    last_error: str = ""


class JobQueue:
    """Jobs that wait, callers that wait for a child to be ready, and strikes. For the pool's thread only.

    `refusal`: the bundle is no good, as a child told; forgotten when somebody asks again. `given_up`: it is in quarantine.
    """

    def __init__(self, counts: SupervisionCounts, name: str, quarantine_after: int) -> None:
        self.bundle_error: ModelFailed | None = None
        self.quarantine_error: BundleQuarantined | None = None
        self.closed: ChildFailed | None = None
        self._counts, self._name, self._quarantine_after = counts, name, quarantine_after
        self._queue: deque[WorkItem] = deque()
        self._ready_waiters: list[Future[str]] = []
        self._failures = 0

    @property
    def can_start(self) -> bool:
        """Whether it makes sense to start another child."""
        return self.bundle_error is None and self.quarantine_error is None and self.closed is None

    @property
    def pending(self) -> tuple[WorkItem, ...]:
        """The jobs that wait for a child."""
        return tuple(self._queue)

    def submit(self, item: WorkItem) -> None:
        """A new job; at once at its end when no child will ever take it."""
        final_error = self.quarantine_error or self.closed
        if final_error is not None:
            self._finish(item, "failed", final_error)
            return
        self.bundle_error = None
        self._queue.append(item)

    def take(self) -> WorkItem | None:
        """The next job for a child that is free."""
        while self._queue:
            item = self._queue.popleft()
            if item.future.running() or item.future.set_running_or_notify_cancel():
                return item
        return None

    def requeue(self, item: WorkItem, reason: str, now: float) -> bool:
        """The job's child was lost, as `told` says. Whether it waits again, at the front; else it has ended."""
        item.last_error, item.attempts_left = reason, item.attempts_left - 1
        is_final = self.quarantine_error is not None or self.closed is not None
        if item.attempts_left <= 0 or is_final or now >= item.deadline:
            self.fail(item, reason)
            return False
        self.bundle_error = None  # whether the bundle is still no good is asked again for it
        self._queue.appendleft(item)
        return True

    def complete(self, item: WorkItem, value: object) -> None:
        """The job has its result. That a model passes its canary says nothing yet of what it was struck for."""
        if item.job.kind != "check":
            self._failures = 0
        self._finish(item, "result", value)

    def reject(self, item: WorkItem, error: ModelFailed) -> None:
        """The child lives and says that it cannot do this job; nor could another."""
        self._finish(item, "refused", error)

    def fail(self, item: WorkItem, reason: str) -> None:
        """The job ends without a result."""
        self._finish(item, "failed", self.quarantine_error or ChildFailed(f"{item.job.name}: {reason}."))

    def expire(self, now: float) -> None:
        """End the waiting jobs whose deadline has passed."""
        for item in [item for item in self._queue if now >= item.deadline]:
            self._queue.remove(item)
            self.fail(item, f"its deadline has passed{f' ({item.last_error})' if item.last_error else ''}")

    def add_ready_waiter(self, future: Future[str]) -> None:
        """Somebody waits for a child to be ready."""
        final_error = self.quarantine_error or self.closed
        if final_error is not None:
            resolve(future, final_error)
            return
        self.bundle_error = None
        self._ready_waiters.append(future)

    def notify_ready(self, bundle: str) -> None:
        """A child is ready with this bundle."""
        for waiter in self._ready_waiters:
            resolve(waiter, bundle)
        self._ready_waiters.clear()

    def record_failure(self, reason: str) -> bool:
        """The bundle cost a child. Whether that was once too often, and nothing is started with it any more."""
        self._failures += 1
        if self._failures < self._quarantine_after or self.quarantine_error is not None:
            return False
        self._counts.quarantines += 1
        name = self._name or "the model"
        self.quarantine_error = BundleQuarantined(
            f"{reason}; {self._failures} failures in a row: {name} is in quarantine."
        )
        self.fail_all(self.quarantine_error)
        return True

    def fail_all(self, error: Exception) -> None:
        """Nobody will be ready for those who wait."""
        for waiter in self._ready_waiters:
            resolve(waiter, error)
        self._ready_waiters.clear()
        while self._queue:
            self._finish(self._queue.popleft(), "failed", error)

    def close(self) -> None:
        """Nothing is taken in any more."""
        self.closed = ChildFailed("The model's processes are being ended.")
        self.fail_all(self.closed)

    def _finish(self, item: WorkItem, status: str, result: object) -> None:
        self._counts.jobs[status] += 1
        resolve(item.future, result)


def resolve(future: Future[Any], result: object) -> None:
    """End a future, unless whoever waited for it has left."""
    if future.done() or (not future.running() and not future.set_running_or_notify_cancel()):
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
