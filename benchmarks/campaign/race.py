"""64 processes race for one nonce with one wallet: one of them signs, the others end with an error.

Half of them share a state directory, the others have one each, as a misconfigured host might. The wallet lock prevents
all but one from signing. They start at the same moment, and the block is made when all but one have ended.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.figures import PremiseCount
from benchmarks.processes import ROOT
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from tests.support.forked_worker import TOPIC, ProcessForker, WorkerTask
from tests.support.ledger_audit import read_ledger
from tests.support.mnemonics import new_mnemonic

PROCESSES = 64


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """Three races; quick: one."""
    del seed  # the operating system chooses the winner
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as directory:
            yield run_race(Path(directory), PROCESSES)


def run_race(directory: Path, processes: int) -> PremiseCount:
    """One race with `processes` processes."""
    phrase = new_mnemonic()
    wallet = Wallet.from_mnemonic(phrase)
    states = [directory / ("shared" if index % 2 else f"own-{index}") for index in range(processes)]
    violations: list[str] = []
    with (
        open_embedded(directory / "node", SystemClock(), block_time=None, seal_at_once=False) as node,
        ProcessForker() as forker,
    ):
        _register(node, phrase, directory / "before")
        height = node.advance(720)
        nonce = node.call(lambda chain: chain.state.topics[0].newest_nonce(height)) or 0
        tasks = [WorkerTask(phrase, str(state), (node.endpoint,), lock_wait=1.0, seconds=60.0) for state in states]
        codes, outcomes = forker.run_together(tasks, release_last=node.advance)
        record = node.record()
    inclusions = record.inclusions(TOPIC, nonce, wallet.address)
    ledgers = [
        read_ledger(state / "ledger.sqlite", record.chain_id, wallet.address)
        for state in sorted(set(states))
        if (state / "ledger.sqlite").exists()
    ]
    signed = sum(len(attempts) for ledger_contents in ledgers for attempts in ledger_contents.attempts.values())
    if signed != 1:
        violations.append(f"{signed} signatures in the ledgers")
    if [inclusion.code for inclusion in inclusions] != [0]:
        violations.append(f"inclusions with codes {[inclusion.code for inclusion in inclusions]}")
    if codes.count(0) != 1 or min(codes) < 0:
        violations.append(f"exit codes {dict(Counter(codes))}")
    return PremiseCount(
        f"{processes} processes, one wallet, one nonce; half share a state directory",
        {
            "signatures": signed,
            "inclusions": len(inclusions),
            "ended with 0": codes.count(0),
            "ended with an error": sum(code != 0 for code in codes),
            "how": "; ".join(
                f"{number} x {description[:80]}"
                for description, number in Counter(_describe(inclusion) for inclusion in outcomes).most_common(4)
            ),
        },
        "one signature, one inclusion, and every other process ends with an error",
        tuple(violations),
    )


def _register(node: EmbeddedNode, phrase: str, state: Path) -> None:
    """Register the wallet in a cycle of its own, so that the race is about the nonce alone."""
    task = WorkerTask(phrase, str(state), (node.endpoint,))
    with subprocess.Popen(task.command_line(), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            node.advance()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    if process.returncode != 0:
        raise RuntimeError(f"the cycle before the race exited with {process.returncode}")


def _describe(outcome: dict[str, object]) -> str:
    return f"{outcome['outcome']} {outcome['reason']}".strip()
