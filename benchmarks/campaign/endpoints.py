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

from benchmarks.campaign.audit import AuditCounts, audit, read_ledger
from benchmarks.campaign.worker import TOPIC, cycle_options, new_mnemonic, open_context
from benchmarks.figures import PremiseCount
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import BEHAVIOURS
from forecastd.localnet.topics import TopicSpec
from forecastd.submission.cycle import run_cycle

ENDPOINTS = 3
PARALLEL_POOLS = 14  # pools at a time
EPOCH = 500  # blocks, and of the submission window as well: beyond what PATIENCE needs
BLOCK_SECONDS = 0.2  # seconds
WINDOW_TIMEOUT_SECONDS = 75.0  # seconds a window may take; on the real chains an epoch is an hour


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """Each behaviour with the well endpoint at every place, over three windows; quick: at one place, over two."""
    del seed  # nothing here is chosen at random, but for what a behaviour's own text says
    places = (
        [(index % ENDPOINTS,) for index in range(len(BEHAVIOURS))] if quick else [range(ENDPOINTS)] * len(BEHAVIOURS)
    )
    cases = [(name, place) for name, wells in zip(BEHAVIOURS, places, strict=True) for place in wells]
    with tempfile.TemporaryDirectory() as place:
        yield run_campaign(Path(place), cases, windows=2 if quick else 3)


@dataclass
class PoolUnderTest:
    """One worker with three endpoints."""

    behaviour: str
    healthy_index: int
    endpoints: tuple[str, ...]
    state_dir: Path
    wallet: Wallet
    nonces: list[int] = field(default_factory=list)
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def serve_windows(self, windows: int, ready: threading.Barrier) -> None:
        """In a thread of its own: serve each window, in step with the others; then settle what is left."""
        clock = SystemClock()
        with open_context(self.wallet, self.state_dir, self.endpoints) as parts:
            for _ in range(windows):
                ready.wait()
                start = clock.monotonic()
                outcome, reason = "", ""
                while (
                    outcome not in ("submitted", "already_submitted")
                    and clock.monotonic() - start < WINDOW_TIMEOUT_SECONDS
                ):
                    cycle_outcome = run_cycle(cycle_options(persist=True, seconds=WINDOW_TIMEOUT_SECONDS), parts)
                    outcome, reason = cycle_outcome.outcome, cycle_outcome.reason
                    parts.wake.wait(0.1)
                self.slowest = max(self.slowest, clock.monotonic() - start)
                if outcome not in ("submitted", "already_submitted"):
                    self.problems.append(f"{self.behaviour}: {outcome}, {reason}")
                ready.wait()
            ready.wait()
            # The topic is at rest now. A pool may hold back for a moment while it finds its well endpoint again.
            for _ in range(20):
                run_cycle(cycle_options(), parts)
                if not parts.ledger.entries(LOCAL_CHAIN_ID, self.wallet.address, unsettled=True):
                    break
                parts.wake.wait(0.5)


def run_campaign(directory: Path, cases: Sequence[tuple[str, int]], *, windows: int) -> PremiseCount:
    """A pool for each case, which is a behaviour and the place of the well endpoint; each serves so many windows."""
    topic = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=EPOCH)
    pools: list[PoolUnderTest] = []
    with ExitStack() as stack:
        node = stack.enter_context(
            open_embedded(directory / "node", SystemClock(), topics=(topic,), block_time=None, seal_at_once=False)
        )
        node.advance(2 * EPOCH)  # so that there is an old state for an endpoint to be behind with
        for first in range(0, len(cases), PARALLEL_POOLS):
            batch = [
                _pool(directory / str(first + index), node, behaviour, healthy_index)
                for index, (behaviour, healthy_index) in enumerate(cases[first : first + PARALLEL_POOLS])
            ]
            _serve(node, topic, batch, windows)
            pools += batch
        record = node.record()
    counts, violations = AuditCounts(), []
    for pool in pools:
        violations += pool.problems
        ledger_contents = read_ledger(pool.state_dir / "ledger.sqlite", record.chain_id, pool.wallet.address)
        problems = audit(record, pool.wallet.address, pool.nonces, ledger_contents, counts)
        violations += [f"{pool.behaviour}, the well one at {pool.healthy_index}: {evidence}" for evidence in problems]
    slow = sorted(pools, key=lambda pool: -pool.slowest)
    return PremiseCount(
        "pools of three endpoints, two of which misbehave",
        {
            "behaviours": len({pool.behaviour for pool in pools}),
            "pools": len(pools),
            "windows": sum(len(pool.nonces) for pool in pools),
            "windows served by one inclusion": counts.served_count,
            "doubled": counts.doubled_count,
            "lost": counts.lost_count,
            "paid failures": counts.paid_failure_count,
            "outcomes that differ from the node's record": counts.differing_count,
            "median and slowest window": f"{slow[len(slow) // 2].slowest:.1f} s, {slow[0].slowest:.1f} s"
            f" ({', '.join(pool.behaviour for pool in slow[:3])})",
        },
        "every window has one good inclusion, and nothing else was paid for",
        tuple(violations[:20]) + (("paid failures",) if counts.paid_failure_count else ()),
    )


def _pool(state: Path, node: EmbeddedNode, behaviour: str, healthy_index: int) -> PoolUnderTest:
    bad = [node.add_endpoint((BEHAVIOURS[behaviour],)) for _ in range(ENDPOINTS - 1)]
    bad.insert(healthy_index, node.add_endpoint())
    return PoolUnderTest(behaviour, healthy_index, tuple(bad), state, Wallet.from_mnemonic(new_mnemonic()))


def _serve(node: EmbeddedNode, topic: TopicSpec, pools: Sequence[PoolUnderTest], windows: int) -> None:
    """Open one window after the other; make blocks until every pool is through with it."""
    ready = threading.Barrier(len(pools) + 1)

    def work(pool: PoolUnderTest) -> None:
        try:
            pool.serve_windows(windows, ready)
        except (ForecastdError, threading.BrokenBarrierError) as error:
            pool.problems.append(f"{pool.behaviour}: {error!r}")
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
            blocks = threading.Thread(target=_make_blocks, args=(node, nonce + EPOCH - 1, stop))
            blocks.start()
            try:
                ready.wait()
            finally:
                stop.set()
                blocks.join()
        node.advance(EPOCH)
        node.call(lambda chain: chain.configure(replace(chain.config, topics=(replace(topic, active=False),))))
        ready.wait()
    finally:
        for thread in threads:
            thread.join()
    node.call(lambda chain: chain.configure(replace(chain.config, topics=(topic,))))


def _make_blocks(node: EmbeddedNode, last: int, stop: threading.Event) -> None:
    height = 0
    while not stop.wait(BLOCK_SECONDS) and height < last - 1:
        height = node.advance()
