"""Runs one training run in a supervised child and reports its progress to the caller.

A child that hangs or dies is replaced, and the next one resumes from the last checkpoint. An interrupt is passed to the
child, which saves its work and ends; a child that does not, or that must stop now, is killed. The checkpoint stays valid.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

from forecastd.clock import Clock
from forecastd.inference.training_job import parse_progress
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from models.training.progress import TrainingProgress

_LOST_KINDS = {"hung", "died", "invalid_result"}
_POLL_SECONDS = 0.2

EventQueue = SimpleQueue[ProcessEvent | None]  # None: the job has ended


class TrainingSupervisor:
    """Runs training jobs in a pool of one child.

    `on_progress` and `on_replacement` (with a sentence on the replaced child) are called in the caller's thread. `stop_now`
    is polled after an interrupt; true kills the child without waiting for it.
    """

    def __init__(
        self,
        setup: ChildSetup,
        policy: SupervisionPolicy,
        clock: Clock,
        *,
        on_progress: Callable[[TrainingProgress], None],
        on_replacement: Callable[[str], None],
        stop_now: Callable[[], bool] = lambda: False,
    ) -> None:
        self._setup, self._policy, self._clock = setup, policy, clock
        self._on_progress, self._on_replacement, self._stop_now = on_progress, on_replacement, stop_now
        self._last_loss = ""

    def run(self, job: Job) -> str:
        """Run the job; return the bundle's sha256.

        Raises:
            ModelFailed: a child reported that the training cannot be done.
            ChildFailed: every child that tried it hung or died.
            KeyboardInterrupt: the training was interrupted, and no child works on it.
        """
        events: EventQueue = SimpleQueue()
        sha256: Future[str] = Future()
        try:
            with ProcessPool(self._setup, self._policy, self._clock, observer=events.put) as pool:
                sha256 = pool.submit(job)
                sha256.add_done_callback(lambda _: events.put(None))
                self._follow(pool, sha256, events)
            while not events.empty():  # events after the end of the job
                if (event := events.get()) is not None:
                    self._handle_event(event)
        except KeyboardInterrupt:
            if not sha256.done() or sha256.cancelled() or sha256.exception() is not None:
                raise  # else the work was done before the interrupt, which only hit the shutdown
        return sha256.result()

    def _follow(self, pool: ProcessPool, sha256: Future[str], events: EventQueue) -> None:
        """Handle events until the job ends or is interrupted."""
        try:
            while (event := events.get()) is not None:
                self._handle_event(event)
        except KeyboardInterrupt:
            if sha256.cancel():
                raise
            self._interrupt(pool, events)

    def _handle_event(self, event: ProcessEvent) -> None:
        if event.kind == "progress" and (latest := parse_progress(event.detail)) is not None:
            self._on_progress(latest)
        elif event.kind in _LOST_KINDS and event.job:
            self._last_loss = f"process {event.pid} {event.text}"
        elif event.kind == "dispatched" and self._last_loss:
            self._on_replacement(f"{self._last_loss}; process {event.pid} resumes from the last checkpoint")
            self._last_loss = ""

    def _interrupt(self, pool: ProcessPool, events: EventQueue) -> None:
        """Interrupt the child and wait for the job's end. Raises KeyboardInterrupt when it does not end in time."""
        pool.interrupt()
        deadline = self._clock.monotonic() + self._policy.limits.stopping
        while self._clock.monotonic() < deadline and not self._stop_now():
            try:
                event = events.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            if event is None:
                return
            if event.kind == "dispatched":
                pool.interrupt()  # the job was between two children at the first interrupt
            elif event.kind in _LOST_KINDS and event.job:
                break
        raise KeyboardInterrupt
