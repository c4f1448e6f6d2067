"""A pool of supervised child processes: callers submit jobs, and each job ends exactly once.

One thread supervises the children; callers submit a job and wait for its future. That thread also starts the children,
because a child dies with the thread that started it.
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
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.jobs import ChildFailed
from forecastd.supervise.child_manager import MAX_POLL_SECONDS, ChildManager
from forecastd.supervise.events import EventDispatcher, Observer, SupervisionCounts
from forecastd.supervise.jobs import ChildSetup, Job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.queue import JobQueue, WorkItem

log = logging.getLogger(__name__)
T = TypeVar("T")

_SUSPENDED_SECONDS = 3.0  # a check that is this late: the machine was suspended, or this process stopped
_OBSERVER_FLUSH_SECONDS = 1.0  # how long a caller waits for the observer to catch up
_RESPONSE_MARGIN_SECONDS = 10.0  # in which the supervisor must end a job whose caller has stopped waiting


class ProcessPool(Closeable):
    """The children of one setup. A context manager that stops them on exit."""

    def __init__(
        self,
        setup: ChildSetup,
        policy: SupervisionPolicy,
        clock: Clock,
        *,
        size: int = 1,
        counts: SupervisionCounts | None = None,
        observer: Observer | None = None,
    ) -> None:
        """Start the children at once. `size`: the number of jobs that run at a time; the policy's standbys come on top.

        `counts`: counters to continue. `observer` is called in order from a thread of its own. When `run` returns, it has
        received every event up to the end of the job, unless it is too slow.
        """
        self.counts = SupervisionCounts() if counts is None else counts
        self._clock = clock
        self._numbers = count(1)
        self._queue = JobQueue(self.counts, setup.name, policy.quarantine_after)
        self._dispatcher = EventDispatcher(observer)
        self._child_manager = ChildManager(
            setup, policy, size, queue=self._queue, counts=self.counts, dispatcher=self._dispatcher
        )
        self._commands: deque[Callable[[], object]] = deque()
        self._lock, self._stopped = RLock(), False
        self._wake_writer, self._wake_reader = socket.socketpair()
        self._wake_writer.setblocking(False)
        self._wake_reader.setblocking(False)
        self._child_manager.selector.register(self._wake_reader, selectors.EVENT_READ)
        self._thread = Thread(target=self._supervise, name="supervisor", daemon=True)
        self._thread.start()

    def wait_ready(self, seconds: float, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Wait until a child is ready; return the bundle's sha256 (empty without a bundle).

        `should_stop` is polled every second; true ends the wait.

        Raises:
            ModelFailed: the bundle is invalid.
            BundleQuarantined, ChildFailed: no child became ready.
        """
        future: Future[str] = Future()
        self._run_on_thread(lambda: self._await_ready(future))
        end = self._clock.monotonic() + seconds
        ready = self._wait_for(future, lambda: should_stop() or self._clock.monotonic() >= end)
        self._dispatcher.flush(_OBSERVER_FLUSH_SECONDS)
        if ready is None:
            future.cancel()
            raise ChildFailed("No model process became ready in time.")
        return ready

    def submit(self, job: Job) -> Future[Any]:
        """Submit a job. Its future ends once: with the job's value, ModelFailed, BundleQuarantined or ChildFailed."""
        return self._submit(job).future

    def run(self, job: Job, should_stop: Callable[[], bool] = lambda: False) -> Any:
        """Submit a job and wait for its value. Raises the errors listed in `submit`.

        `should_stop` is polled every second; true gives the job up.
        """
        item = self._submit(job)
        if self._wait_for(item.future, should_stop) is None and not item.future.done():
            self._run_on_thread(lambda: self._expire(item))
        wait([item.future], _RESPONSE_MARGIN_SECONDS)
        self._dispatcher.flush(_OBSERVER_FLUSH_SECONDS)
        if not item.future.done():
            raise ChildFailed(
                f"{job.name}: the supervisor did not respond; the machine may be overloaded or suspended."
            )
        return item.future.result()

    def _submit(self, job: Job) -> WorkItem:
        item = WorkItem(f"{job.name} #{next(self._numbers)}", job, Future(), job.attempts, job.deadline)
        self._run_on_thread(lambda: self._queue.submit(item))
        return item

    def _expire(self, item: WorkItem) -> None:
        item.deadline = self._clock.monotonic()

    @staticmethod
    def _wait_for(future: Future[T], should_stop: Callable[[], bool]) -> T | None:
        """The value of the future; None when `should_stop` ends the wait."""
        while True:
            try:
                return future.result(MAX_POLL_SECONDS)
            except FutureTimeout:
                if should_stop():
                    return None

    def interrupt(self) -> None:
        """Send SIGINT to the working children, as Ctrl-C would; each ends its job in its own way."""
        self._run_on_thread(self._interrupt)

    def children(self) -> list[dict[str, object]]:
        """The current state of each child, for people and for `status`."""
        now = self._clock.monotonic()
        return [
            {
                "pid": child.pid,
                "phase": str(child.state.phase),
                "job": child.job_name or None,
                "percent": round(child.state.percent, 1),
                "heartbeat_age_s": round(now - child.state.last_heartbeat, 1),
                "progress_age_s": round(now - child.state.last_progress, 1),
            }
            for _, child in self._child_manager.children
        ]

    def close(self) -> None:
        """Stop every child within the stopping limit. Unfinished and later jobs fail."""
        self._run_on_thread(self._close)
        self._thread.join()
        self._dispatcher.close(_OBSERVER_FLUSH_SECONDS)

    def _run_on_thread(self, command: Callable[[], object]) -> None:
        """Run a command on the pool's thread; here, when that thread has ended or belongs to the parent of a fork."""
        with self._lock:
            if self._thread.is_alive() and not self._stopped:
                self._commands.append(command)
                with suppress(BlockingIOError):  # full: the thread is about to wake up anyway
                    self._wake_writer.send(b"\0")
                return
            self._stopped = True
            self._queue.close()
            command()

    def _await_ready(self, future: Future[str]) -> None:
        self._queue.add_ready_waiter(future)
        ready = next((child.bundle_sha256 for _, child in self._child_manager.children if child.is_ready), None)
        if ready is not None:
            self._queue.notify_ready(ready)

    def _interrupt(self) -> None:
        for _, child in self._child_manager.children:
            if child.item is not None and not self._stopped:
                child.signal(signal.SIGINT)

    def _close(self) -> None:
        self._queue.close()
        if not self._stopped:
            self._child_manager.stop_all(self._clock.monotonic())

    def _supervise(self) -> None:
        """The pool's thread: runs until the pool is closed and every child has exited."""
        manager, clock = self._child_manager, self._clock
        try:
            now = clock.monotonic()
            while not self._queue.closed or manager.stopping:
                manager.fill_slots(now)
                now = clock.monotonic()
                next_check = manager.next_check(now)
                for key, _ in manager.selector.select(next_check - now):
                    if key.fileobj is self._wake_reader:
                        self._wake_reader.recv(4096)
                now = clock.monotonic()
                while self._commands:
                    self._commands.popleft()()
                manager.read_children(now)
                if now - next_check > _SUSPENDED_SECONDS:
                    log.warning(
                        "The supervisor was not scheduled for %.1f s; process timers were reset.", now - next_check
                    )
                    manager.reset_timers(now)
                manager.handle_due_events(now)
        finally:
            with self._lock:
                self._stopped = True
                self._queue.close()
                manager.kill_all()
                while self._commands:
                    self._commands.popleft()()
                self._wake_writer.close()
                self._wake_reader.close()
