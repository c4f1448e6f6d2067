"""What the ledger costs an epoch, and how long it takes from a window that is seen to the first byte sent.

The forecast is ready: it costs nothing here, so what is measured is the checks, the pricing, the signature and the commit.
On the local node, over loopback.
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

from benchmarks.campaign.worker import TOPIC, job, new_phrase, open_parts
from benchmarks.figures import Count
from forecastd import failpoints
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.cycle import run_cycle
from forecastd.ledger import Key, Ledger, State, Submission
from forecastd.localnet.embedded import open_embedded

CLOCK = SystemClock()
T = TypeVar("T")


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """Medians and the worst tenth over 300 epochs and 60 submissions; quick: 60 and 12."""
    with tempfile.TemporaryDirectory() as place:
        yield _ledger(Path(place) / "cost.sqlite", 60 if quick else 300, seed)
    with tempfile.TemporaryDirectory() as place:
        yield _way(Path(place), 12 if quick else 60)


def _ledger(path: Path, epochs: int, seed: int) -> Count:
    """The three commits that an ordinary epoch makes."""
    chance = random.Random(seed)
    times: dict[str, list[float]] = {"commit": [], "record its inclusion": [], "settle": []}
    ledger = Ledger(path)
    try:
        for epoch in range(epochs):
            key: Key = ("localnet", TOPIC, 1 + 720 * epoch, "allo1cost")
            raw = chance.randbytes(900)
            name = hashlib.sha256(raw).hexdigest().upper()
            submission = Submission(*key, "0.01", epoch, raw, name, key[2] + 719, 200_000, 10)
            signed = _timed(times["commit"], lambda s=submission: ledger.commit(s, 1.0))  # type: ignore[misc]
            included = replace(signed, state=State.INCLUDED, height=key[2] + 2)
            _timed(times["record its inclusion"], lambda k=key, r=included: ledger.record(k, r, 2.0))  # type: ignore[misc]
            settled = replace(included, state=State.ADMITTED)
            _timed(times["settle"], lambda k=key, r=settled: ledger.record(k, r, 3.0))  # type: ignore[misc]
        broken = () if ledger.check() == "ok" else (ledger.check(),)
    finally:
        ledger.close()
    whole = [sum(parts) for parts in zip(*times.values(), strict=True)]
    counts = {what: _spread(found) for what, found in {**times, "an epoch in all": whole}.items()}
    return Count(f"the ledger's cost, {epochs} epochs", counts, "every commit is on the platter", broken)


def _way(place: Path, windows: int) -> Count:
    """From the start of a cycle that finds an open window to its bytes being sent, and to their inclusion."""
    wallet = Wallet.from_mnemonic(new_phrase())
    sent: list[float] = []
    failpoints.install(lambda name: sent.append(CLOCK.monotonic()) if name == "before send" else None)
    times: dict[str, list[float]] = {"to bytes sent": [], "to their inclusion seen": []}
    broken = []
    try:
        with (
            open_embedded(place / "node", CLOCK, block_time=None) as node,
            open_parts(wallet, place / "state", (node.endpoint,)) as parts,
        ):
            for window in itertools.count():
                start = CLOCK.monotonic()
                outcome = run_cycle(job(), parts)
                if outcome.outcome != "submitted":
                    broken.append(f"{outcome.outcome}: {outcome.reason}")
                if window:  # the first one registers, and loads what is loaded late
                    times["to bytes sent"].append(sent[-1] - start)
                    times["to their inclusion seen"].append(CLOCK.monotonic() - start)
                if window == windows or broken:
                    break
                node.advance(720)
    finally:
        failpoints.install(None)
    counts = {what: _spread(found) for what, found in times.items()} if not broken else {}
    return Count(f"from a window seen, {windows} windows", counts, "each one is served", tuple(broken))


def _timed(times: list[float], work: Callable[[], T]) -> T:
    start = CLOCK.monotonic()
    done = work()
    times.append(CLOCK.monotonic() - start)
    return done


def _spread(seconds: list[float]) -> str:
    """The median, and what nine in ten are below."""
    ordered = sorted(1000 * one for one in seconds)
    return f"{statistics.median(ordered):.1f} ms, nine in ten below {ordered[len(ordered) * 9 // 10]:.1f} ms"
