"""Hundreds of epochs in minutes, with faults on: every window accounted for, memory and files flat, logs rotated for real.

One of two endpoints has another fault in each epoch and the other is well, so each window can be served and must be, once.
In every twentieth epoch nobody answers until the window has closed: those must be recorded as missed. Once the daemon is
killed, and once the log is moved away under it and SIGHUP sent, as logrotate does.
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

from benchmarks.campaign.worker import new_phrase
from benchmarks.daemon.process import TOPIC, Plan, daemon, environment, settle_in
from benchmarks.figures import Count, Figure
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import Fault
from forecastd.localnet.topics import TopicSpec

EPOCH, WINDOW = 40, 36  # blocks
PATIENCE = 120.0  # seconds that a window is held open for a daemon that is slow
FLAT = 300.0  # kB of growth in 100 epochs that count as none: an allocator's noise, 26 MB in a year
FAULTS = (
    "ok", "hang", "slow=0.5", "unavailable", "rate-limit", "internal", "garbage", "truncated", "html", "disconnect", "goaway",
    "refuse", "drop", "lose-answer", "hang-answer", "mempool-full", "index-behind=2", "behind=100", "frozen-height",
    "wrong-chain-id",
)  # fmt: skip
PLAN = Plan(least_poll=0.5, most_poll=0.5, log_bytes=20_000)


@dataclass
class Soak:
    """A chain, a daemon on it, and what is measured epoch by epoch; memory in kB."""

    place: Path
    node: Embedded
    number: int
    chance: random.Random
    phrase: str = field(default_factory=new_phrase)
    lost: list[int] = field(default_factory=list)
    nonces: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    def run(self) -> Count:
        """All epochs, with a kill after a fifth of them and a log that is moved away after two fifths."""
        self.wallet = settle_in(self.node, self.phrase)
        self.second = self.node.add_endpoint()
        variables = environment(self.place, self.phrase, self.node, (self.node.endpoint, self.second))
        with daemon(PLAN, variables, self.place) as process:
            for _ in range(self.number // 5):
                self._epoch()
        with daemon(PLAN, variables, self.place) as process:
            for at in range(self.number // 5, self.number):
                self._epoch()
                self._measure(process)
                if at == 2 * self.number // 5:
                    self._logrotate(process)
            if process.poll() is not None:
                self.broken.append(f"the daemon ended by itself, with {process.returncode}")
            if not _come_true(self._last_is_known):
                self.broken.append("the last submission was not confirmed")
            process.terminate()
            if process.wait(PATIENCE) != 0:
                self.broken.append(f"the daemon ended with {process.returncode}")
        return self._account()

    def _epoch(self) -> None:
        """Open a window, wait until it is served, and close it; or have nobody answer all the while."""
        at = len(self.nonces)
        nonce = 1 + EPOCH * at
        self.nonces.append(nonce)
        if at % 20 == 13:
            self.lost.append(nonce)
            for endpoint in (self.node.endpoint, self.second):
                self.node.set_faults([Fault.parse("refuse")], endpoint)
            self._advance_to(nonce + EPOCH - 1)
            for endpoint in (self.node.endpoint, self.second):
                self.node.set_faults([], endpoint)
            return
        fault = self.chance.choice(FAULTS)
        self.node.set_faults([] if fault == "ok" else [Fault.parse(fault)], self.second)
        self._advance_to(nonce)
        if not _come_true(lambda: self._served_by_now(nonce)):
            self.broken.append(
                f"nonce {nonce} was not served within {PATIENCE:g} s, with {fault} at one of two endpoints"
            )
        self._advance_to(nonce + EPOCH - 1)

    def _served_by_now(self, nonce: int) -> bool:
        """Whether it is in a block; a block is made where the window has room for one."""
        if self.node.advance(0) < nonce + WINDOW - 8:
            self.node.advance()
        return any(one.code == 0 for one in self.node.record().inclusions(TOPIC, nonce, self.wallet))

    def _last_is_known(self) -> bool:
        """Whether the daemon tells of the last submission itself."""
        pulse = json.loads((self.place / "state" / "daemon.json").read_text())
        return bool(pulse["topics"][0]["confirmed_nonce"] == self.nonces[-1])

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
        log = self.place / "logs" / "submission.log"
        log.rename(log.with_name("moved.log"))
        process.send_signal(SIGHUP)
        if not _come_true(lambda: log.exists() and " reloaded" in log.read_text()):
            self.broken.append("the log was moved away, and after SIGHUP there was no new one")

    def _account(self) -> Count:
        """Each window by the node's record and by the ledger."""
        record = self.node.record()
        with sqlite3.connect(self.place / "state" / "ledger.sqlite") as database:
            states = dict(database.execute("SELECT nonce, state FROM epochs WHERE topic_id = ?", (TOPIC,)).fetchall())
        served = paid = 0
        for nonce in self.nonces:
            codes = [one.code for one in record.inclusions(TOPIC, nonce, self.wallet)]
            good, state = codes.count(0), states.get(nonce)
            served += good == 1
            paid += len(codes) - good
            wanted = ("missed",) if nonce in self.lost else ("included", "admitted")
            if good != (nonce not in self.lost) or state not in wanted:
                self.broken.append(f"nonce {nonce}: {good} good inclusions, {state or 'nothing'} in the ledger")
        memory, files = 100 * _slope(self.memory), 100 * _slope(self.files)
        rotated = len(list((self.place / "logs").glob("submission.log.*")))
        self.broken += (
            [f"memory grows by {memory:.0f} kB in 100 epochs"] if memory > FLAT and self.number >= 100 else []
        )
        self.broken += [f"open files grow by {files:.1f} in 100 epochs"] if files > 2 and self.number >= 100 else []
        self.broken += ["no log was rotated"] if not rotated else []
        return Count(
            f"{self.number} epochs with faults",
            {
                "served, once each": served, "missed and recorded, nobody answered": len(self.lost),
                "paid in vain": paid, "logs that were full and rotated away, kept": rotated,
                "memory, kB in 100 epochs": round(memory, 1), "memory at the end, MB": round(self.memory[-1] / 1000, 1),
                "open files, in 100 epochs": round(files, 2), "open files at the end": int(self.files[-1]),
            },
            "every window is served once or recorded as missed, memory and open files are flat, logs rotate",
            tuple(self.broken),
        )  # fmt: skip


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """500 epochs; quick: 40, too few to judge a slope by."""
    spec = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=WINDOW)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with open_embedded(place / "node", SystemClock(), topics=(spec,), block_time=None, events=True) as node:
            yield Soak(place, node, 40 if quick else 500, random.Random(seed)).run()


def _come_true(true: Callable[[], bool]) -> bool:
    """Whether something is so within the patience there is."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.05)):
        if true():
            return True
        pause.wait(0.05)
    return False


def _slope(values: list[float]) -> float:
    """Growth an epoch, without the first half, in which caches fill."""
    later = values[len(values) // 2 :]
    return statistics.linear_regression(range(len(later)), later).slope if len(later) > 1 else 0.0
