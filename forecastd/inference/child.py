"""The main of a child process: load one runner and do its jobs until the parent says stop.

Started as `python -m forecastd.inference.child FD LAUNCH PARENT MEMORY`. It needs no secrets and gets none. It dies with its
parent, has a memory limit, and communicates only over the inherited socket; what a model prints goes to stderr. On SIGUSR1 it
writes the stacks of all threads to stderr.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from math import inf
from typing import Any

from forecastd.clock import SystemClock
from forecastd.inference.runner import ProgressReport, Runner, RunnerResult, open_runner
from forecastd.runtime.jobs import ModelFailed
from forecastd.supervise.child_channel import ChildChannel
from forecastd.supervise.detector import Phase
from forecastd.supervise.faults import FaultInjector, parse_faults
from forecastd.supervise.protocol import ChannelClosed, ChildMessage
from models.errors import BundleError, DataError, ModelError

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once when the parent is already dead."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class ChildServer:
    """One launch: its channel and its runner, once that is loaded."""

    def __init__(self, channel: ChildChannel) -> None:
        self._channel, self._clock = channel, SystemClock()
        self._faults = FaultInjector((), channel)
        self._runner: Runner | None = None
        self._sha256 = ""

    def serve(self) -> None:
        """Handle messages until `stop`. Raises ChannelClosed when the parent is gone."""
        while True:
            if self._runner is not None:
                self._faults.on_read()
            message = self._channel.receive()
            if message.kind == "stop":
                self._reporter(None)(Phase.STOPPING, 0, 1)
                return
            try:
                if self._runner is None:
                    self._load(message)
                else:
                    self._run(self._runner, message)
            except (MemoryError, ModelFailed, ModelError) as error:
                failure = describe_error(error)
                fields = {"error": failure.kind, "message": str(failure), "check": failure.check}
                self._channel.send("error", {"job": message.fields.get("job"), **fields})
                self._channel.set_idle()

    def _load(self, message: ChildMessage) -> None:
        self._faults = FaultInjector(parse_faults(message.text("faults")), self._channel)
        report = self._reporter(None)
        report(Phase.LOADING, 0, 3)
        runner = open_runner(message.text("runner"))
        self._sha256 = runner.load(message, report)
        report(Phase.WARMING_UP, 0, 1)
        runner.check(lambda done, total: report(Phase.WARMING_UP, done, total))
        self._runner = runner
        self._channel.send("ready", {"bundle_sha256": self._sha256})
        self._channel.set_idle(message.number("idle_heartbeat"))

    def _run(self, runner: Runner, message: ChildMessage) -> None:
        self._channel.set_busy()
        job = message.text("job")
        report = self._reporter(job, runner.report_seconds)
        if message.kind == "check":
            runner.check(lambda done, total: report(Phase.PREDICTING, done, total))
            result = RunnerResult({"bundle_sha256": self._sha256})
        else:
            result = runner.run(message, report)
            self._faults.on_result(result.arrays)
        self._channel.send("result", {**result.fields, "job": job}, result.arrays)
        self._channel.set_idle()
        runner.prepare_next()

    def _reporter(self, job: str | None, interval: float = 0.0) -> ProgressReport:
        """A progress report for one job. It is sent at intervals, because every message wakes the parent."""
        last_phase: Phase | None = None
        last_time = -inf

        def report(phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None) -> None:
            nonlocal last_phase, last_time
            self._faults.on_progress(job, phase, done, total)
            now = self._clock.monotonic()
            if phase is not last_phase or now - last_time >= interval:
                last_phase, last_time = phase, now
                self._channel.report_progress(job, phase, done, total, detail)

        return report


def describe_error(error: MemoryError | ModelFailed | ModelError) -> ModelFailed:
    """An error of a runner as the parent raises it."""
    match error:
        case ModelFailed():
            return error
        case MemoryError():
            return ModelFailed("The model ran out of memory.", "memory")
        case BundleError():
            return ModelFailed(str(error), "bundle", error.check)
        case _:
            return ModelFailed(str(error), "data" if isinstance(error, DataError) else "model", type(error).__name__)


def main() -> None:
    descriptor, launch_id, parent, memory = sys.argv[1:]
    exit_with_parent(int(parent))
    # SIGINT is meant for a training run. One that arrives earlier waits, so that it is neither lost nor ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if int(memory):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(descriptor)) as channel:
        forking_pid = [0]

        def before_fork() -> None:
            forking_pid[0] = os.getpid()

        def after_fork_in_child() -> None:
            channel.close()
            exit_with_parent(forking_pid[0])

        os.register_at_fork(before=before_fork, after_in_child=after_fork_in_child)
        try:
            ChildServer(ChildChannel(channel, launch_id)).serve()
        except ChannelClosed:
            return


if __name__ == "__main__":
    main()
