"""The six cases in which the official worker (allora_sdk) does badly, for it and for this worker, each on a node of its own.

All runs go side by side and last as long as each other. Windows stay open the whole time and every transaction gets its
block at once, so what is not served was not lost to the clock. The official worker is unmodified; its wallet is registered,
its model answers at once, it has the node's websocket and polls every two seconds.
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
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from benchmarks.campaign.worker import TOPIC, CheapForecaster, Nursery, Task, job, new_phrase, open_parts
from benchmarks.figures import Count
from benchmarks.processes import ROOT
from forecastd.candles import Candles
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, SystemClock
from forecastd.cycle import run_cycle
from forecastd.forecaster import Forecaster
from forecastd.localnet.chain import LocalChain, Rules
from forecastd.localnet.embedded import Embedded
from forecastd.localnet.faults import Fault
from forecastd.localnet.state import Effect
from forecastd.localnet.store import Store, chain_path
from forecastd.localnet.topics import TopicSpec
from forecastd.settings import EMBEDDED_MODEL
from models.base import Forecast

EPOCH, WINDOW = 10, 100_000  # blocks
HEALS = 6.0  # seconds after which a hung call works again
OFFICIAL = """
import asyncio, logging, sys, threading
from allora_sdk import AlloraNetworkConfig, AlloraWalletConfig, AlloraWorker, LocalWallet

port, websocket, phrase, topic, trouble = sys.argv[1:]
calls = 0

async def model(context):
    global calls
    calls += 1
    if calls == 1 and trouble == "raises":
        raise RuntimeError("the model raised")
    if calls == 1 and trouble == "never returns":
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
class Case:
    """A case: how many windows are open, the fault of the node's endpoint, and what else is wrong with the worker."""

    name: str
    windows: int
    fault: str = ""
    heals: bool = False
    trouble: str = ""  # of the model: raises, never returns; of the process: restart


CASES = (
    Case("one RPC hangs, and heals after 6 s", 6, fault="hang@method=GetUnfulfilledWorkerNonces", heals=True),
    Case("the model raises once", 3, trouble="raises"),
    Case("CheckTx answers code 32 once", 3, fault="sequence-race@first=1"),
    Case("transactions are indexed 40 s late", 1, fault="index-late=40"),
    Case("the model never returns, once", 3, trouble="never returns"),
    Case("killed after an inclusion, started again", 1, trouble="restart"),
)


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """150 s of all cases side by side; quick: 85 s, little more than a hung model is waited for."""
    del seed  # nothing here is chosen at random
    with tempfile.TemporaryDirectory() as place:
        yield _compare(Path(place), 85.0 if quick else 150.0)


@dataclass
class Column:
    """What one worker made of a case."""

    served: int = 0
    paid: int = 0  # most transactions in blocks for one nonce
    seconds: float | None = None  # until every window was served

    def told(self, windows: int) -> str:
        when = "never all" if self.seconds is None else f"all after {self.seconds:.0f} s"
        return f"{self.served} of {windows} windows ({when}), at most {self.paid} paid for one nonce"


def _compare(place: Path, seconds: float) -> Count:
    ours, theirs = [Column() for _ in CASES], [Column() for _ in CASES]
    with ExitStack() as stack:
        for at, case in enumerate(CASES):
            for one in (_Ours(case, ours[at], place / f"ours-{at}"), _Official(case, theirs[at], place / f"sdk-{at}")):
                stack.enter_context(one.running())
        threading.Event().wait(seconds)
    counts: dict[str, int | float | str] = {}
    broken = []
    for case, column, other in zip(CASES, ours, theirs, strict=True):
        counts[f"{case.name}; forecastd"] = column.told(case.windows)
        counts[f"{case.name}; official"] = other.told(case.windows)
        if column.served != case.windows or column.paid != 1:
            broken.append(f"{case.name}: {column.told(case.windows)}")
    name = f"the official worker's cases, {seconds:.0f} s each"
    return Count(name, counts, "forecastd serves every window, with one paid transaction each", tuple(broken))


