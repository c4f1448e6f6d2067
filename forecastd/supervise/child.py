"""The child's main: makes one model ready and proves it, or trains one, and answers until it is told to stop.

Started as `python -m forecastd.supervise.child FD LAUNCH PARENT MEMORY`. It has no secrets and needs none. It dies with
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
from forecastd.supervise.detector import Phase
from forecastd.supervise.faults import Saboteur, parse_faults
from forecastd.supervise.jobs import forecast_message, model_input  # now, so that no forecast costs an import
from forecastd.supervise.messages import ChannelClosed, Message, receive
from forecastd.supervise.voice import Voice

if TYPE_CHECKING:
    from collections.abc import Callable

    from models.engines import Engine
    from models.fleet.base import FleetEngine

    Prove = Callable[[Callable[[int, int], None]], float]

_TELL_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Be killed when the parent dies; leave at once when it already did."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


class Child:
    """One launch: its channel, its voice, and the model it was given."""

    def __init__(self, channel: socket.socket, launch: str) -> None:
        self._channel = channel
        self._voice = Voice(channel, launch)
        self._saboteur = Saboteur((), self._voice)
        self._engine: Engine | None = None
        self._fleet: FleetEngine | None = None
        self._prove: Prove | None = None  # runs the canary of whichever model was loaded
        self._sha256 = ""

    def serve(self) -> None:
        """Answer messages until `stop` or the end of the channel."""
        self._voice.beat()
        while True:
            if self._prove is not None:
                self._saboteur.hear()
            message = receive(self._channel)
            if message.kind == "stop":
                self._progress(None, Phase.STOPPING, 0, 1)
                return
            self._answer(message)

    def _answer(self, message: Message) -> None:
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
            self._fail(job, "memory", "The model ran out of memory.")
        except DataError as error:
            self._fail(job, "data", str(error))
        except BundleError as error:
            self._fail(job, "bundle", str(error), error.check)
        except ModelError as error:
            self._fail(job, "model", str(error), type(error).__name__)

    def _load(self, message: Message) -> None:
        self._saboteur = Saboteur(parse_faults(message.text("faults")), self._voice)
        told = {}
        if bundle := message.text("bundle"):
            self._progress(None, Phase.LOADING, 0, 3)
            self._load_bundle(Path(bundle), message.text("engine"), int(message.number("threads")))
            self._progress(None, Phase.WARMING_UP, 0, 1)
            self._run_canary(None, Phase.WARMING_UP)
            told = {"bundle_sha256": self._sha256}
        self._voice.say(Message("ready", self._voice.launch, told))

    def _load_bundle(self, path: Path, engine: str, threads: int) -> None:
        """Make a market's model ready, or with the name of an engine a fleet's."""
        if engine:
            from forecastd.supervise.fleetjob import prepare

            self._progress(None, Phase.LOADING, 1, 3)
            self._fleet, self._prove, self._sha256 = prepare(path, engine, threads)
        else:
            from models.bundle import load_bundle
            from models.engines import load_engine, verify_canary

            self._progress(None, Phase.LOADING, 1, 3)
            loaded = load_bundle(path)
            self._progress(None, Phase.LOADING, 2, 3)
            ready = self._engine = load_engine(loaded)
            self._prove, self._sha256 = (lambda tell: verify_canary(loaded, ready, tell)), loaded.sha256

    def _run_canary(self, job: str | None, phase: Phase) -> None:
        if self._prove is None:
            raise ChannelClosed  # a parent that asks before it was told `ready` is none of ours
        self._prove(lambda done, total: self._progress(job, phase, done, total))

    def _predict(self, message: Message) -> None:
        engine = self._engine
        if engine is None:
            raise ChannelClosed  # a parent that asks before it was told `ready` is none of ours
        job = message.text("job")
        self._progress(job, Phase.PREDICTING, 0, 1)
        forecast = engine.predict(
            model_input(message), lambda done, total: self._progress(job, Phase.PREDICTING, done, total)
        )
        self._progress(job, Phase.POST_PROCESSING, 0, 1)
        answer = self._saboteur.answer(forecast_message(forecast, self._voice.launch, job))
        self._progress(job, Phase.POST_PROCESSING, 1, 1)
        self._voice.say(answer)

    def _forecast_fleet(self, message: Message) -> None:
        from forecastd.supervise.fleetjob import answer, forecast

        engine = self._fleet
        if engine is None:
            raise ChannelClosed
        job = message.text("job")
        self._saboteur.reach(job, Phase.PREDICTING, 0, 1)
        quantiles, encoded = forecast(message, engine, self._sparingly(job))
        self._progress(job, Phase.POST_PROCESSING, 0, 1)
        told = self._saboteur.answer(answer(message, quantiles, encoded, self._voice.launch, self._sha256))
        self._saboteur.reach(job, Phase.POST_PROCESSING, 1, 1)
        self._voice.say(told)
        engine.look_ahead(int(message.number("tick")) + 1)

    def _sparingly(self, job: str) -> Callable[[int, int], None]:
        """Progress of short steps: told now and then, for every telling wakes the parent."""
        clock = SystemClock()
        told = clock.monotonic()

        def advance(done: int, total: int) -> None:
            nonlocal told
            self._saboteur.reach(job, Phase.PREDICTING, done, total)
            if (now := clock.monotonic()) - told >= _TELL_SECONDS:
                told = now
                self._voice.report(job, Phase.PREDICTING, done, total)

        return advance

    def _check(self, message: Message) -> None:
        job = message.text("job")
        self._run_canary(job, Phase.PREDICTING)
        self._voice.say(Message("result", self._voice.launch, {"job": job, "bundle_sha256": self._sha256}))

    def _train(self, message: Message) -> None:
        from forecastd.supervise.trainjob import train

        job = message.text("job")
        kind, told = train(
            message, lambda done, total, detail: self._progress(job, Phase.TRAINING, done, total, detail)
        )
        self._voice.say(Message(kind, self._voice.launch, {"job": job, **told}))

    def _progress(
        self, job: str | None, phase: Phase, done: float, total: float, detail: dict[str, object] | None = None
    ) -> None:
        self._saboteur.reach(job, phase, done, total)
        self._voice.report(job, phase, done, total, detail)

    def _fail(self, job: object, error: str, text: str, check: str = "") -> None:
        told = {"job": job, "error": error, "message": text, "check": check}
        self._voice.say(Message("error", self._voice.launch, told))


def main() -> None:
    descriptor, launch, parent, memory = sys.argv[1:]
    die_with(int(parent))
    # An interrupt is for a training; one that comes before it waits, so that it is neither lost nor ends the process.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    faulthandler.enable(all_threads=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if int(memory):
        resource.setrlimit(resource.RLIMIT_AS, (int(memory), int(memory)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(descriptor)) as channel:
        forker = [0]

        def before_a_fork() -> None:
            forker[0] = os.getpid()

        def in_a_fork() -> None:
            channel.close()
            die_with(forker[0])

        os.register_at_fork(before=before_a_fork, after_in_child=in_a_fork)
        try:
            Child(channel, launch).serve()
        except ChannelClosed:
            return


if __name__ == "__main__":
    main()
