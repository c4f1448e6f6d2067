"""Measures what the ledger costs per epoch, and the time from a visible window to the first byte sent.

The forecast is instant, so this measures the checks, the pricing, the signature and the commit, on the local node over
loopback.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from benchmarks.figures import PremiseCount
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.ledger.ledger import EpochKey, Ledger, Submission, SubmissionState
from forecastd.localnet.embedded import open_embedded
from forecastd.runtime import failpoints
from forecastd.submission.cycle import run_cycle
from tests.support.forked_worker import TOPIC, open_context
from tests.support.mnemonics import new_mnemonic

CLOCK = SystemClock()
T = TypeVar("T")


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """Medians and 90th percentiles over 300 epochs and 60 submissions; quick: 60 and 12."""
    with tempfile.TemporaryDirectory() as directory:
        yield _ledger(Path(directory) / "cost.sqlite", 60 if quick else 300, seed)
    with tempfile.TemporaryDirectory() as directory:
        yield _submission_latency(Path(directory), 12 if quick else 60)


def _ledger(path: Path, epochs: int, seed: int) -> PremiseCount:
    """The three commits of an ordinary epoch."""
    rng = random.Random(seed)
    times: dict[str, list[float]] = {"commit": [], "record its inclusion": [], "settle": []}
    ledger = Ledger(path)
    try:
        for epoch in range(epochs):
            key: EpochKey = ("localnet", TOPIC, 1 + 720 * epoch, "allo1cost")
            raw = rng.randbytes(900)
            name = hashlib.sha256(raw).hexdigest().upper()
            submission = Submission(*key, "0.01", epoch, raw, name, key[2] + 719, 200_000, 10)
            signed = _timed(times["commit"], lambda s=submission: ledger.commit(s, 1.0))  # type: ignore[misc]
            included = replace(signed, state=SubmissionState.INCLUDED, height=key[2] + 2)
            _timed(times["record its inclusion"], lambda k=key, r=included: ledger.record(k, r, 2.0))  # type: ignore[misc]
            settled = replace(included, state=SubmissionState.ADMITTED)
            _timed(times["settle"], lambda k=key, r=settled: ledger.record(k, r, 3.0))  # type: ignore[misc]
        problems = tuple(ledger.find_problems())
    finally:
        ledger.close()
    totals = [sum(parts) for parts in zip(*times.values(), strict=True)]
    counts = {what: _spread(samples) for what, samples in {**times, "one epoch in total": totals}.items()}
    return PremiseCount(f"the ledger's cost, {epochs} epochs", counts, "every commit is on disk", problems)


def _submission_latency(directory: Path, windows: int) -> PremiseCount:
    """From the start of a cycle with an open window to the bytes sent, and to the confirmed inclusion."""
    wallet = Wallet.from_mnemonic(new_mnemonic())
    send_times: list[float] = []
    failpoints.install_hook(lambda name: send_times.append(CLOCK.monotonic()) if name == "before send" else None)
    times: dict[str, list[float]] = {"to bytes sent": [], "to their inclusion seen": []}
    problems = []
    try:
        with (
            open_embedded(directory / "node", CLOCK, block_time=None) as node,
            open_context(wallet, directory / "state", (node.endpoint,)) as parts,
        ):
            for window in itertools.count():
                start = CLOCK.monotonic()
                outcome = run_cycle(parts)
                if outcome.outcome != "submitted":
                    problems.append(f"{outcome.outcome}: {outcome.reason}")
                if window:  # the first window registers and loads lazy modules
                    times["to bytes sent"].append(send_times[-1] - start)
                    times["to their inclusion seen"].append(CLOCK.monotonic() - start)
                if window == windows or problems:
                    break
                node.advance(720)
    finally:
        failpoints.install_hook(None)
    counts = {what: _spread(samples) for what, samples in times.items()} if not problems else {}
    return PremiseCount(f"from a visible window, {windows} windows", counts, "every window is served", tuple(problems))


def _timed(times: list[float], work: Callable[[], T]) -> T:
    start = CLOCK.monotonic()
    result = work()
    times.append(CLOCK.monotonic() - start)
    return result


def _spread(seconds: list[float]) -> str:
    """The median and the 90th percentile."""
    ordered = sorted(1000 * sample for sample in seconds)
    return f"{statistics.median(ordered):.1f} ms, 90th percentile {ordered[len(ordered) * 9 // 10]:.1f} ms"
