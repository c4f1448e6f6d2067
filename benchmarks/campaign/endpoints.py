"""Every misbehaviour of an endpoint, in a pool of three of which one is well: each window must get its one submission.

Two endpoints of a pool misbehave in the same way; the well one stands first, second or last. A pool is one worker with a
wallet of its own, opened once for all its windows as in a daemon. Several pools serve the same chain at a time, blocks come
every fifth of a second, and a window that the worker has not served within `PATIENCE` is lost.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.campaign.audit import Tally, audit, read_book
from benchmarks.campaign.worker import TOPIC, job, new_phrase, open_parts
from benchmarks.figures import Count
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.cycle import run_cycle
from forecastd.errors import ForecastdError
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.faults import BEHAVIOURS
from forecastd.localnet.topics import TopicSpec

ENDPOINTS = 3
TOGETHER = 14  # pools at a time
EPOCH = 500  # blocks, and of the submission window as well: beyond what PATIENCE needs
BLOCK = 0.2  # seconds
PATIENCE = 75.0  # seconds a window may take; on the real chains an epoch is an hour


def run(*, quick: bool, seed: int) -> Iterator[Count]:
    """Each behaviour with the well endpoint at every place, over three windows; quick: at one place, over two."""
    del seed  # nothing here is chosen at random, but for what a behaviour's own text says
    places = [(at % ENDPOINTS,) for at in range(len(BEHAVIOURS))] if quick else [range(ENDPOINTS)] * len(BEHAVIOURS)
    cases = [(name, place) for name, wells in zip(BEHAVIOURS, places, strict=True) for place in wells]
    with tempfile.TemporaryDirectory() as place:
        yield campaign(Path(place), cases, windows=2 if quick else 3)


@dataclass
class Pool:
    """One worker with three endpoints."""

    behaviour: str
    well: int
    endpoints: tuple[str, ...]
    state: Path
    wallet: Wallet
    nonces: list[int] = field(default_factory=list)
    slowest: float = 0.0
    troubles: list[str] = field(default_factory=list)

    def work(self, windows: int, ready: threading.Barrier) -> None:
        """In a thread of its own: serve each window, in step with the others; then settle what is left."""
        clock = SystemClock()
        with open_parts(self.wallet, self.state, self.endpoints) as parts:
            for _ in range(windows):
                ready.wait()
                start = clock.monotonic()
                outcome, reason = "", ""
                while outcome not in ("submitted", "already_submitted") and clock.monotonic() - start < PATIENCE:
                    done = run_cycle(job(persist=True, seconds=PATIENCE), parts)
                    outcome, reason = done.outcome, done.reason
                    parts.wake.wait(0.1)
                self.slowest = max(self.slowest, clock.monotonic() - start)
                if outcome not in ("submitted", "already_submitted"):
                    self.troubles.append(f"{self.behaviour}: {outcome}, {reason}")
                ready.wait()
            ready.wait()
            # The topic is at rest now. A pool may hold back for a moment while it finds its well endpoint again.
            for _ in range(20):
                run_cycle(job(), parts)
                if not parts.ledger.entries(LOCAL_CHAIN_ID, self.wallet.address, unsettled=True):
                    break
                parts.wake.wait(0.5)


def campaign(place: Path, cases: Sequence[tuple[str, int]], *, windows: int) -> Count:
    """A pool for each case, which is a behaviour and the place of the well endpoint; each serves so many windows."""
    topic = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=EPOCH)
    pools: list[Pool] = []
    with ExitStack() as stack:
        node = stack.enter_context(
            open_embedded(place / "node", SystemClock(), topics=(topic,), block_time=None, seal_at_once=False)
        )
        node.advance(2 * EPOCH)  # so that there is an old state for an endpoint to be behind with
        for first in range(0, len(cases), TOGETHER):
            batch = [
                _pool(place / str(first + at), node, behaviour, well)
                for at, (behaviour, well) in enumerate(cases[first : first + TOGETHER])
            ]
            _serve(node, topic, batch, windows)
            pools += batch
        record = node.record()
    tally, broken = Tally(), []
    for pool in pools:
        broken += pool.troubles
        book = read_book(pool.state / "ledger.sqlite", record.chain_id, pool.wallet.address)
        found = audit(record, pool.wallet.address, pool.nonces, book, tally)
        broken += [f"{pool.behaviour}, the well one at {pool.well}: {evidence}" for evidence in found]
    slow = sorted(pools, key=lambda pool: -pool.slowest)
    return Count(
        "pools of three endpoints, two of which misbehave",
        {
            "behaviours": len({pool.behaviour for pool in pools}),
            "pools": len(pools),
            "windows": sum(len(pool.nonces) for pool in pools),
            "windows served by one inclusion": tally.served,
            "doubled": tally.doubled,
            "lost": tally.lost,
            "paid failures": tally.paid_failures,
            "outcomes that differ from the node's record": tally.differing,
            "median and slowest window": f"{slow[len(slow) // 2].slowest:.1f} s, {slow[0].slowest:.1f} s"
            f" ({', '.join(pool.behaviour for pool in slow[:3])})",
        },
        "every window has one good inclusion, and nothing else was paid for",
        tuple(broken[:20]) + (("paid failures",) if tally.paid_failures else ()),
    )


def _pool(state: Path, node: Embedded, behaviour: str, well: int) -> Pool:
    bad = [node.add_endpoint((BEHAVIOURS[behaviour],)) for _ in range(ENDPOINTS - 1)]
    bad.insert(well, node.add_endpoint())
    return Pool(behaviour, well, tuple(bad), state, Wallet.from_mnemonic(new_phrase()))


def _serve(node: Embedded, topic: TopicSpec, pools: Sequence[Pool], windows: int) -> None:
    """Open one window after the other; make blocks until every pool is through with it."""
    ready = threading.Barrier(len(pools) + 1)

    def work(pool: Pool) -> None:
        try:
            pool.work(windows, ready)
        except (ForecastdError, threading.BrokenBarrierError) as error:
            pool.troubles.append(f"{pool.behaviour}: {error!r}")
            ready.abort()

    threads = [threading.Thread(target=work, args=(pool,), name=pool.behaviour) for pool in pools]
    for thread in threads:
        thread.start()
    try:
        for _ in range(windows):
            height = node.advance(0)
            nonce = height + 1 + -height % EPOCH
            node.advance(nonce - height)
            for pool in pools:
                pool.nonces.append(nonce)
            ready.wait()
            stop = threading.Event()
            blocks = threading.Thread(target=_beat, args=(node, nonce + EPOCH - 1, stop))
            blocks.start()
            try:
                ready.wait()
            finally:
                stop.set()
                blocks.join()
        node.advance(EPOCH)
        node.call(lambda chain: chain.configure(replace(chain.rules, topics=(replace(topic, active=False),))))
        ready.wait()
    finally:
        for thread in threads:
            thread.join()
    node.call(lambda chain: chain.configure(replace(chain.rules, topics=(topic,))))


def _beat(node: Embedded, last: int, stop: threading.Event) -> None:
    height = 0
    while not stop.wait(BLOCK) and height < last - 1:
        height = node.advance()
