"""Kills a worker with SIGKILL, at named failpoints and at random moments, again and again within an epoch, and audits.

Every worker is a process of its own that serves the open epoch of one chain. Blocks come at random moments all the while, but
never so many that a window closes before its worker has come through once: then each epoch must be served exactly once.
In a third of the epochs the chain loses, delays or fails some of the payloads, in a third the endpoint loses some or their
answers; after some kills the state directory is gone.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.campaign.audit import Tally, audit, read_book
from benchmarks.campaign.worker import TOPIC, Nursery, Task, new_phrase
from benchmarks.figures import Count
from benchmarks.processes import ROOT, python
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.failpoints import NAMES
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import Fault
from forecastd.localnet.topics import TopicSpec

EPOCH = 30  # blocks, and of the submission window as well
EMPTY = 0.05  # the chance that a block comes which nobody waits for
SPARE = 10  # blocks of a window that only the run which nobody kills may see
WALLETS = 10  # each has its registration killed too
REAL_EVERY = 25  # epochs, one is served by the program that users start, model process and all
LOSE_STATE = 0.05  # of the kills take the state directory with them
SLOWEST = 60.0  # seconds after which a worker that nobody killed counts as stuck
EARLY = ("before sign", "after sign", "after commit", "before send", "after send", "recorded")
LATE = ("after commit", "before send", "after send", "recorded")  # what a worker that has signed still comes to
_TROUBLE = (
    "out-of-gas@p=0.15,seed={seed}",
    "drop-from-mempool@p=0.15,seed={seed}",
    "late=3@p=0.15,seed={seed}",
    "low-fee@p=0.1,seed={seed}",
)
_ENDPOINT_TROUBLE = (
    "lose-answer@p=0.2,seed={seed}",
    "drop@p=0.15,seed={seed}",
    "sequence-race@p=0.1,seed={seed}",
    "unavailable@p=0.01,seed={seed}",
)


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """1,000 kills over 500 epochs; quick: 60 over 30. A few epochs more where too many workers outran their kill."""
    epochs, kills = (30, 60) if quick else (500, 1000)
    with tempfile.TemporaryDirectory() as place:
        yield Campaign(Path(place), epochs, kills, seed).run()


@dataclass
class Worker:
    """A wallet with its state, and the epochs it was to serve."""

    phrase: str
    state: Path
    address: str = ""
    nonces: list[int] = field(default_factory=list)
    remembers: int = 0  # the first epoch of its present state; what was before is the chain's alone to tell

    def __post_init__(self) -> None:
        self.address = Wallet.from_mnemonic(self.phrase).address


class Blocks:
    """Makes a node's blocks at random moments up to `limit`, in a thread of its own. Few of them are empty."""

    def __init__(self, node: Embedded, seed: int) -> None:
        self._node = node
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.limit = 0
        self._thread = threading.Thread(target=self._make, name="blocks")

    def _make(self) -> None:
        while not self._stop.wait(self._random.uniform(0.02, 0.2)):
            empty = self._random.random() < EMPTY
            height, waiting = self._node.call(lambda chain: (chain.state.height, chain.waiting))
            if height < self.limit and (waiting or empty):
                self._node.advance()

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Blocks come for as long as this lasts."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


