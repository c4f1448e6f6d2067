"""Runs a long job in a supervised child of this machine and reports its progress to the caller.

A child that hangs or dies is replaced, and the next one continues the job. An interrupt is passed to the child, which saves
its work and ends; a child that does not, or that must stop now, is killed.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from math import inf
from queue import Empty, SimpleQueue
from typing import Any

from forecastd.clock import Clock
from forecastd.inference.runner import child_setup
from forecastd.runtime.jobs import JobListener, JobRequest
from forecastd.settings import Settings, numeric_environment
from forecastd.supervise.detector import Phase
from forecastd.supervise.events import ProcessEvent
from forecastd.supervise.jobs import Job
from forecastd.supervise.policy import SupervisionPolicy, policy_from_settings
from forecastd.supervise.pool import ProcessPool

_LOST_KINDS = {"hung", "died", "invalid_result"}
_POLL_SECONDS = 0.2

EventQueue = SimpleQueue[ProcessEvent | None]  # None: the job has ended


class LocalJobRunner:
    """A `JobRunner` with one child at a time, which may use every core. `faults`: of the first `faulty_launches` children."""

    def __init__(self, policy: SupervisionPolicy, clock: Clock, *, faults: str = "", faulty_launches: int = 1) -> None:
        # Torch reserves far more address space than it uses (hundreds of GiB with a GPU), so a limit would be meaningless; a
        # job may use the machine like any program that its user starts. There is no bundle to quarantine.
        self._policy = replace(policy, standbys=0, memory=0, quarantine_after=policy.attempts + 1)
        self._clock, self._faults, self._faulty_launches = clock, faults, faulty_launches

    def run(self, request: JobRequest, listener: JobListener) -> Any:
        """See `JobRunner`."""
        setup = child_setup(
            request.kind,
            name=request.name,
            faults=self._faults,
            faulty_launches=self._faulty_launches,
            threads=0,
            environment=numeric_environment(),
        )
        job = Job(
            "run",
            f"{request.kind} of {request.name}",
            inf,
            self._policy.attempts,
            lambda message: request.read(message.fields),
            dict(request.fields),
            phase=Phase.TRAINING,
        )
        events: EventQueue = SimpleQueue()
        result: Future[Any] = Future()
        report = _Reporter(listener)
        try:
            with ProcessPool(setup, self._policy, self._clock, observer=events.put) as pool:
                result = pool.submit(job)
                result.add_done_callback(lambda _: events.put(None))
                try:
                    while (event := events.get()) is not None:
                        report(event)
                except KeyboardInterrupt:
                    if result.cancel():
                        raise
                    self._interrupt(pool, events, listener)
            while not events.empty():  # events after the end of the job
                if (event := events.get()) is not None:
                    report(event)
        except KeyboardInterrupt:
            if not result.done() or result.cancelled() or result.exception() is not None:
                raise  # else the work was done before the interrupt, which only hit the shutdown
        return result.result()

    def _interrupt(self, pool: ProcessPool, events: EventQueue, listener: JobListener) -> None:
        """Interrupt the child and wait for the job's end. Raises KeyboardInterrupt when it does not end in time."""
        pool.interrupt()
        deadline = self._clock.monotonic() + self._policy.limits.stopping
        while self._clock.monotonic() < deadline and not listener.stop_now():
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


class _Reporter:
    """Reports the events of one job to its listener."""

    def __init__(self, listener: JobListener) -> None:
        self._listener, self._last_loss = listener, ""

    def __call__(self, event: ProcessEvent) -> None:
        if event.kind == "progress" and event.detail:
            self._listener.on_progress(event.detail)
        elif event.kind in _LOST_KINDS and event.job:
            self._last_loss = f"process {event.pid} {event.text}"
        elif event.kind == "dispatched" and self._last_loss:
            self._listener.on_replacement(f"{self._last_loss}; process {event.pid} resumes from the last checkpoint")
            self._last_loss = ""


def open_job_runner(settings: Settings, clock: Clock, *, faults: str = "") -> LocalJobRunner:
    """The job runner of this machine with the policy of these settings."""
    return LocalJobRunner(policy_from_settings(settings, standbys=0), clock, faults=faults)
