"""The jobs of a pool, from submission to their single result, and the failures counted against the pool's bundle.

Invariant: a job ends exactly once, with a value or with an error. Until then it waits here, is taken by a child, and is
requeued when that child is lost.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.jobs import Job


class BundleQuarantined(ChildFailed):
    """The bundle hung or crashed its children too often in a row. No child is started with it."""


@dataclass(eq=False)
class WorkItem:
    """A submitted job. `name` is unique. `deadline` (monotonic seconds) may be moved forward. `last_error`: why the last
    attempt failed, empty before the first failure."""

    name: str
    job: Job
    future: Future[Any]
    attempts_left: int
    deadline: float
    last_error: str = ""

    @property
    def attempt(self) -> int:
        """The number of the current attempt, from 1."""
        return self.job.attempts - self.attempts_left + 1


class JobQueue:
    """Waiting jobs, callers that wait for a ready child, and consecutive failures. For the pool's thread only.

    `bundle_error`: a child reported that the bundle is invalid; cleared by the next request, which tries the bundle again.
    `quarantine_error`: the bundle is in quarantine. `closed`: the pool is closing. `pending`: the jobs that wait for a child.
    """

    def __init__(self, counts: SupervisionCounts, name: str, quarantine_after: int) -> None:
        self.bundle_error: ModelFailed | None = None
        self.quarantine_error: BundleQuarantined | None = None
        self.closed: ChildFailed | None = None
        self._counts, self._name, self._quarantine_after = counts, name, quarantine_after
        self.pending: deque[WorkItem] = deque()
        self._ready_waiters: list[Future[str]] = []
        self._failures = 0

    @property
    def can_start(self) -> bool:
        """Whether another child may be started."""
        return self.bundle_error is None and self.final_error is None

    @property
    def final_error(self) -> ChildFailed | None:
        """Why no job will ever be done again."""
        return self.quarantine_error or self.closed

    def submit(self, item: WorkItem) -> None:
        """Add a job. It fails at once when no child will ever take it."""
        if self.final_error is not None:
            self._finish(item, "failed", self.final_error)
            return
        self.bundle_error = None
        self.pending.append(item)

    def take(self) -> WorkItem | None:
        """Remove and return the next job for an idle child. Cancelled jobs are dropped."""
        while self.pending:
            item = self.pending.popleft()
            if item.future.running() or item.future.set_running_or_notify_cancel():
                return item
        return None

    def requeue(self, item: WorkItem, reason: str, now: float) -> bool:
        """Put back a job whose child was lost for `reason`, at the front. False when the job has failed instead."""
        item.last_error, item.attempts_left = reason, item.attempts_left - 1
        if item.attempts_left <= 0 or self.final_error is not None or now >= item.deadline:
            self.fail(item, reason)
            return False
        self.bundle_error = None  # the job needs a child, so the bundle is tried again
        self.pending.appendleft(item)
        return True

    def complete(self, item: WorkItem, value: object) -> None:
        """End a job with its value. A passed canary check does not reset the failures: a bundle that hangs on current
        data may pass its canary every time."""
        if item.job.kind != "check":
            self._failures = 0
        self._finish(item, "result", value)

    def reject(self, item: WorkItem, error: ModelFailed) -> None:
        """End a job that a healthy child cannot do; no other child could."""
        self._finish(item, "refused", error)

    def fail(self, item: WorkItem, reason: str) -> None:
        """End a job without a result."""
        self._finish(item, "failed", self.quarantine_error or ChildFailed(f"{item.job.name}: {reason}."))

    def expire(self, now: float) -> None:
        """Fail the waiting jobs whose deadline has passed."""
        for item in [item for item in self.pending if now >= item.deadline]:
            self.pending.remove(item)
            self.fail(item, f"its deadline has passed{f' ({item.last_error})' if item.last_error else ''}")

    def add_ready_waiter(self, future: Future[str]) -> None:
        """Resolve `future` with the bundle's sha256 when a child is ready."""
        if self.final_error is not None:
            resolve(future, self.final_error)
            return
        self.bundle_error = None
        self._ready_waiters.append(future)

    def notify_ready(self, bundle: str) -> None:
        """A child is ready with the bundle of this sha256."""
        self._resolve_waiters(bundle)

    def record_failure_and_quarantine(self, reason: str) -> bool:
        """Count a child lost to the bundle. After too many in a row, quarantine the bundle and fail every waiting
        job; return whether that happened.
        """
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
        """Fail every waiting job and every caller that waits for a ready child."""
        self._resolve_waiters(error)
        while self.pending:
            self._finish(self.pending.popleft(), "failed", error)

    def _resolve_waiters(self, result: object) -> None:
        while self._ready_waiters:
            resolve(self._ready_waiters.pop(), result)

    def close(self) -> None:
        """Accept no more jobs and fail the waiting ones."""
        self.closed = ChildFailed("The model processes are shutting down.")
        self.fail_all(self.closed)

    def _finish(self, item: WorkItem, status: str, result: object) -> None:
        self._counts.jobs[status] += 1
        resolve(item.future, result)


def resolve(future: Future[Any], result: object) -> None:
    """End a future with a value or an exception, unless it has ended or was cancelled."""
    if future.done() or (not future.running() and not future.set_running_or_notify_cancel()):
        return
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
