"""Every behavior of an endpoint, in a pool of three endpoints of which one is healthy: each window must get one
submission.

Two endpoints of a pool misbehave in the same way; the healthy one is first, second or last. A pool is one worker with
its own wallet, opened once for all its windows like in a daemon. Several pools use the same chain at a time, and blocks
come every fifth of a second. A window that the worker has not served within `WINDOW_TIMEOUT_SECONDS` is lost.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.figures import PremiseCount
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.errors import ForecastdError
from forecastd.ledger.ledger import OPEN_STATES
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.faults import BEHAVIORS
from forecastd.localnet.topics import TopicSpec
from forecastd.submission.cycle import run_cycle
from tests.support.forked_worker import TOPIC, open_context
from tests.support.ledger_audit import AuditCounts, audit, read_ledger
from tests.support.mnemonics import new_mnemonic

ENDPOINTS = 3
PARALLEL_POOLS = 14  # pools at a time
EPOCH = 500  # blocks; also the submission window, longer than WINDOW_TIMEOUT_SECONDS needs
BLOCK_SECONDS = 0.2  # seconds
WINDOW_TIMEOUT_SECONDS = 75.0  # on the real chains an epoch is an hour


def run(*, quick: bool, seed: int) -> Iterator[PremiseCount]:
    """Each behavior with the healthy endpoint at every position, over three windows.

    Quick: at one position, over two.
    """
    del seed  # only the seed in a behavior's own text matters
    places = [(index % ENDPOINTS,) for index in range(len(BEHAVIORS))] if quick else [range(ENDPOINTS)] * len(BEHAVIORS)
    cases = [(name, place) for name, wells in zip(BEHAVIORS, places, strict=True) for place in wells]
    with tempfile.TemporaryDirectory() as place:
        yield run_campaign(Path(place), cases, windows=2 if quick else 3)


@dataclass
class PoolUnderTest:
    """One worker with three endpoints."""

    behavior: str
    healthy_index: int
    endpoints: tuple[str, ...]
    state_dir: Path
    wallet: Wallet
    nonces: list[int] = field(default_factory=list)
    slowest: float = 0.0
    problems: list[str] = field(default_factory=list)

    def serve_windows(self, windows: int, ready: threading.Barrier) -> None:
        """Serve each window in step with the other pools, then settle the rest. Runs in a thread of its own."""
        clock = SystemClock()
        with open_context(self.wallet, self.state_dir, self.endpoints) as parts:
            persistent = replace(parts, retry_until_closed=True, confirmation_seconds=WINDOW_TIMEOUT_SECONDS)
            for _ in range(windows):
                ready.wait()
                start = clock.monotonic()
                outcome, reason = "", ""
                while (
                    outcome not in ("submitted", "already_submitted")
                    and clock.monotonic() - start < WINDOW_TIMEOUT_SECONDS
                ):
                    cycle_outcome = run_cycle(persistent)
                    outcome, reason = cycle_outcome.outcome, cycle_outcome.reason
                    parts.wake.wait(0.1)
                self.slowest = max(self.slowest, clock.monotonic() - start)
                if outcome not in ("submitted", "already_submitted"):
                    self.problems.append(f"{self.behavior}: {outcome}, {reason}")
                ready.wait()
            ready.wait()
            # The topic is inactive now. A pool may need a moment until it uses its healthy endpoint again.
            for _ in range(20):
                run_cycle(parts)
                if not parts.ledger.entries(LOCAL_CHAIN_ID, self.wallet.address, states=OPEN_STATES):
                    break
                parts.wake.wait(0.5)


def run_campaign(directory: Path, cases: Sequence[tuple[str, int]], *, windows: int) -> PremiseCount:
    """Run a pool for each case: a behavior and the position of the healthy endpoint. Each serves `windows` windows."""
    topic = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=EPOCH)
    pools: list[PoolUnderTest] = []
    with ExitStack() as stack:
        node = stack.enter_context(
            open_embedded(directory / "node", SystemClock(), topics=(topic,), block_time=None, seal_at_once=False)
        )
        node.advance(2 * EPOCH)  # an old state, for endpoints that lag
        for first in range(0, len(cases), PARALLEL_POOLS):
            batch = [
                _pool(directory / str(first + index), node, behavior, healthy_index)
                for index, (behavior, healthy_index) in enumerate(cases[first : first + PARALLEL_POOLS])
            ]
            _serve(node, topic, batch, windows)
            pools += batch
        record = node.record()
    counts, violations = AuditCounts(), []
    for pool in pools:
        violations += pool.problems
        ledger_contents = read_ledger(pool.state_dir / "ledger.sqlite", record.chain_id, pool.wallet.address)
        problems = audit(record, pool.wallet.address, pool.nonces, ledger_contents, counts)
        violations += [
            f"{pool.behavior}, the healthy endpoint at {pool.healthy_index}: {evidence}" for evidence in problems
        ]
    slow = sorted(pools, key=lambda pool: -pool.slowest)
    return PremiseCount(
        "pools of three endpoints, two of which misbehave",
        {
            "behaviors": len({pool.behavior for pool in pools}),
            "pools": len(pools),
            "windows": sum(len(pool.nonces) for pool in pools),
            "windows served by one inclusion": counts.served_count,
            "doubled": counts.doubled_count,
            "lost": counts.lost_count,
            "paid failures": counts.paid_failure_count,
            "outcomes that differ from the node's record": counts.differing_count,
            "median and slowest window": f"{slow[len(slow) // 2].slowest:.1f} s, {slow[0].slowest:.1f} s"
            f" ({', '.join(pool.behavior for pool in slow[:3])})",
        },
        "every window has one successful inclusion, and nothing else was paid",
        tuple(violations[:20]) + (("paid failures",) if counts.paid_failure_count else ()),
    )


def _pool(state: Path, node: EmbeddedNode, behavior: str, healthy_index: int) -> PoolUnderTest:
    bad = [node.add_endpoint((BEHAVIORS[behavior],)) for _ in range(ENDPOINTS - 1)]
    bad.insert(healthy_index, node.add_endpoint())
    return PoolUnderTest(behavior, healthy_index, tuple(bad), state, Wallet.from_mnemonic(new_mnemonic()))


def _serve(node: EmbeddedNode, topic: TopicSpec, pools: Sequence[PoolUnderTest], windows: int) -> None:
    """Open one window after the other, and make blocks until every pool has served it."""
    ready = threading.Barrier(len(pools) + 1)

    def work(pool: PoolUnderTest) -> None:
        try:
            pool.serve_windows(windows, ready)
        except (ForecastdError, threading.BrokenBarrierError) as error:
            pool.problems.append(f"{pool.behavior}: {error!r}")
            ready.abort()

    threads = [threading.Thread(target=work, args=(pool,), name=pool.behavior) for pool in pools]
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
