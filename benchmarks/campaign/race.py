"""64 processes race for one nonce with one wallet: one of them signs, the others leave with an error.

Half of them share a state directory, the others have one each, as a careless host might: the lease keeps all but one from
signing. They are let go at the same moment, and the block comes when all but one have left.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.campaign.audit import read_book
from benchmarks.campaign.worker import TOPIC, Nursery, Task, new_phrase
from benchmarks.figures import Count
from benchmarks.processes import ROOT
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import Embedded, open_embedded

PROCESSES = 64


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """Three races; quick: one."""
    del seed  # the operating system chooses who wins
    for _ in range(1 if quick else 3):
        with tempfile.TemporaryDirectory() as place:
            yield race(Path(place), PROCESSES)


def race(place: Path, processes: int) -> Count:
    """One race of so many processes."""
    phrase = new_phrase()
    wallet = Wallet.from_mnemonic(phrase)
    states = [place / ("shared" if at % 2 else f"own-{at}") for at in range(processes)]
    broken: list[str] = []
    with (
        open_embedded(place / "node", SystemClock(), block_time=None, seal_at_once=False) as node,
        Nursery() as nursery,
    ):
        _register(node, phrase, place / "before")
        height = node.advance(720)
        nonce = node.call(lambda chain: chain.state.topics[0].newest_nonce(height)) or 0
        tasks = [Task(phrase, str(state), (node.endpoint,), lease_wait=1.0, seconds=60.0) for state in states]
        codes, outcomes = nursery.race(tasks, last=node.advance)
        record = node.record()
    inclusions = record.inclusions(TOPIC, nonce, wallet.address)
    books = [
        read_book(state / "ledger.sqlite", record.chain_id, wallet.address)
        for state in sorted(set(states))
        if (state / "ledger.sqlite").exists()
    ]
    signed = sum(len(attempts) for book in books for attempts in book.attempts.values())
    if signed != 1:
        broken.append(f"{signed} signatures in the ledgers")
    if [one.code for one in inclusions] != [0]:
        broken.append(f"inclusions with codes {[one.code for one in inclusions]}")
    if codes.count(0) != 1 or min(codes) < 0:
        broken.append(f"exit codes {dict(Counter(codes))}")
    return Count(
        f"{processes} processes, one wallet, one nonce; half share a state directory",
        {
            "signatures": signed,
            "inclusions": len(inclusions),
            "ended with 0": codes.count(0),
            "ended with an error": sum(code != 0 for code in codes),
            "how": "; ".join(
                f"{number} x {what[:80]}" for what, number in Counter(_how(one) for one in outcomes).most_common(4)
            ),
        },
        "one signature, one inclusion, and everybody else ends with an error",
        tuple(broken),
    )


def _register(node: Embedded, phrase: str, state: Path) -> None:
    """Have the wallet registered by a cycle of its own, so that the race is about the nonce alone."""
    task = Task(phrase, str(state), (node.endpoint,))
    with subprocess.Popen(task.line(), cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            node.advance()
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
    if process.returncode != 0:
        raise RuntimeError(f"the epoch before the race ended with {process.returncode}")


def _how(outcome: dict[str, object]) -> str:
    return f"{outcome['outcome']} {outcome['reason']}".strip()