class Campaign:
    """One campaign of `kills` kills over `epochs` epochs under `place`."""

    def __init__(self, place: Path, epochs: int, kills: int, seed: int) -> None:
        self._place, self._epochs, self._kills, self._seed = place, epochs, kills, seed
        self._random = random.Random(seed)
        self._where: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._served = 0
        self._lost_states = 0
        self._runs = 0
        self._broken: list[str] = []

    def run(self) -> Count:
        """Kill, let it finish, audit."""
        topic = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=EPOCH)
        workers: list[Worker] = []
        with Nursery() as nursery, open_embedded(
            self._place / "node", SystemClock(), topics=(topic,), block_time=None, seal_at_once=False
        ) as node:  # fmt: skip
            self._nursery, self._node, self._blocks = nursery, node, Blocks(node, self._seed)
            with self._blocks.coming():
                while self._served < self._epochs or self._where.total() < self._kills:
                    if self._served % max(1, self._epochs // WALLETS) == 0:
                        workers.append(Worker(new_phrase(), self._place / f"state-{len(workers)}"))
                    self._trouble()
                    self._epoch(workers[-1])
                    self._served += 1
                self._node.inject()
                self._node.set_faults()
                self._blocks.limit = 0
                # What is still open is settled by one more cycle, which finds the topic at rest.
                node.advance(EPOCH)
                node.call(lambda chain: chain.configure(replace(chain.rules, topics=(replace(topic, active=False),))))
                for worker in workers:
                    nursery.run(self._task(worker))
            record = node.record()
        tally = Tally()
        for worker in workers:
            book = read_book(worker.state / "ledger.sqlite", record.chain_id, worker.address)
            self._broken += audit(record, worker.address, worker.nonces, book, tally, remembers=worker.remembers)
            registered = [one for one in record.transactions if (one.kind, one.sender) == ("register", worker.address)]
            if len(registered) != 1:
                self._broken.append(f"{worker.address} has {len(registered)} registrations in blocks")
        if self._epochs >= 100:
            self._broken += [f"no kill at the failpoint {name!r}" for name in NAMES if not self._where[name]]
        return Count(
            f"SIGKILL at failpoints and at random moments, seed {self._seed}",
            {
                "epochs": self._served,
                "kills": self._where.total(),
                "kills by place": ", ".join(f"{name} {number}" for name, number in sorted(self._where.items())),
                "state directories lost": self._lost_states,
                "processes": self._runs,
                "doubled": tally.doubled,
                "lost": tally.lost,
                "runs that had to be repeated": self._failures.total(),
                "why": "; ".join(f"{number} x {why[:90]}" for why, number in self._failures.most_common(4)),
                "paid failures of the chain's faults": tally.paid_failures,
                "outcomes that differ from the node's record": tally.differing,
            },
            "every epoch has one good inclusion, none is paid for again after it, ledgers are whole and agree",
            tuple(self._broken[:20]),
        )

    def _trouble(self) -> None:
        """Ten epochs on a chain that is well, ten on one that misbehaves, ten over an endpoint that does."""

        def faults(texts: tuple[str, ...]) -> list[Fault]:
            return [Fault.parse(text.format(seed=self._seed + self._served)) for text in texts]

        if self._served % 10 == 0:
            turn = self._served // 10 % 3
            self._node.inject(*(faults(_TROUBLE) if turn == 1 else ()))
            self._node.set_faults(faults(_ENDPOINT_TROUBLE) if turn == 2 else ())

    def _open_next(self) -> int:
        """Open the next epoch, and let blocks come for the part of its window in which a worker may be killed."""
        self._blocks.limit = 0
        height = self._node.advance(0)
        nonce = height + 1 + -height % EPOCH  # nonces of this chain are 1, 1 + EPOCH, ...
        self._node.advance(nonce - height)
        self._blocks.limit = nonce + EPOCH - 1 - SPARE
        return nonce

    def _epoch(self, worker: Worker) -> None:
        """Kill the worker some times, then let it come through."""
        nonce = self._open_next()
        worker.nonces.append(nonce)
        real = self._served % REAL_EVERY == REAL_EVERY // 2
        left = self._kills - self._where.total()
        mean = max(1.0, left / max(1, self._epochs - self._served))
        signed = lost = False
        for _ in range(min(left, self._random.randint(1, round(2 * mean) + 2))):
            place = self._kill_real(worker) if real else self._kill(worker, signed=signed, lost=lost)
            if place is None:
                break
            self._where[place] += 1
            signed = signed or place in LATE
            lost = self._random.random() < LOSE_STATE
            if lost:
                shutil.rmtree(worker.state, ignore_errors=True)
                self._lost_states += 1
                worker.remembers = nonce
        self._finish(worker, nonce, real=real)

    def _kill(self, worker: Worker, *, signed: bool, lost: bool) -> str | None:
        """Start a worker and kill it; where it died, None when it came through before."""
        places = LATE if signed else EARLY
        place, when = self._random.choice(places), float(self._random.choice((1, 1, 1, 2)))
        if lost and signed:
            place, when = "before adopt", 1.0
        elif len(worker.nonces) == 1 and not signed and self._random.random() < 0.5:
            place, when = "before use", 1.0
        elif self._random.random() < 0.35:
            place, when = "moment", self._random.uniform(0.0, 0.45)
        ended = self._run(self._task(worker, (place, when)))
        return place if ended == -9 else None

    def _kill_real(self, worker: Worker) -> str | None:
        """The same with the program itself, at a random moment of its whole run."""
        code = self._run_program(worker, self._random.uniform(0.3, 2.0))
        return "moment of the whole program" if code == -9 else None

    def _finish(self, worker: Worker, nonce: int, *, real: bool) -> None:
        """Start it until the epoch is settled; nobody kills it now, and the window may use up its spare blocks."""
        code = -1
        self._blocks.limit = nonce + EPOCH - 2
        for _ in range(12):
            code = self._run_program(worker, SLOWEST) if real else self._start(worker)
            if code == 0:
                return
        self._broken.append(f"nonce {nonce}: the worker still ended with {code}")

    def _start(self, worker: Worker) -> int:
        """One whole run; its exit code."""
        return self._run(self._task(worker))

    def _task(self, worker: Worker, kill: tuple[str, float] | None = None) -> Task:
        return Task(worker.phrase, str(worker.state), (self._node.endpoint,), kill)

    def _run(self, task: Task) -> int:
        self._runs += 1
        ended = self._nursery.run(task)
        if ended.code == 70:
            self._broken.append("a worker ended with an exception, see above")
        elif ended.code > 0:
            self._failures[str(ended.outcome.get("reason"))] += 1
        return ended.code

    def _run_program(self, worker: Worker, seconds: float) -> int:
        """Start the program users start, and kill it after `seconds`."""
        self._runs += 1
        environment = {
            "MNEMONIC": worker.phrase,
            "STATE_DIR": str(worker.state),
            "LOG_DIR": str(self._place / "logs"),
            "RPC_ENDPOINTS": self._node.endpoint,
            "TOPIC_ID": str(TOPIC),
        }
        with subprocess.Popen(
            python("submit_prediction.py", "--once", "--json"), cwd=ROOT, env={**os.environ, **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                return process.wait()
