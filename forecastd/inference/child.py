"""The main of a child process: load one model and run its jobs, or train one, until the parent says stop.

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
from collections.abc import Callable
from pathlib import Path

from forecastd.clock import SystemClock
from forecastd.inference.fleet_job import load_fleet_model, result_message, run_forecast
from forecastd.inference.market_job import forecast_message, read_model_input
from forecastd.inference.training_job import train_in_child
from forecastd.supervise.child_channel import ChildChannel
from forecastd.supervise.detector import Phase
from forecastd.supervise.faults import FaultInjector, parse_faults
from forecastd.supervise.protocol import ChannelClosed, ChildMessage, receive
from models.errors import BundleError, DataError, ModelError
from models.fleet.base import FleetEngine
from models.market.bundle import load_market_bundle
from models.market.engine import MarketEngine, load_market_engine, verify_market_canary

CanaryCheck = Callable[[Callable[[int, int], None]], float]

_REPORT_INTERVAL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies; exit at once when the parent is already dead."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class ChildServer:
    """One launch: its channel and the model that it loaded."""

    def __init__(self, channel: socket.socket, launch_id: str) -> None:
        self._channel = channel
        self._parent_channel = ChildChannel(channel, launch_id)
        self._fault_injector = FaultInjector((), self._parent_channel)
        self._engine: MarketEngine | None = None
        self._fleet_engine: FleetEngine | None = None
        self._canary_check: CanaryCheck | None = None  # of the model that was loaded, of either kind
        self._sha256 = ""

    def serve(self) -> None:
        """Handle messages until `stop`. Raises ChannelClosed when the parent is gone."""
        self._parent_channel.start_heartbeat()
        while True:
            if self._canary_check is not None:
                self._fault_injector.on_read()
            message = receive(self._channel)
            if message.kind == "stop":
                self._report_progress(None, Phase.STOPPING, 0, 1)
                return
            self._handle(message)

    def _handle(self, message: ChildMessage) -> None:
        job = message.fields.get("job")
        try:
            if message.kind == "load":
                self._load(message)
            elif message.kind == "predict":
                self._predict(message)
            elif message.kind == "fleet":
                self._forecast_fleet(message)
            elif message.kind == "check":
                self._check(message)
            elif message.kind == "train":
                self._train(message)
        except MemoryError:
            self._send_error(job, "memory", "The model ran out of memory.")
        except DataError as error:
            self._send_error(job, "data", str(error))
        except BundleError as error:
            self._send_error(job, "bundle", str(error), error.check)
        except ModelError as error:
            self._send_error(job, "model", str(error), type(error).__name__)

    def _load(self, message: ChildMessage) -> None:
        self._fault_injector = FaultInjector(parse_faults(message.text("faults")), self._parent_channel)
        fields = {}
        if bundle := message.text("bundle"):
            self._report_progress(None, Phase.LOADING, 0, 3)
            self._load_bundle(Path(bundle), message.text("engine"), int(message.number("threads")))
            self._report_progress(None, Phase.WARMING_UP, 0, 1)
            self._run_canary(None, Phase.WARMING_UP)
            fields = {"bundle_sha256": self._sha256}
        self._parent_channel.send(ChildMessage("ready", self._parent_channel.launch_id, fields))

    def _load_bundle(self, path: Path, engine_name: str, threads: int) -> None:
        """Load a fleet model when an engine is named, else a market model. Raises BundleError."""
        self._report_progress(None, Phase.LOADING, 1, 3)
        if engine_name:
            self._fleet_engine, self._canary_check, self._sha256 = load_fleet_model(path, engine_name, threads)
        else:
            bundle = load_market_bundle(path)
            self._report_progress(None, Phase.LOADING, 2, 3)
            engine = self._engine = load_market_engine(bundle)
            self._canary_check = lambda report: verify_market_canary(bundle, engine, report)
            self._sha256 = bundle.sha256

    def _run_canary(self, job: str | None, phase: Phase) -> None:
        if self._canary_check is None:
            raise ChannelClosed  # only a foreign parent sends a job before `ready`
        self._canary_check(lambda done, total: self._report_progress(job, phase, done, total))

    def _predict(self, message: ChildMessage) -> None:
        engine = self._engine
        if engine is None:
            raise ChannelClosed  # only a foreign parent sends a job before `ready`
        job = message.text("job")
        self._report_progress(job, Phase.PREDICTING, 0, 1)
        forecast = engine.predict(
            read_model_input(message), lambda done, total: self._report_progress(job, Phase.PREDICTING, done, total)
        )
        self._report_progress(job, Phase.POST_PROCESSING, 0, 1)
        result = self._fault_injector.on_result(forecast_message(forecast, self._parent_channel.launch_id, job))
        self._report_progress(job, Phase.POST_PROCESSING, 1, 1)
        self._parent_channel.send(result)

    def _forecast_fleet(self, message: ChildMessage) -> None:
        engine = self._fleet_engine
        if engine is None:
            raise ChannelClosed  # only a foreign parent sends a job before `ready`
        job = message.text("job")
        self._fault_injector.on_progress(job, Phase.PREDICTING, 0, 1)
        quantiles, encoded = run_forecast(message, engine, self._throttled_progress(job))
        self._report_progress(job, Phase.POST_PROCESSING, 0, 1)
        result = self._fault_injector.on_result(
            result_message(message, quantiles, encoded, self._parent_channel.launch_id, self._sha256)
        )
        self._fault_injector.on_progress(job, Phase.POST_PROCESSING, 1, 1)
        self._parent_channel.send(result)
        engine.look_ahead(int(message.number("tick")) + 1)

    def _throttled_progress(self, job: str) -> Callable[[int, int], None]:
        """A progress callback for short steps. It reports at intervals, because every report wakes the parent."""
        clock = SystemClock()
        last_report = clock.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal last_report
            self._fault_injector.on_progress(job, Phase.PREDICTING, done, total)
            if (now := clock.monotonic()) - last_report >= _REPORT_INTERVAL_SECONDS:
                last_report = now
                self._parent_channel.report_progress(job, Phase.PREDICTING, done, total)

        return advance

    def _check(self, message: ChildMessage) -> None:
        job = message.text("job")
        self._run_canary(job, Phase.PREDICTING)
        self._parent_channel.send(
            ChildMessage("result", self._parent_channel.launch_id, {"job": job, "bundle_sha256": self._sha256})
        )

    def _train(self, message: ChildMessage) -> None:
        job = message.text("job")
        kind, fields = train_in_child(
            message, lambda done, total, detail: self._report_progress(job, Phase.TRAINING, done, total, detail)
        )
        self._parent_channel.send(ChildMessage(kind, self._parent_channel.launch_id, {"job": job, **fields}))

    def _report_progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: dict[str, object] | None = None
    ) -> None:
        self._fault_injector.on_progress(job, phase, done, total)
        self._parent_channel.report_progress(job, phase, done, total, detail)

    def _send_error(self, job: object, error: str, text: str, check: str = "") -> None:
        fields = {"job": job, "error": error, "message": text, "check": check}
        self._parent_channel.send(ChildMessage("error", self._parent_channel.launch_id, fields))


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
            ChildServer(channel, launch_id).serve()
        except ChannelClosed:
            return


if __name__ == "__main__":
    main()
