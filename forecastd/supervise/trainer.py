"""Carries one training to its end in a supervised child, and tells whoever waits how far it is.

A child that hangs or dies is replaced, and the next one goes on from the last checkpoint. An interrupt reaches the child,
which ends its work in its own way; one that does not, or that is to end at once, is killed, and the checkpoint stays good.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from forecastd.clock import Clock
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.report import Event
from forecastd.supervise.trainjob import reached
from models.progress import Progress

_LOST = {"hung", "died", "bad"}
_LOOK_SECONDS = 0.2

Heard = SimpleQueue[Event | None]  # None: the job has ended


class Trainer:
    """What is needed for a training but the training itself.

    `progress` and `remark` (a sentence on a child that was replaced) are called in the caller's thread. `at_once` is asked,
    once the training was interrupted, whether it is to end without any more ado.
    """

    def __init__(
        self,
        setup: Setup,
        policy: Policy,
        clock: Clock,
        *,
        progress: Callable[[Progress], None],
        remark: Callable[[str], None],
        at_once: Callable[[], bool] = lambda: False,
    ) -> None:
        self._setup, self._policy, self._clock = setup, policy, clock
        self._progress, self._remark, self._at_once = progress, remark, at_once
        self._lost = ""

    def run(self, job: Job) -> str:
        """Do the job; gives the bundle's sha256.

        Raises:
            ModelFailed: the training cannot be done, as a child told.
            ChildFailed: every child that tried it hung or died.
            KeyboardInterrupt: it was interrupted, and no child is at it any more.
        """
        heard: Heard = SimpleQueue()
        sha256: Future[str] = Future()
        try:
            with Pool(self._setup, self._policy, self._clock, observe=heard.put) as pool:
                sha256 = pool.submit(job)
                sha256.add_done_callback(lambda _: heard.put(None))
                self._follow(pool, sha256, heard)
            while not heard.empty():  # what the pool's observer told after the job's end
                if (event := heard.get()) is not None:
                    self._hear(event)
        except KeyboardInterrupt:
            if not sha256.done() or sha256.cancelled() or sha256.exception() is not None:
                raise  # else it came too late: while the child, its work done, was being ended
        return sha256.result()

    def _follow(self, pool: Pool, sha256: Future[str], heard: Heard) -> None:
        """Until the job has ended, or was interrupted."""
        try:
            while (event := heard.get()) is not None:
                self._hear(event)
        except KeyboardInterrupt:
            if sha256.cancel():
                raise
            self._end(pool, heard)

    def _hear(self, event: Event) -> None:
        if event.kind == "progress" and (told := reached(event.detail)) is not None:
            self._progress(told)
        elif event.kind in _LOST and event.job:
            self._lost = f"process {event.pid} {event.text}"
        elif event.kind == "dispatched" and self._lost:
            self._remark(f"{self._lost}; process {event.pid} goes on from the last checkpoint")
            self._lost = ""

    def _end(self, pool: Pool, heard: Heard) -> None:
        """Have the child interrupted, and wait for its end; raises KeyboardInterrupt when that does not come."""
        pool.interrupt()
        over = self._clock.monotonic() + self._policy.limits.stopping
        while self._clock.monotonic() < over and not self._at_once():
            try:
                event = heard.get(timeout=_LOOK_SECONDS)
            except Empty:
                continue
            if event is None:
                return
            if event.kind == "dispatched":
                pool.interrupt()  # the job was between two children when it was interrupted
            elif event.kind in _LOST and event.job:
                break
        raise KeyboardInterrupt