class _Run:
    """One worker with one case: its node, and the watching of it."""

    def __init__(self, case: Case, column: Column, place: Path) -> None:
        self.case, self.column, self.place = case, column, place
        self.phrase = new_phrase()
        self.wallet = Wallet.from_mnemonic(self.phrase)
        self.clock: Clock = SystemClock()
        self.stop, self.works = threading.Event(), threading.Event()

    @contextmanager
    def running(self) -> Iterator[None]:
        """The case goes on for as long as this lasts; its column is filled in at the end."""
        rules = Rules(topics=(TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=WINDOW),), block_time=None)
        store = Store(chain_path(self.place, LOCAL_CHAIN_ID))
        self.node = Embedded(LocalChain(rules, store, self.clock), seal_at_once=True, events=True)
        self.node.call(lambda chain: chain.fund(self.wallet.address, 10**24))
        self.node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, self.wallet.address))))
        self.node.advance(EPOCH * (self.case.windows - 1) + 1)
        self.node.set_faults([Fault.parse(self.case.fault)] if self.case.fault else [])
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
        """Run the worker until `stop`; sets `works` when it begins."""
        raise NotImplementedError

    def inclusions(self) -> dict[int, list[int]]:
        """Codes of what blocks included, by nonce."""
        found: dict[int, list[int]] = {}
        for one in self.node.record().transactions:
            if one.kind == "payload" and one.sender == self.wallet.address:
                found.setdefault(one.nonce, []).append(one.code)
        return found

    def _count(self) -> int:
        found = self.inclusions()
        self.column.served = sum(0 in codes for codes in found.values())
        self.column.paid = max((len(codes) for codes in found.values()), default=0)
        return self.column.served

    def _watch(self) -> None:
        """Heal the node, and take the time when every window is served."""
        while not self.works.wait(0.1) and not self.stop.is_set():
            pass
        start = self.clock.monotonic()
        while not self.stop.wait(0.25):
            passed = self.clock.monotonic() - start
            if self.case.heals and passed >= HEALS:
                self.node.set_faults([])
            if self.column.seconds is None and self._count() == self.case.windows:
                self.column.seconds = passed


class _Ours(_Run):
    """This worker: its cycle again and again, as the daemon runs it."""

    def work(self) -> None:
        self.works.set()
        if self.case.trouble == "restart":
            with Nursery() as nursery:
                for kill in (("recorded", 1.0), None, None):
                    task = Task(self.phrase, str(self.place), (self.node.endpoint,), kill)
                    nursery.run(task)
            return
        harm = {"raises": signal.SIGKILL, "never returns": signal.SIGSTOP}.get(self.case.trouble)
        with ExitStack() as stack:
            forecaster = CheapForecaster() if harm is None else stack.enter_context(_Harmed(harm))
            parts = stack.enter_context(open_parts(self.wallet, self.place, (self.node.endpoint,), forecaster))
            while not self.stop.is_set():
                run_cycle(job(persist=True), parts)
                self.stop.wait(0.5)


class _Harmed(Forecaster):
    """The real model in its real process, which is killed or stopped just as it is asked the first time."""

    def __init__(self, harm: signal.Signals) -> None:
        super().__init__(EMBEDDED_MODEL)
        self._harm: signal.Signals | None = harm

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        harm, self._harm = self._harm, None
        if harm is not None:
            for child in self.children():
                os.kill(int(str(child["pid"])), harm)
        return super().forecast(candles, over)


class _Official(_Run):
    """The official worker, in a process of its own."""

    def work(self) -> None:
        with self._process() as process:
            while self.case.trouble == "restart" and not self.inclusions() and not self.stop.wait(0.1):
                pass
            if self.case.trouble != "restart":
                self.stop.wait()
            process.kill()
        if self.case.trouble == "restart":
            with self._process() as process:
                self.stop.wait()
                process.kill()

    @contextmanager
    def _process(self) -> Iterator[subprocess.Popen[str]]:
        port = self.node.endpoint.rpartition(":")[2]
        line = [sys.executable, "-W", "ignore", "-c", OFFICIAL, port, str(self.node.websocket), self.phrase, str(TOPIC)]
        log = self.place / "official.log"
        with log.open("a") as errors, subprocess.Popen(
            [*line, self.case.trouble], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process:  # fmt: skip
            reading = threading.Thread(target=self._read, args=(process.stdout,))
            reading.start()
            try:
                yield process
            finally:
                process.kill()
                reading.join()

    def _read(self, out: TextIO) -> None:
        for line in out:
            if line == "started\n":
                self.works.set()
