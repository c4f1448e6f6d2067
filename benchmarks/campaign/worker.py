"""The campaign's worker: the product's own cycle on its own parts, with a model that costs nothing.

Run as `python -m benchmarks.campaign.worker JSON` it is one cycle in a fresh process that prints its outcome at the end.
Hundreds of them come out of a `Nursery`: a process that has imported everything, opened nothing, and forks one for each
task. `kill` says where the process ends as `kill -9` ends it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from types import TracebackType

import numpy as np

from benchmarks.processes import ROOT
from forecastd import failpoints
from forecastd.candles import Candles
from forecastd.chain.endpoints import Endpoints
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.submit import Spending
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.cycle import run_cycle
from forecastd.errors import ForecastdError
from forecastd.features import parse_features
from forecastd.forecaster import Forecaster
from forecastd.lease import Lease
from forecastd.ledger import Ledger
from forecastd.outcome import Outcome, ended_by
from forecastd.parts import Job, Parts
from forecastd.settings import EMBEDDED_MODEL
from forecastd.sources.sample import SampleSource
from forecastd.window import RollingWindow
from models.base import Forecast
from models.bundle import read_manifest

TOPIC = 67
SPENDING = Spending(floor=1, tier="standard", most=None)


def new_phrase() -> str:
    """A wallet's words."""
    from mnemonic import Mnemonic

    return str(Mnemonic("english").generate(128))


class CheapForecaster(Forecaster):
    """Real candles, real checks and real guards around a random forecast. There is no child process."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        """`before` is called where a model would begin to think; what it raises is the model's failure."""
        self.manifest = read_manifest(EMBEDDED_MODEL)
        self.features = parse_features((*self.manifest.past, *self.manifest.known), "the embedded bundle")
        self.remarks = ()
        self._before, self._reserve = before, None

    def check(self, over: Callable[[], bool] = lambda: False) -> str:
        return self.manifest.sha256

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        """Another value at every call, so that a second signature is never by chance the first one's bytes."""
        self._before()
        levels = (0.1, 0.5, 0.9)
        value = random.SystemRandom().uniform(-0.004, 0.004)
        steps = np.linspace(0, 1, self.manifest.horizon + 1)[1:, None]
        quantiles = steps * (value + np.array([-0.01, 0.0, 0.01]))
        return Forecast(candles.end, candles.step, levels, quantiles, value, "0" * 64, self.manifest.sha256)

    def close(self) -> None:
        """There is nothing to end."""


@dataclass(frozen=True)
class Task:
    """What one process is to do: for which wallet, with which state, on which endpoints, and where it is killed.

    `kill` is a failpoint and which time it is reached, or "moment" and after how many seconds.
    """

    phrase: str
    state: str
    endpoints: tuple[str, ...]
    kill: tuple[str, float] | None = None
    seconds: float = 20.0
    lease_wait: float = 5.0

    def text(self) -> str:
        return json.dumps(asdict(self))

    def line(self) -> list[str]:
        """The command line of a process that does it."""
        return [sys.executable, "-m", "benchmarks.campaign.worker", self.text()]

    @classmethod
    def read(cls, text: str) -> Task:
        """The task of `text()`."""
        fields = json.loads(text)
        return cls(**{**fields, "endpoints": tuple(fields["endpoints"])})


@contextmanager
def open_parts(
    wallet: Wallet,
    state: Path,
    endpoints: Sequence[str],
    forecaster: Forecaster | None = None,
    *,
    lease_wait: float = 5.0,
) -> Iterator[Parts]:
    """What `forecastd.worker.open_parts` puts together, in its order, with the cheap forecaster."""
    clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(Lease(LOCAL_CHAIN_ID, wallet.address, clock, wait=lease_wait))
        ledger = Ledger(state / "ledger.sqlite")
        stack.callback(ledger.close)
        window = RollingWindow.open(state / "window.sqlite")
        stack.callback(window.close)
        chain = stack.enter_context(Endpoints(endpoints, chain_id=LOCAL_CHAIN_ID, clock=clock))
        source = SampleSource("btcusd")
        yield Parts(source, window, forecaster or CheapForecaster(), ledger, chain, wallet, clock, Event())


def job(*, persist: bool = False, seconds: float | None = 20.0) -> Job:
    """The worker's job on the local network."""
    return Job(TOPIC, SPENDING, register=True, dry_run=False, persist=persist, seconds=seconds)


def serve(task: Task) -> Outcome:
    """One cycle, as the product runs it."""
    wallet = Wallet.from_mnemonic(task.phrase)
    try:
        with open_parts(wallet, Path(task.state), task.endpoints, lease_wait=task.lease_wait) as parts:
            return run_cycle(job(seconds=task.seconds), parts)
    except ForecastdError as error:
        return ended_by(error, Outcome("failed", topic_id=TOPIC))


def kill_at(name: str, when: float) -> None:
    """See to it that this process ends for good: at the `when`th time at a failpoint, or `when` seconds from now."""
    if name == "moment":
        timer = threading.Timer(when, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        return
    left = [int(when)]

    def reached(at: str) -> None:
        left[0] -= at == name
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install(reached)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status, negative for a signal, and what it told."""

    code: int
    outcome: dict[str, object]


class Nursery:
    """Forks a process for each task. Use as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.campaign.worker"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, task: Task) -> Ended:
        """One task in a process of its own, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task.text()]), file=self._process.stdin, flush=True)
        *told, ended = iter(self._process.stdout.readline, "\n")
        return Ended(int(ended), json.loads(told[0]) if told else {})

    def race(self, tasks: Sequence[Task], last: Callable[[], object]) -> tuple[list[int], list[dict[str, object]]]:
        """All tasks at the same moment, each in a process. Exit codes, outcomes.

        From when one is left, `last` is called five times a second: it may still be on its way to what it waits for.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task.text() for task in tasks]), file=self._process.stdin, flush=True)
        codes: list[int] = []
        outcomes: list[dict[str, object]] = []
        over = Event()

        def help_the_last() -> None:
            while not over.wait(0.2):
                last()

        helper = threading.Thread(target=help_the_last, daemon=True)
        for line in iter(self._process.stdout.readline, "\n"):
            if line.startswith("{"):
                outcomes.append(json.loads(line))
                continue
            codes.append(int(line))
            if len(codes) == len(tasks) - 1:
                helper.start()
        over.set()
        if helper.ident is not None:
            helper.join()
        return codes, outcomes

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _work(text: str) -> int:
    """One task in this process: print its outcome, and give its exit code."""
    task = Task.read(text)
    if task.kill is not None:
        kill_at(*task.kill)
    outcome = serve(task)
    os.write(1, f"{json.dumps(outcome.as_json())}\n".encode())  # whole, though others write to the same pipe
    return outcome.exit_code


def _raise(lines: Iterator[str]) -> None:
    """Children for each line of tasks, let go at the same moment: what they print, each one's status, an empty line."""
    for line in lines:
        gate, opener = os.pipe()
        tasks = json.loads(line)
        for text in tasks:
            if os.fork() == 0:
                code = 70
                try:
                    os.close(opener)
                    os.read(gate, 1)
                    code = _work(text)
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    os._exit(code)
        os.close(gate)
        os.close(opener)
        for _ in tasks:
            os.write(1, f"{os.waitstatus_to_exitcode(os.wait()[1])}\n".encode())
        os.write(1, b"\n")


def main() -> int:
    logging.basicConfig(level=os.environ.get("CAMPAIGN_LOG", "ERROR"))
    if len(sys.argv) > 1:
        return _work(sys.argv[1])
    _raise(iter(sys.stdin.readline, ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
