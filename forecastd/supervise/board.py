"""The jobs of a pool, from their entry to their one end, and what is held against its bundle.

A job waits here, is taken, comes back when its child was lost, and ends once: with a value or a named failure.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from forecastd.supervise.jobs import Job
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.report import Counts


class Quarantined(ChildFailed):
    """The bundle hung or crashed its children too often in a row: none is started with it any more."""


@dataclass(eq=False)
class Task:
    """A job on its way. `name` is unique; `left` counts attempts; `deadline` may come forward; `told` is why the last
    attempt failed."""

    name: str
    job: Job
    future: Future[Any]
    left: int
    deadline: float
    told: str = ""


class Board:
    """Jobs that wait, callers that wait for a child to be ready, and strikes. For the pool's thread only.

    `refusal`: the bundle is no good, as a child told; forgotten when somebody asks again. `given_up`: it is in quarantine.
    """

    def __init__(self, counts: Counts, name: str, strikes: int) -> None:
        self.refusal: ModelFailed | None = None
        self.given_up: Quarantined | None = None
        self.closed: ChildFailed | None = None
        self._counts, self._name, self._allowed = counts, name, strikes
        self._queue: deque[Task] = deque()
        self._waiting: list[Future[str]] = []
        self._strikes = 0

    @property
    def may_start(self) -> bool:
        """Whether it makes sense to start another child."""
        return self.refusal is None and self.given_up is None and self.closed is None

    @property
    def queue(self) -> tuple[Task, ...]:
        """The jobs that wait for a child."""
        return tuple(self._queue)

    def enter(self, task: Task) -> None:
        """A new job; at once at its end when no child will ever take it."""
        over = self.given_up or self.closed
        if over is not None:
            self._end(task, "failed", over)
            return
        self.refusal = None
        self._queue.append(task)

    def take(self) -> Task | None:
        """The next job for a child that is free."""
        while self._queue:
            task = self._queue.popleft()
            if task.future.running() or task.future.set_running_or_notify_cancel():
                return task
        return None

    def back(self, task: Task, told: str, now: float) -> bool:
        """The job's child was lost, as `told` says. Whether it waits again, at the front; else it has ended."""
        task.told, task.left = told, task.left - 1
        over = self.given_up is not None or self.closed is not None
        if task.left <= 0 or over or now >= task.deadline:
            self.fail(task, told)
            return False
        self.refusal = None  # whether the bundle is still no good is asked again for it
        self._queue.appendleft(task)
        return True

    def answer(self, task: Task, value: object) -> None:
        """The job has its result. That a model passes its canary says nothing yet of what it was struck for."""
        if task.job.kind != "check":
            self._strikes = 0
        self._end(task, "result", value)

    def refuse(self, task: Task, error: ModelFailed) -> None:
        """The child lives and says that it cannot do this job; nor could another."""
        self._end(task, "refused", error)

    def fail(self, task: Task, why: str) -> None:
        """The job ends without a result."""
        self._end(task, "failed", self.given_up or ChildFailed(f"{task.job.name}: {why}."))

    def expire(self, now: float) -> None:
        """End the waiting jobs whose deadline has passed."""
        for task in [task for task in self._queue if now >= task.deadline]:
            self._queue.remove(task)
            self.fail(task, f"its deadline has passed{f' ({task.told})' if task.told else ''}")

    def await_ready(self, future: Future[str]) -> None:
        """Somebody waits for a child to be ready."""
        over = self.given_up or self.closed
        if over is not None:
            settle(future, over)
            return
        self.refusal = None
        self._waiting.append(future)

    def ready(self, bundle: str) -> None:
        """A child is ready with this bundle."""
        for waiting in self._waiting:
            settle(waiting, bundle)
        self._waiting.clear()

    def strike(self, told: str) -> bool:
        """The bundle cost a child. Whether that was once too often, and nothing is started with it any more."""
        self._strikes += 1
        if self._strikes < self._allowed or self.given_up is not None:
            return False
        self._counts.quarantines += 1
        name = self._name or "the model"
        self.given_up = Quarantined(f"{told}; {self._strikes} failures in a row: {name} is in quarantine.")
        self.release(self.given_up)
        return True

    def release(self, error: Exception) -> None:
        """Nobody will be ready for those who wait."""
        for waiting in self._waiting:
            settle(waiting, error)
        self._waiting.clear()
        while self._queue:
            self._end(self._queue.popleft(), "failed", error)

    def close(self) -> None:
        """Nothing is taken in any more."""
        self.closed = ChildFailed("The model's processes are being ended.")
        self.release(self.closed)

    def _end(self, task: Task, how: str, outcome: object) -> None:
        self._counts.jobs[how] += 1
        settle(task.future, outcome)


def settle(future: Future[Any], outcome: object) -> None:
    """End a future, unless whoever waited for it has left."""
    if future.done() or (not future.running() and not future.set_running_or_notify_cancel()):
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
