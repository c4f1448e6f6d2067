"""The child's main: makes one model ready and proves it, or trains one, and answers until it is told to stop.

Started as `python -m forecastd.inference.child FD LAUNCH PARENT MEMORY`. It has no secrets and needs none. It dies with
its parent, is bounded in memory, and speaks only over the socket it inherited; what a model prints goes to stderr. SIGUSR1
has the stacks of all its threads written there.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from forecastd.clock import SystemClock
from forecastd.supervise.child_channel import ChildChannel
from forecastd.supervise.detector import Phase
from forecastd.supervise.faults import FaultInjector, parse_faults
from forecastd.supervise.jobs import forecast_message, read_model_input  # now, so that no forecast costs an import
from forecastd.supervise.protocol import ChannelClosed, ChildMessage, receive

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.fleet.base import FleetEngine
    from models.market.engine import MarketEngine

    CanaryCheck = Callable[[Callable[[int, int], None]], float]

_REPORT_INTERVAL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def exit_with_parent(parent: int) -> None:
    """Be killed when the parent dies; leave at once when it already did."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class ChildServer:
    """One launch: its channel, its voice, and the model it was given."""

    def __init__(self, channel: socket.socket, launch: str) -> None:
        self._channel = channel
        self._parent_channel = ChildChannel(channel, launch)
        self._fault_injector = FaultInjector((), self._parent_channel)
        self._engine: MarketEngine | None = None
        self._fleet_engine: FleetEngine | None = None
        self._canary_check: CanaryCheck | None = None  # runs the canary of whichever model was loaded
        self._sha256 = ""

    def serve(self) -> None:
        """Answer messages until `stop` or the end of the channel."""
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
        from models.errors import BundleError, DataError, ModelError

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
        self._parent_channel.send(ChildMessage("ready", self._parent_channel.launch, fields))

    def _load_bundle(self, path: Path, engine_name: str, threads: int) -> None:
        """Make a market's model ready, or with the name of an engine a fleet's."""
        if engine_name:
            from forecastd.inference.fleet_job import load_fleet_model

            self._report_progress(None, Phase.LOADING, 1, 3)
            self._fleet_engine, self._canary_check, self._sha256 = load_fleet_model(path, engine_name, threads)
        else:
            from models.market.bundle import load_market_bundle
            from models.market.engine import load_market_engine, verify_market_canary

            self._report_progress(None, Phase.LOADING, 1, 3)
            bundle = load_market_bundle(path)
            self._report_progress(None, Phase.LOADING, 2, 3)
            loaded_engine = self._engine = load_market_engine(bundle)
            self._canary_check, self._sha256 = (
                (lambda report: verify_market_canary(bundle, loaded_engine, report)),
                bundle.sha256,
            )

    def _run_canary(self, job: str | None, phase: Phase) -> None:
        if self._canary_check is None:
            raise ChannelClosed  # a parent that asks before it was told `ready` is none of ours
        self._canary_check(lambda done, total: self._report_progress(job, phase, done, total))

    def _predict(self, message: ChildMessage) -> None:
        engine = self._engine
        if engine is None:
            raise ChannelClosed  # a parent that asks before it was told `ready` is none of ours
        job = message.text("job")
        self._report_progress(job, Phase.PREDICTING, 0, 1)
        forecast = engine.predict(
            read_model_input(message), lambda done, total: self._report_progress(job, Phase.PREDICTING, done, total)
        )
        self._report_progress(job, Phase.POST_PROCESSING, 0, 1)
        result = self._fault_injector.on_result(forecast_message(forecast, self._parent_channel.launch, job))
        self._report_progress(job, Phase.POST_PROCESSING, 1, 1)
        self._parent_channel.send(result)

    def _forecast_fleet(self, message: ChildMessage) -> None:
        from forecastd.inference.fleet_job import result_message, run_forecast

        engine = self._fleet_engine
        if engine is None:
            raise ChannelClosed
        job = message.text("job")
        self._fault_injector.on_progress(job, Phase.PREDICTING, 0, 1)
        quantiles, encoded = run_forecast(message, engine, self._throttled_progress(job))
        self._report_progress(job, Phase.POST_PROCESSING, 0, 1)
        result = self._fault_injector.on_result(
            result_message(message, quantiles, encoded, self._parent_channel.launch, self._sha256)
        )
        self._fault_injector.on_progress(job, Phase.POST_PROCESSING, 1, 1)
        self._parent_channel.send(result)
        engine.look_ahead(int(message.number("tick")) + 1)

    def _throttled_progress(self, job: str) -> Callable[[int, int], None]:
        """Progress of short steps: told now and then, for every telling wakes the parent."""
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
            ChildMessage("result", self._parent_channel.launch, {"job": job, "bundle_sha256": self._sha256})
        )

    def _train(self, message: ChildMessage) -> None:
        from forecastd.inference.training_job import train_in_child

        job = message.text("job")
        kind, fields = train_in_child(
            message, lambda done, total, detail: self._report_progress(job, Phase.TRAINING, done, total, detail)
        )
        self._parent_channel.send(ChildMessage(kind, self._parent_channel.launch, {"job": job, **fields}))

    def _report_progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: dict[str, object] | None = None
    ) -> None:
        self._fault_injector.on_progress(job, phase, done, total)
        self._parent_channel.report_progress(job, phase, done, total, detail)

    def _send_error(self, job: object, error: str, text: str, check: str = "") -> None:
        fields = {"job": job, "error": error, "message": text, "check": check}
        self._parent_channel.send(ChildMessage("error", self._parent_channel.launch, fields))


def main() -> None:
    descriptor, launch, parent, memory = sys.argv[1:]
    exit_with_parent(int(parent))
    # An interrupt is for a training; one that comes before it waits, so that it is neither lost nor ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if int(memory):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(descriptor)) as channel:
        forking_pid = [0]

        def before_a_fork() -> None:
            forking_pid[0] = os.getpid()

        def in_a_fork() -> None:
            channel.close()
            exit_with_parent(forking_pid[0])

        os.register_at_fork(before=before_a_fork, after_in_child=in_a_fork)
        try:
            ChildServer(channel, launch).serve()
        except ChannelClosed:
            return


if __name__ == "__main__":
    main()
