"""Runs the product's own submission cycle in forked processes, with an instant model, and kills them where a test says.

`python -m tests.support.forked_worker JSON` runs one cycle in a fresh process and prints its outcome. A `ProcessForker`
is a process that has imported everything and opened nothing, and forks one child per task. `kill_point` says where a
child kills itself with SIGKILL.
"""

from __future__ import annotations

import json
import logging
import os
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

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError
from forecastd.inference.forecaster import Forecaster
from forecastd.ledger.ledger import Ledger
from forecastd.ledger.outcome import Outcome, outcome_from_error
from forecastd.market.sources.sample import SampleSource
from forecastd.market.window import RollingWindow
from forecastd.runtime import failpoints
from forecastd.runtime.locks import WalletLock
from forecastd.settings import Settings
from forecastd.submission.context import CycleContext, TopicResources
from forecastd.submission.cycle import run_cycle
from forecastd.testing import FakeForecaster

ROOT = Path(__file__).resolve().parents[2]
TOPIC = 67


@dataclass(frozen=True)
class WorkerTask:
    """The task of one process: its wallet, state directory, endpoints, and where it is killed.

    `kill_point` is a failpoint and the number of the hit, or "moment" and a number of seconds.
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
        """The command line of a process that runs the task."""
        return [sys.executable, "-m", "tests.support.forked_worker", self.to_json()]

    @classmethod
    def from_json(cls, text: str) -> WorkerTask:
        """Parse the text of `to_json`."""
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
    seconds: float = 20.0,
) -> Iterator[CycleContext]:
    """Open what `run_once` of the product opens, in the same order, with an instant forecaster."""
    clock = SystemClock()
    with ExitStack() as stack:
        stack.enter_context(WalletLock(LOCAL_CHAIN_ID, wallet.address, clock, timeout=lock_wait))
        chain = stack.enter_context(EndpointPool(endpoints, chain_id=LOCAL_CHAIN_ID, clock=clock))
        ledger = Ledger(state_dir / "ledger.sqlite")
        stack.callback(ledger.close)
        rolling_window = stack.enter_context(RollingWindow.open(state_dir / "window.sqlite"))
        resources = TopicResources(
            Settings.from_values({"topic_id": TOPIC}), LOCAL_CHAIN_ID, wallet, SampleSource("btcusd"),
            forecaster or FakeForecaster(), chain,
        )  # fmt: skip
        yield CycleContext(resources, ledger, rolling_window, clock, Event(), confirmation_seconds=seconds)


def serve(task: WorkerTask) -> Outcome:
    """Run one cycle as the product does."""
    wallet = Wallet.from_mnemonic(task.phrase)
    try:
        with open_context(
            wallet, Path(task.state_dir), task.endpoints, lock_wait=task.lock_wait, seconds=task.seconds
        ) as context:
            return run_cycle(context)
    except ForecastdError as error:
        return outcome_from_error(error, Outcome("failed", topic_id=TOPIC))


def schedule_kill(name: str, occurrence: float) -> None:
    """Kill this process: at hit number `occurrence` of a failpoint, or `occurrence` seconds from now."""
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
    """How a process ended: its exit status (negative for a signal) and its outcome."""

    code: int
    outcome: dict[str, object]


class ProcessForker:
    """Forks a process for each task. Use it as a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked_worker"], cwd=ROOT, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, task: WorkerTask) -> ProcessResult:
        """Run one task in a process of its own, to its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([task.to_json()]), file=self._process.stdin, flush=True)
        *lines, exit_status = iter(self._process.stdout.readline, "\n")
        return ProcessResult(int(exit_status), json.loads(lines[0]) if lines else {})

    def run_together(
        self, tasks: Sequence[WorkerTask], release_last: Callable[[], object]
    ) -> tuple[list[int], list[dict[str, object]]]:
        """Start all tasks at the same moment, each in a process. Returns exit codes and outcomes.

        Once only one process is left, `release_last` is called five times a second: that process may only now start to
        wait for it.
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
    """Run one task in this process and print its outcome. Returns the exit code."""
    task = WorkerTask.from_json(text)
    if task.kill_point is not None:
        schedule_kill(*task.kill_point)
    outcome = serve(task)
    os.write(
        1, f"{json.dumps(outcome.as_json())}\n".encode()
    )  # one write, because other processes write to the same pipe
    return outcome.exit_code


def _fork_tasks(lines: Iterator[str]) -> None:
    """For each line of tasks, fork the children and start them at the same moment.

    Prints what they print, the exit status of each, and an empty line.
    """
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
