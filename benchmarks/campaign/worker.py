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
from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.submit import FeePolicy
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.ledger.outcome import Outcome, outcome_from_error
from forecastd.market.candles import Candles
from forecastd.market.features import parse_features
from forecastd.market.sources.sample import SampleSource
from forecastd.market.window import RollingWindow
from forecastd.runtime import failpoints
from forecastd.runtime.wallet_lock import WalletLock
from forecastd.settings import DEMO_MODEL
from forecastd.submission.context import CycleContext, CycleOptions
from forecastd.submission.cycle import run_cycle
from models.base import Forecast
from models.market.bundle import read_market_manifest

TOPIC = 67
SPENDING = FeePolicy(gas_price_floor=1, tier="standard", max_fee=None)


def new_mnemonic() -> str:
    """A wallet's words."""
    from mnemonic import Mnemonic

    return str(Mnemonic("english").generate(128))


class InstantForecaster(Forecaster):
    """Real candles, real checks and real guards around a random forecast. There is no child process."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        """`before` is called where a model would begin to think; what it raises is the model's failure."""
        self.manifest = read_market_manifest(DEMO_MODEL)
        self.features = parse_features((*self.manifest.past, *self.manifest.known), "the embedded bundle")
        self.warnings = ()
        self._before, self._fallback = before, None

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
class WorkerTask:
    """What one process is to do: for which wallet, with which state, on which endpoints, and where it is killed.

    `kill` is a failpoint and which time it is reached, or "moment" and after how many seconds.
    """

    phrase: str
    state_dir: str
    endpoints: tuple[str, ...]
    kill_point: tuple[str, float] | None = None
    seconds: float = 20.0
    lock_wait: float = 5.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def command_line(self) -> list[str]:
        """The command line of a process that does it."""
        return [sys.executable, "-m", "benchmarks.campaign.worker", self.to_json()]

    @classmethod
    def from_json(cls, text: str) -> WorkerTask:
        """The task of `text()`."""
        fields = json.loads(text)
        return cls(**{**fields, "endpoints": tuple(fields["endpoints"])})


@contextmanager
def open_context(
    wallet: Wallet,
    state_dir: Path,
    endpoints: Sequence[str],
    forecaster: Forecaster | None = None,
    *,
    lock_wait: float = 5.0,
) -> Iterator[CycleContext]:
    """What `forecastd.worker.open_parts` puts together, in its order, with the cheap forecaster."""
    clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(WalletLock(LOCAL_CHAIN_ID, wallet.address, clock, timeout_seconds=lock_wait))
        ledger = Ledger(state_dir / "ledger.sqlite")
        stack.callback(ledger.close)
        window = RollingWindow.open(state_dir / "window.sqlite")
        stack.callback(window.close)
        chain = stack.enter_context(EndpointPool(endpoints, chain_id=LOCAL_CHAIN_ID, clock=clock))
        source = SampleSource("btcusd")
        yield CycleContext(source, window, forecaster or InstantForecaster(), ledger, chain, wallet, clock, Event())


def cycle_options(*, persist: bool = False, seconds: float | None = 20.0) -> CycleOptions:
    """The worker's job on the local network."""
    return CycleOptions(
        TOPIC, SPENDING, register=True, dry_run=False, retry_until_closed=persist, timeout_seconds=seconds
    )


def serve(task: WorkerTask) -> Outcome:
    """One cycle, as the product runs it."""
    wallet = Wallet.from_mnemonic(task.phrase)
    try:
        with open_context(wallet, Path(task.state_dir), task.endpoints, lock_wait=task.lock_wait) as parts:
            return run_cycle(cycle_options(seconds=task.seconds), parts)
    except ForecastdError as error:
        return outcome_from_error(error, Outcome("failed", topic_id=TOPIC))


def schedule_kill(name: str, occurrence: float) -> None:
    """See to it that this process ends for good: at the `when`th time at a failpoint, or `when` seconds from now."""
    if name == "moment":
        timer = threading.Timer(occurrence, lambda: os.kill(os.getpid(), signal.SIGKILL))
        timer.daemon = True
        timer.start()
        return
    remaining_hits = [int(occurrence)]

    def on_failpoint(failpoint: str) -> None:
        remaining_hits[0] -= failpoint == name
        if remaining_hits[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    failpoints.install_hook(on_failpoint)


@dataclass(frozen=True)
class ProcessResult:
    """How a process ended: its exit status, negative for a signal, and what it told."""

    code: int
    outcome: dict[str, object]


class ProcessForker:
    """Forks a process for each task. Use as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.campaign.worker"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, task: WorkerTask) -> ProcessResult:
        """One task in a process of its own, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task.to_json()]), file=self._process.stdin, flush=True)
        *lines, exit_status = iter(self._process.stdout.readline, "\n")
        return ProcessResult(int(exit_status), json.loads(lines[0]) if lines else {})

    def run_together(
        self, tasks: Sequence[WorkerTask], release_last: Callable[[], object]
    ) -> tuple[list[int], list[dict[str, object]]]:
        """All tasks at the same moment, each in a process. Exit codes, outcomes.

        From when one is left, `last` is called five times a second: it may still be on its way to what it waits for.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task.to_json() for task in tasks]), file=self._process.stdin, flush=True)
        codes: list[int] = []
        outcomes: list[dict[str, object]] = []
        finished = Event()

        def help_the_last() -> None:
            while not finished.wait(0.2):
                release_last()

        helper = threading.Thread(target=help_the_last, daemon=True)
        for line in iter(self._process.stdout.readline, "\n"):
            if line.startswith("{"):
                outcomes.append(json.loads(line))
                continue
            codes.append(int(line))
            if len(codes) == len(tasks) - 1:
                helper.start()
        finished.set()
        if helper.ident is not None:
            helper.join()
        return codes, outcomes

    def __enter__(self) -> ProcessForker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _run_task(text: str) -> int:
    """One task in this process: print its outcome, and give its exit code."""
    task = WorkerTask.from_json(text)
    if task.kill_point is not None:
        schedule_kill(*task.kill_point)
    outcome = serve(task)
    os.write(1, f"{json.dumps(outcome.as_json())}\n".encode())  # whole, though others write to the same pipe
    return outcome.exit_code


def _fork_tasks(lines: Iterator[str]) -> None:
    """Children for each line of tasks, let go at the same moment: what they print, each one's status, an empty line."""
    for line in lines:
        read_end, write_end = os.pipe()
        tasks = json.loads(line)
        for text in tasks:
            if os.fork() == 0:
                code = 70
                try:
                    os.close(write_end)
                    os.read(read_end, 1)
                    code = _run_task(text)
                except BaseException:
                    traceback.print_exc()
                    raise
                finally:
                    os._exit(code)
        os.close(read_end)
        os.close(write_end)
        for _ in tasks:
            os.write(1, f"{os.waitstatus_to_exitcode(os.wait()[1])}\n".encode())
        os.write(1, b"\n")


def main() -> int:
    logging.basicConfig(level=os.environ.get("CAMPAIGN_LOG", "ERROR"))
    if len(sys.argv) > 1:
        return _run_task(sys.argv[1])
    _fork_tasks(iter(sys.stdin.readline, ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
