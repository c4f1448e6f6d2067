"""Hundreds of epochs in minutes with faults: every window is accounted for, memory and open files stay flat, logs
rotate.

In each epoch one of two endpoints has another fault and the other works, so each window must be served exactly once.
In every twentieth epoch no endpoint answers until the window has closed; it must be recorded as missed. Once the
daemon is killed, and once its log is renamed and SIGHUP sent, as logrotate does.
"""

from __future__ import annotations

import json
import random
import sqlite3
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGHUP

from benchmarks.daemon.process import TOPIC, DaemonPlan, environment, register_worker, start_daemon
from benchmarks.figures import Figure, PremiseCount
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.topics import TopicSpec
from tests.support.mnemonics import new_mnemonic

EPOCH_BLOCKS, WINDOW_BLOCKS = 40, 36  # blocks
TIMEOUT_SECONDS = 120.0  # how long a window stays open for a slow daemon
MAX_GROWTH_KB = 300.0  # kB in 100 epochs, which is allocator noise: 26 MB in a year
FAULTS = (
    "ok", "hang", "slow=0.5", "unavailable", "rate-limit", "internal", "garbage", "truncated", "html", "disconnect", "goaway",
    "refuse", "drop", "lose-answer", "hang-answer", "mempool-full", "index-behind=2", "behind=100", "frozen-height",
    "wrong-chain-id",
)  # fmt: skip
PLAN = DaemonPlan(min_poll_seconds=0.5, max_poll_seconds=0.5, log_bytes=20_000)


