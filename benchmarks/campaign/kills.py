"""Kills a worker with SIGKILL at named failpoints and at random moments, several times per epoch, and audits the
result.

Every worker is a process that serves the open epoch of one chain. Blocks come at random moments, but a window never
closes before its worker has finished once; then each epoch must be served exactly once. In a third of the epochs the
chain loses, delays or fails some payloads; in another third the endpoint loses some payloads or answers. After some
kills the state directory is deleted.
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

from benchmarks.figures import PremiseCount
from benchmarks.processes import ROOT, python
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.topics import TopicSpec
from forecastd.runtime.failpoints import FAILPOINTS
from tests.support.forked_worker import TOPIC, ProcessForker, WorkerTask
from tests.support.ledger_audit import AuditCounts, audit, read_ledger
from tests.support.mnemonics import new_mnemonic

EPOCH = 30  # blocks; also the submission window
EMPTY_BLOCK_CHANCE = 0.05  # probability of a block without a pending transaction
SPARE_BLOCKS = 10  # blocks of a window that are left for the run without a kill
WALLET_COUNT = 10  # each has its registration killed too
PROGRAM_EVERY = 25  # epochs: one of them is served by the real program with its model process
STATE_LOSS_CHANCE = 0.05  # probability that a kill also deletes the state directory
MAX_WORKER_SECONDS = 60.0  # after which a worker that was not killed counts as stuck
EARLY_FAILPOINTS = ("before sign", "after sign", "after commit", "before send", "after send", "after record")
LATE_FAILPOINTS = (
    "after commit",
    "before send",
    "after send",
    "after record",
)  # the failpoints that a worker reaches after it has signed
_CHAIN_FAULTS = (
    "out-of-gas@p=0.15,seed={seed}",
    "drop-from-mempool@p=0.15,seed={seed}",
    "late=3@p=0.15,seed={seed}",
    "low-fee@p=0.1,seed={seed}",
)
_ENDPOINT_FAULTS = (
    "lose-answer@p=0.2,seed={seed}",
    "drop@p=0.15,seed={seed}",
    "sequence-race@p=0.1,seed={seed}",
    "unavailable@p=0.01,seed={seed}",
)


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """1,000 kills over 500 epochs; quick: 20 over 10. More epochs when too many workers finished before their kill."""
    epochs, kills = (10, 20) if quick else (500, 1000)
    with tempfile.TemporaryDirectory() as directory:
        yield KillCampaign(Path(directory), epochs, kills, seed).run()


@dataclass
class KilledWorker:
    """A wallet with its state directory, and the epochs it had to serve."""

    phrase: str
    state_dir: Path
    address: str = ""
    nonces: list[int] = field(default_factory=list)
    first_known_nonce: int = 0  # the first epoch of its current state; only the chain knows about earlier ones

    def __post_init__(self) -> None:
        self.address = Wallet.from_mnemonic(self.phrase).address


class BlockProducer:
    """Makes blocks at random moments up to height `limit`, in a thread of its own. Few of them are empty."""

    def __init__(self, node: EmbeddedNode, seed: int) -> None:
        self._node = node
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self.limit = 0
        self._thread = threading.Thread(target=self._make, name="blocks")

    def _make(self) -> None:
        while not self._stop.wait(self._random.uniform(0.02, 0.2)):
            empty = self._random.random() < EMPTY_BLOCK_CHANCE
            height, waiting = self._node.call(lambda chain: (chain.state.height, chain.pending_count))
            if height < self.limit and (waiting or empty):
                self._node.advance()

    @contextmanager
    def producing(self) -> Iterator[None]:
        """Make blocks during the `with` block."""
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()


class KillCampaign:
    """One campaign of `kills` kills over `epochs` epochs under `directory`."""

    def __init__(self, directory: Path, epochs: int, kills: int, seed: int) -> None:
        self._directory, self._epochs, self._kills, self._seed = directory, epochs, kills, seed
        self._random = random.Random(seed)
        self._kill_counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._served_count = 0
        self._lost_states = 0
        self._run_count = 0
        self._violations: list[str] = []

    def run(self) -> PremiseCount:
        """Kill, finish, audit."""
        topic = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=EPOCH)
        workers: list[KilledWorker] = []
        with ProcessForker() as forker, open_embedded(
            self._directory / "node", SystemClock(), topics=(topic,), block_time=None, seal_at_once=False
        ) as node:  # fmt: skip
            self._forker, self._node, self._producer = forker, node, BlockProducer(node, self._seed)
            with self._producer.producing():
                while self._served_count < self._epochs or self._kill_counts.total() < self._kills:
                    if self._served_count % max(1, self._epochs // WALLET_COUNT) == 0:
                        workers.append(KilledWorker(new_mnemonic(), self._directory / f"state-{len(workers)}"))
                    self._choose_faults()
                    self._serve_epoch(workers[-1])
                    self._served_count += 1
                self._node.inject()
                self._node.set_faults()
                self._producer.limit = 0
                # One more cycle, with the topic inactive, settles what is still open.
                node.advance(EPOCH)
                node.call(lambda chain: chain.configure(replace(chain.config, topics=(replace(topic, active=False),))))
                for worker in workers:
                    forker.run(self._task(worker))
            record = node.record()
        counts = AuditCounts()
        for worker in workers:
            ledger_contents = read_ledger(worker.state_dir / "ledger.sqlite", record.chain_id, worker.address)
            self._violations += audit(
                record,
                worker.address,
                worker.nonces,
                ledger_contents,
                counts,
                first_known_nonce=worker.first_known_nonce,
            )
            registrations = [
                tx_record
                for tx_record in record.transactions
                if (tx_record.kind, tx_record.sender) == ("register", worker.address)
            ]
            if len(registrations) != 1:
                self._violations.append(f"{worker.address} has {len(registrations)} registrations in blocks")
        if self._epochs >= 100:
            self._violations += [
                f"no kill at the failpoint {name!r}" for name in FAILPOINTS if not self._kill_counts[name]
            ]
        return PremiseCount(
            f"SIGKILL at failpoints and at random moments, seed {self._seed}",
            {
                "epochs": self._served_count,
                "kills": self._kill_counts.total(),
                "kills by place": ", ".join(f"{name} {number}" for name, number in sorted(self._kill_counts.items())),
                "state directories lost": self._lost_states,
                "processes": self._run_count,
                "doubled": counts.doubled_count,
                "lost": counts.lost_count,
                "runs that had to be repeated": self._failures.total(),
                "why": "; ".join(f"{number} x {why[:90]}" for why, number in self._failures.most_common(4)),
                "paid failures of the chain's faults": counts.paid_failure_count,
                "outcomes that differ from the node's record": counts.differing_count,
            },
            "every epoch has one successful inclusion and is not paid again after it; ledgers are intact and agree",
            tuple(self._violations[:20]),
        )

    def _choose_faults(self) -> None:
        """Ten epochs without faults, ten with faults of the chain, ten with faults of the endpoint."""

        def faults(texts: tuple[str, ...]) -> list[NodeFault]:
            return [NodeFault.parse(text.format(seed=self._seed + self._served_count)) for text in texts]

        if self._served_count % 10 == 0:
            turn = self._served_count // 10 % 3
            self._node.inject(*(faults(_CHAIN_FAULTS) if turn == 1 else ()))
            self._node.set_faults(faults(_ENDPOINT_FAULTS) if turn == 2 else ())

    def _open_next(self) -> int:
        """Open the next epoch, and allow blocks for the part of its window in which a worker may be killed."""
        self._producer.limit = 0
        height = self._node.advance(0)
        nonce = height + 1 + -height % EPOCH  # nonces of this chain are 1, 1 + EPOCH, ...
        self._node.advance(nonce - height)
        self._producer.limit = nonce + EPOCH - 1 - SPARE_BLOCKS
        return nonce

    def _serve_epoch(self, worker: KilledWorker) -> None:
        """Kill the worker several times, then let it finish."""
        nonce = self._open_next()
        worker.nonces.append(nonce)
        use_program = self._served_count % PROGRAM_EVERY == PROGRAM_EVERY // 2
        remaining_kills = self._kills - self._kill_counts.total()
        mean = max(1.0, remaining_kills / max(1, self._epochs - self._served_count))
        signed = state_lost = False
        for _ in range(min(remaining_kills, self._random.randint(1, round(2 * mean) + 2))):
            failpoint = (
                self._kill_real(worker) if use_program else self._kill(worker, signed=signed, state_lost=state_lost)
            )
            if failpoint is None:
                break
            self._kill_counts[failpoint] += 1
            signed = signed or failpoint in LATE_FAILPOINTS
            state_lost = self._random.random() < STATE_LOSS_CHANCE
            if state_lost:
                shutil.rmtree(worker.state_dir, ignore_errors=True)
                self._lost_states += 1
                worker.first_known_nonce = nonce
        self._finish(worker, nonce, use_program=use_program)

    def _kill(self, worker: KilledWorker, *, signed: bool, state_lost: bool) -> str | None:
        """Start a worker and kill it. Returns where it died, or None when it finished before."""
        places = LATE_FAILPOINTS if signed else EARLY_FAILPOINTS
        failpoint, occurrence = self._random.choice(places), float(self._random.choice((1, 1, 1, 2)))
        if state_lost and signed:
            failpoint, occurrence = "before recover", 1.0
        elif len(worker.nonces) == 1 and not signed and self._random.random() < 0.5:
            failpoint, occurrence = "before register", 1.0
        elif self._random.random() < 0.35:
            failpoint, occurrence = "moment", self._random.uniform(0.0, 0.45)
        ended = self._run(self._task(worker, (failpoint, occurrence)))
        return failpoint if ended == -9 else None

    def _kill_real(self, worker: KilledWorker) -> str | None:
        """The same with the real program, at a random moment of its run."""
        code = self._run_program(worker, self._random.uniform(0.3, 2.0))
        return "moment of the whole program" if code == -9 else None

    def _finish(self, worker: KilledWorker, nonce: int, *, use_program: bool) -> None:
        """Run the worker until the epoch is settled. Nothing kills it now, and the spare blocks may be used."""
        code = -1
        self._producer.limit = nonce + EPOCH - 2
        for _ in range(12):
            code = self._run_program(worker, MAX_WORKER_SECONDS) if use_program else self._run_to_completion(worker)
            if code == 0:
                return
        self._violations.append(f"nonce {nonce}: the worker still ended with {code}")

    def _run_to_completion(self, worker: KilledWorker) -> int:
        """One complete run. Returns its exit code."""
        return self._run(self._task(worker))

    def _task(self, worker: KilledWorker, kill: tuple[str, float] | None = None) -> WorkerTask:
        return WorkerTask(worker.phrase, str(worker.state_dir), (self._node.endpoint,), kill)

    def _run(self, task: WorkerTask) -> int:
        self._run_count += 1
        ended = self._forker.run(task)
        if ended.code == 70:
            self._violations.append("a worker ended with an exception, see above")
        elif ended.code > 0:
            self._failures[str(ended.outcome.get("reason"))] += 1
        return ended.code

    def _run_program(self, worker: KilledWorker, seconds: float) -> int:
        """Start the real program, and kill it after `seconds`."""
        self._run_count += 1
        environment = {
            "MNEMONIC": worker.phrase,
            "STATE_DIR": str(worker.state_dir),
            "LOG_DIR": str(self._directory / "logs"),
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
