"""Six cases in which the official worker (allora_sdk) fails, for it and for this worker, each on a node of its own.

All runs take place at the same time and take equally long. Windows stay open for the whole run and every transaction is
included at once, so that no window is lost because of time. The official worker is unmodified: its wallet is
registered, its model answers at once, it has the node's websocket, and it polls every two seconds.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from benchmarks.figures import PremiseCount
from benchmarks.processes import ROOT
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, SystemClock
from forecastd.inference.forecaster import Forecaster
from forecastd.localnet.chain import ChainConfig, LocalChain
from forecastd.localnet.embedded import EmbeddedNode
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.state import Effect
from forecastd.localnet.store import ChainStore, chain_path
from forecastd.localnet.topics import TopicSpec
from forecastd.market.candles import Candles
from forecastd.settings import DEMO_MODEL
from forecastd.submission.cycle import run_cycle
from forecastd.testing import FakeForecaster
from models.base import Forecast
from tests.support.forked_worker import TOPIC, ProcessForker, WorkerTask, open_context
from tests.support.mnemonics import new_mnemonic

EPOCH, WINDOW = 10, 100_000  # blocks
HEAL_SECONDS = 6.0  # after which a hanging call works again
OFFICIAL = """
import asyncio, logging, sys, threading
from allora_sdk import AlloraNetworkConfig, AlloraWalletConfig, AlloraWorker, LocalWallet

port, websocket, phrase, topic, fault = sys.argv[1:]
calls = 0

async def model(context):
    global calls
    calls += 1
    if calls == 1 and fault == "raises":
        raise RuntimeError("the model raised")
    if calls == 1 and fault == "never returns":
        await asyncio.Event().wait()
    return 0.01 + calls / 10_000

async def main():
    wallet = AlloraWalletConfig(wallet=LocalWallet.from_mnemonic(phrase, prefix="allo"))
    worker = AlloraWorker.inferer(
        run=model, wallet=wallet, network=AlloraNetworkConfig.local(port=int(port), websocket_url=websocket),
        topic_id=int(topic), polling_interval=2, show_banner=False)
    print("started", flush=True)
    async for _ in worker.run():
        pass

logging.disable(logging.CRITICAL)
asyncio.run(main())
"""


@dataclass(frozen=True)
class ComparisonCase:
    """A case: the number of open windows, the fault of the node's endpoint, and the fault of the worker."""

    name: str
    windows: int
    fault: str = ""
    heals_later: bool = False
    worker_fault: str = ""  # of the model: raises, never returns; of the process: restart


CASES = (
    ComparisonCase(
        "one RPC hangs and recovers after 6 s", 6, fault="hang@method=GetUnfulfilledWorkerNonces", heals_later=True
    ),
    ComparisonCase("the model raises once", 3, worker_fault="raises"),
    ComparisonCase("CheckTx answers code 32 once", 3, fault="sequence-race@first=1"),
    ComparisonCase("transactions are indexed 40 s late", 1, fault="index-late=40"),
    ComparisonCase("the model never returns, once", 3, worker_fault="never returns"),
    ComparisonCase("killed after an inclusion and restarted", 1, worker_fault="restart"),
)


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """All cases at the same time for 150 s. Quick: 85 s, slightly more than the time limit of a hanging model."""
    del seed  # nothing here is random
    with tempfile.TemporaryDirectory() as directory:
        yield _compare(Path(directory), 85.0 if quick else 150.0)


@dataclass
class CaseResult:
    """The result of one worker in a case."""

    served_windows: int = 0
    max_paid_per_nonce: int = 0  # maximum of included transactions for one nonce
    seconds: float | None = None  # until every window was served

    def describe(self, windows: int) -> str:
        when = "never all" if self.seconds is None else f"all after {self.seconds:.0f} s"
        return (
            f"{self.served_windows} of {windows} windows ({when}), at most {self.max_paid_per_nonce} paid for one nonce"
        )


def _compare(directory: Path, seconds: float) -> PremiseCount:
    our_results, their_results = [CaseResult() for _ in CASES], [CaseResult() for _ in CASES]
    with ExitStack() as stack:
        for index, case in enumerate(CASES):
            for runner in (
                _ForecastdRun(case, our_results[index], directory / f"ours-{index}"),
                _OfficialRun(case, their_results[index], directory / f"sdk-{index}"),
            ):
                stack.enter_context(runner.running())
        threading.Event().wait(seconds)
    counts: dict[str, int | float | str] = {}
    violations = []
    for case, result, their_result in zip(CASES, our_results, their_results, strict=True):
        counts[f"{case.name}; forecastd"] = result.describe(case.windows)
        counts[f"{case.name}; official"] = their_result.describe(case.windows)
        if result.served_windows != case.windows or result.max_paid_per_nonce != 1:
            violations.append(f"{case.name}: {result.describe(case.windows)}")
    name = f"the official worker's cases, {seconds:.0f} s each"
    return PremiseCount(
        name, counts, "forecastd serves every window, with one paid transaction each", tuple(violations)
    )