@dataclass
class SoakTest:
    """A chain, a daemon on it, and the measurements of each epoch; memory in kB."""

    directory: Path
    node: EmbeddedNode
    epoch_count: int
    random: random.Random
    phrase: str = field(default_factory=new_mnemonic)
    unserved_nonces: list[int] = field(default_factory=list)
    nonces: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def run(self) -> PremiseCount:
        """Run all epochs; kill the daemon after a fifth of them, and rename its log after two fifths."""
        self.wallet = register_worker(self.node, self.phrase)
        self.second = self.node.add_endpoint()
        variables = environment(self.directory, self.phrase, self.node, (self.node.endpoint, self.second))
        with start_daemon(PLAN, variables, self.directory) as process:
            for _ in range(self.epoch_count // 5):
                self._epoch()
        with start_daemon(PLAN, variables, self.directory) as process:
            for index in range(self.epoch_count // 5, self.epoch_count):
                self._epoch()
                self._measure(process)
                if index == 2 * self.epoch_count // 5:
                    self._logrotate(process)
            if process.poll() is not None:
                self.failures.append(f"the daemon exited by itself with {process.returncode}")
            if not _wait_until(self._is_last_confirmed):
                self.failures.append("the last submission was not confirmed")
            process.terminate()
            if process.wait(TIMEOUT_SECONDS) != 0:
                self.failures.append(f"the daemon exited with {process.returncode}")
        return self._verify()

    def _epoch(self) -> None:
        """Open a window, wait until it is served, and close it; or let no endpoint answer meanwhile."""
        index = len(self.nonces)
        nonce = 1 + EPOCH_BLOCKS * index
        self.nonces.append(nonce)
        if index % 20 == 13:
            self.unserved_nonces.append(nonce)
            for endpoint in (self.node.endpoint, self.second):
                self.node.set_faults([NodeFault.parse("refuse")], endpoint)
            self._advance_to(nonce + EPOCH_BLOCKS - 1)
            for endpoint in (self.node.endpoint, self.second):
                self.node.set_faults([], endpoint)
            return
        fault = self.random.choice(FAULTS)
        self.node.set_faults([] if fault == "ok" else [NodeFault.parse(fault)], self.second)
        self._advance_to(nonce)
        if not _wait_until(lambda: self._is_served(nonce)):
            self.failures.append(
                f"nonce {nonce} was not served within {TIMEOUT_SECONDS:g} s, with {fault} at one of two endpoints"
            )
        self._advance_to(nonce + EPOCH_BLOCKS - 1)

    def _is_served(self, nonce: int) -> bool:
        """Whether the nonce is served. Makes a block if the window stays open."""
        if self.node.advance(0) < nonce + WINDOW_BLOCKS - 8:
            self.node.advance()
        return any(inclusion.code == 0 for inclusion in self.node.record().inclusions(TOPIC, nonce, self.wallet))

    def _is_last_confirmed(self) -> bool:
        """Whether the daemon's status has the last submission."""
        status = json.loads((self.directory / "state" / "daemon.json").read_text())
        return bool(status["topics"][0]["confirmed_nonce"] == self.nonces[-1])

    def _advance_to(self, height: int) -> None:
        self.node.advance(max(0, height - self.node.advance(0)))

    def _measure(self, process: subprocess.Popen[bytes]) -> None:
        from psutil import NoSuchProcess, Process

        try:
            running = Process(process.pid)
            self.memory.append(running.memory_info().rss / 1000)
            self.files.append(float(running.num_fds()))
        except NoSuchProcess:
            return

    def _logrotate(self, process: subprocess.Popen[bytes]) -> None:
        log = self.directory / "logs" / "submission.log"
        log.rename(log.with_name("moved.log"))
        process.send_signal(SIGHUP)
        if not _wait_until(lambda: log.exists() and " reloaded" in log.read_text()):
            self.failures.append("after the log was renamed, SIGHUP created no new one")

    def _verify(self) -> PremiseCount:
        """Check each window against the node's record and the ledger."""
        record = self.node.record()
        with sqlite3.connect(self.directory / "state" / "ledger.sqlite") as database:
            states = dict(database.execute("SELECT nonce, state FROM epochs WHERE topic_id = ?", (TOPIC,)).fetchall())
        served = wasted = 0
        for nonce in self.nonces:
            codes = [inclusion.code for inclusion in record.inclusions(TOPIC, nonce, self.wallet)]
            included, state = codes.count(0), states.get(nonce)
            served += included == 1
            wasted += len(codes) - included
            expected_states = ("missed",) if nonce in self.unserved_nonces else ("included", "admitted")
            if included != (nonce not in self.unserved_nonces) or state not in expected_states:
                self.failures.append(f"nonce {nonce}: {included} good inclusions, {state or 'no row'} in the ledger")
        memory, files = 100 * _slope(self.memory), 100 * _slope(self.files)
        rotated = len(list((self.directory / "logs").glob("submission.log.*")))
        self.failures += (
            [f"memory grows by {memory:.0f} kB in 100 epochs"]
            if memory > MAX_GROWTH_KB and self.epoch_count >= 100
            else []
        )
        self.failures += (
            [f"open files grow by {files:.1f} in 100 epochs"] if files > 2 and self.epoch_count >= 100 else []
        )
        self.failures += ["no log was rotated"] if not rotated else []
        return PremiseCount(
            f"{self.epoch_count} epochs with faults",
            {
                "served, once each": served, "recorded as missed, no endpoint answered": len(self.unserved_nonces),
                "fees without effect": wasted, "rotated logs": rotated,
                "memory, kB in 100 epochs": round(memory, 1), "memory at the end, MB": round(self.memory[-1] / 1000, 1),
                "open files, in 100 epochs": round(files, 2), "open files at the end": int(self.files[-1]),
            },
            "every window is served once or recorded as missed, memory and open files are flat, logs rotate",
            tuple(self.failures),
        )  # fmt: skip


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """500 epochs; quick: 40, too few to measure growth."""
    spec = TopicSpec(TOPIC, epoch_length=EPOCH_BLOCKS, worker_submission_window=WINDOW_BLOCKS)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with open_embedded(directory / "node", SystemClock(), topics=(spec,), block_time=None, events=True) as node:
            yield SoakTest(directory, node, 40 if quick else 500, random.Random(seed)).run()


def _wait_until(condition: Callable[[], bool]) -> bool:
    """Whether the condition becomes true in time."""
    pause = threading.Event()
    for _ in range(int(TIMEOUT_SECONDS / 0.05)):
        if condition():
            return True
        pause.wait(0.05)
    return False


def _slope(values: list[float]) -> float:
    """Growth per epoch, without the first half, in which caches fill."""
    second_half = values[len(values) // 2 :]
    return statistics.linear_regression(range(len(second_half)), second_half).slope if len(second_half) > 1 else 0.0
