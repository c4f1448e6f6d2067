"""Children that stand ready, and jobs that each end exactly once: what the rest of the house uses.

One thread keeps the children; callers only put a job in and wait for its future. It also starts them, for a child dies with
the thread that started it.
"""

from __future__ import annotations

import logging
import selectors
import signal
import socket
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from itertools import count
from threading import RLock, Thread
from typing import Any, TypeVar

from forecastd.clock import Clock
from forecastd.supervise.audience import Audience, Observer
from forecastd.supervise.board import Board, Task
from forecastd.supervise.jobs import Job
from forecastd.supervise.keeper import LOOK_SECONDS, Keeper
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.process import ChildFailed
from forecastd.supervise.report import Counts

log = logging.getLogger(__name__)
T = TypeVar("T")

_ASLEEP_SECONDS = 3.0  # nobody looked for that much longer than planned: the machine slept, or this process was stopped
_HEARD_SECONDS = 1.0  # how long a caller waits for an observer to catch up
_MARGIN = 10.0  # seconds in which the thread answers a caller that gives a job up


class Pool:
    """Children for one setup. Use as a context manager: leaving ends them all."""

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        clock: Clock,
        *,
        size: int = 1,
        counts: Counts | None = None,
        observe: Observer | None = None,
    ) -> None:
        """Start the children at once. `size`: how many jobs run at a time; the policy's standbys come on top.

        `counts`: where to go on counting. `observe` is called from a thread of its own, in order; what was told before a
        job's end it has heard when `run` returns, unless it is too slow.
        """
        self.counts = Counts() if counts is None else counts
        self._clock = clock
        self._names = count(1)
        self._board = Board(self.counts, setup.name, policy.strikes)
        self._audience = Audience(observe)
        self._keeper = Keeper(setup, policy, size, board=self._board, counts=self.counts, audience=self._audience)
        self._incoming: deque[Callable[[], object]] = deque()
        self._lock, self._over = RLock(), False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._keeper.selector.register(self._woken, selectors.EVENT_READ)
        self._thread = Thread(target=self._watch, name="supervisor", daemon=True)
        self._thread.start()

    def ready(self, seconds: float, over: Callable[[], bool] = lambda: False) -> str:
        """Wait until a child has the model ready; gives the bundle's sha256 (empty without a bundle).

        `over` is asked every second whether nobody waits any more.

        Raises:
            ModelFailed: the bundle is no good.
            Quarantined, ChildFailed: no child came to be ready.
        """
        future: Future[str] = Future()
        self._do(lambda: self._await_ready(future))
        end = self._clock.monotonic() + seconds
        ready = self._wait(future, lambda: over() or self._clock.monotonic() >= end)
        self._audience.settle(_HEARD_SECONDS)
        if ready is None:
            future.cancel()
            raise ChildFailed("No model process became ready in time.")
        return ready

    def submit(self, job: Job) -> Future[Any]:
        """Put a job in. The future ends once: with what the job reads, ModelFailed, Quarantined or ChildFailed."""
        return self._enter(job).future

    def run(self, job: Job, over: Callable[[], bool] = lambda: False) -> Any:
        """Put a job in and wait for what its answer reads. Raises as `submit` tells.

        `over` is asked every second whether nobody wants the answer any more.
        """
        task = self._enter(job)
        if self._wait(task.future, over) is None and not task.future.done():
            self._do(lambda: self._hurry(task))
        wait([task.future], _MARGIN)
        self._audience.settle(_HEARD_SECONDS)
        if not task.future.done():
            raise ChildFailed(f"{job.name}: nobody watches over it; this machine is too busy, or stood still.")
        return task.future.result()

    def _enter(self, job: Job) -> Task:
        task = Task(f"{job.name} #{next(self._names)}", job, Future(), job.attempts, job.deadline)
        self._do(lambda: self._board.enter(task))
        return task

    def _hurry(self, task: Task) -> None:
        task.deadline = self._clock.monotonic()

    @staticmethod
    def _wait(future: Future[T], over: Callable[[], bool]) -> T | None:
        """What the future gives, None when it is over before."""
        while True:
            try:
                return future.result(LOOK_SECONDS)
            except FutureTimeout:
                if over():
                    return None

    def interrupt(self) -> None:
        """Have working children interrupted, as Ctrl-C would; they end their job in their own way."""
        self._do(self._interrupt)

    def children(self) -> list[dict[str, object]]:
        """What every child is at, for people and for `status`."""
        now = self._clock.monotonic()
        return [
            {
                "pid": child.pid,
                "phase": str(child.watched.phase),
                "job": slot.job or None,
                "percent": round(child.watched.percent, 1),
                "heard_s": round(now - child.watched.heard, 1),
                "progressed_s": round(now - child.watched.progressed, 1),
            }
            for slot in list(self._keeper.slots)
            if (child := slot.child) is not None
        ]

    def close(self) -> None:
        """End every child, within the limit for stopping; jobs still under way fail, and so does every later one."""
        self._do(self._close)
        self._thread.join()
        self._audience.close(_HEARD_SECONDS)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, what: Callable[[], object]) -> None:
        """Have the pool's thread do something; when that has ended (or is another process's), it is done here."""
        with self._lock:
            if self._thread.is_alive() and not self._over:
                self._incoming.append(what)
                with suppress(BlockingIOError):  # full: it is about to wake up anyway
                    self._wake.send(b"\0")
                return
            self._over = True
            self._board.close()
            what()

    def _await_ready(self, future: Future[str]) -> None:
        self._board.await_ready(future)
        ready = next((slot.bundle for slot in self._keeper.slots if slot.proven), None)
        if ready is not None:
            self._board.ready(ready)

    def _interrupt(self) -> None:
        for slot in self._keeper.slots:
            if slot.child is not None and slot.task is not None and not self._over:
                slot.child.signal(signal.SIGINT)

    def _close(self) -> None:
        self._board.close()
        if not self._over:
            self._keeper.dismiss(self._clock.monotonic())

    def _watch(self) -> None:
        """The thread: until every child of a closed pool is gone."""
        keeper, clock = self._keeper, self._clock
        try:
            looked = clock.monotonic()
            while not self._board.closed or keeper.leaving:
                keeper.fill(looked)
                for key, _ in keeper.selector.select(keeper.until_next(clock.monotonic())):
                    if key.fileobj is self._woken:
                        self._woken.recv(4096)
                now = clock.monotonic()
                while self._incoming:
                    self._incoming.popleft()()
                keeper.hear(now)
                if now - looked > LOOK_SECONDS + _ASLEEP_SECONDS:
                    log.warning(
                        "Nobody watched the model's processes for %.1f s; their clocks start anew.", now - looked
                    )
                    keeper.woken(now)
                looked = now
                keeper.judge(now)
        finally:
            with self._lock:
                self._over = True
                self._board.close()
                keeper.end()
                while self._incoming:
                    self._incoming.popleft()()
                self._wake.close()
                self._woken.close()