class _CaseRun:
    """One worker in one case: its node, and the observation of it."""

    def __init__(self, case: ComparisonCase, result: CaseResult, directory: Path) -> None:
        self.case, self.result, self.directory = case, result, directory
        self.phrase = new_mnemonic()
        self.wallet = Wallet.from_mnemonic(self.phrase)
        self.clock: Clock = SystemClock()
        self.stop, self.started = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the case during the `with` block. The result is complete at its end."""
        config = ChainConfig(
            topics=(TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=WINDOW),), block_time=None
        )
        store = ChainStore(chain_path(self.directory, LOCAL_CHAIN_ID))
        self.node = EmbeddedNode(LocalChain(config, store, self.clock), seal_at_once=True, events=True)
        self.node.call(lambda chain: chain.fund(self.wallet.address, 10**24))
        self.node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, self.wallet.address))))
        self.node.advance(EPOCH * (self.case.windows - 1) + 1)
        self.node.set_faults([NodeFault.parse(self.case.fault)] if self.case.fault else [])
        threads = [threading.Thread(target=self._watch), threading.Thread(target=self.work)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stop.set()
            for thread in threads:
                thread.join()
            self._count()
            self.node.stop()
            store.close()

    def work(self) -> None:
        """Run the worker until `stop`. Sets `started` when it begins."""
        raise NotImplementedError

    def inclusions(self) -> dict[int, list[int]]:
        """The codes of the included payloads, by nonce."""
        codes_by_nonce: dict[int, list[int]] = {}
        for record in self.node.record().transactions:
            if record.kind == "payload" and record.sender == self.wallet.address:
                codes_by_nonce.setdefault(record.nonce, []).append(record.code)
        return codes_by_nonce

    def _count(self) -> int:
        codes_by_nonce = self.inclusions()
        self.result.served_windows = sum(0 in codes for codes in codes_by_nonce.values())
        self.result.max_paid_per_nonce = max((len(codes) for codes in codes_by_nonce.values()), default=0)
        return self.result.served_windows

    def _watch(self) -> None:
        """Repair the node after a while, and record the time when every window is served."""
        while not self.started.wait(0.1) and not self.stop.is_set():
            pass
        start = self.clock.monotonic()
        while not self.stop.wait(0.25):
            elapsed = self.clock.monotonic() - start
            if self.case.heals_later and elapsed >= HEAL_SECONDS:
                self.node.set_faults([])
            if self.result.seconds is None and self._count() == self.case.windows:
                self.result.seconds = elapsed


class _ForecastdRun(_CaseRun):
    """This worker: its cycle in a loop, as the daemon runs it."""

    def work(self) -> None:
        self.started.set()
        if self.case.worker_fault == "restart":
            with ProcessForker() as nursery:
                for kill in (("after record", 1.0), None, None):
                    task = WorkerTask(self.phrase, str(self.directory), (self.node.endpoint,), kill)
                    nursery.run(task)
            return
        fault_signal = {"raises": signal.SIGKILL, "never returns": signal.SIGSTOP}.get(self.case.worker_fault)
        with ExitStack() as stack:
            forecaster = (
                FakeForecaster() if fault_signal is None else stack.enter_context(_FaultyForecaster(fault_signal))
            )
            parts = stack.enter_context(open_context(self.wallet, self.directory, (self.node.endpoint,), forecaster))
            while not self.stop.is_set():
                run_cycle(replace(parts, retry_until_closed=True))
                self.stop.wait(0.5)


class _FaultyForecaster(Forecaster):
    """The real model in its real process, which is killed or stopped at its first request."""

    def __init__(self, fault_signal: signal.Signals) -> None:
        super().__init__(DEMO_MODEL)
        self._signal: signal.Signals | None = fault_signal

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        fault_signal, self._signal = self._signal, None
        if fault_signal is not None:
            for child in self.children():
                os.kill(int(str(child["pid"])), fault_signal)
        return super().forecast(candles, over)


class _OfficialRun(_CaseRun):
    """The official worker in a process of its own."""

    def work(self) -> None:
        with self._process() as process:
            while self.case.worker_fault == "restart" and not self.inclusions() and not self.stop.wait(0.1):
                pass
            if self.case.worker_fault != "restart":
                self.stop.wait()
            process.kill()
        if self.case.worker_fault == "restart":
            with self._process() as process:
                self.stop.wait()
                process.kill()

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[str]]:
        port = self.node.endpoint.rpartition(":")[2]
        line = [sys.executable, "-W", "ignore", "-c", OFFICIAL, port, str(self.node.websocket), self.phrase, str(TOPIC)]
        log = self.directory / "official.log"
        with log.open("a") as errors, subprocess.Popen(
            [*line, self.case.worker_fault], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:  # fmt: skip
            reader = threading.Thread(target=self._read, args=(process.stdout,))
            reader.start()
            try:
                yield process
            finally:
                process.kill()
                reader.join()

    def _read(self, stdout: TextIO) -> None:
        for line in stdout:
            if line == "started\n":
                self.started.set()
