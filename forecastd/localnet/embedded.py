"""A local node inside this process, on a free loopback port and in a thread of its own.

A cycle uses it when no local node runs; tests and campaigns control it. `call` runs a function with the chain in the
node's thread, so threads share no state. One chain can have several endpoints, each with its own faults.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.clock import Clock
from forecastd.localnet.chain import ChainConfig, LocalChain
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.record import ChainRecord, take_record
from forecastd.localnet.server import LOOPBACK, LocalNode, listen
from forecastd.localnet.state import Fees
from forecastd.localnet.store import ChainStore, chain_path
from forecastd.localnet.topics import TopicSpec

STOP_TIMEOUT_SECONDS = 5.0
T = TypeVar("T")


class EmbeddedNode:
    """A running node. `endpoint` is its gRPC URL; `websocket` is the URL of its event stream, or None."""

    def __init__(self, chain: LocalChain, *, seal_at_once: bool, events: bool = False) -> None:
        self._chain = chain
        self._node = LocalNode(chain, listen(0), seal_at_once=seal_at_once)
        self.endpoint = self._node.main_listener.url
        self.websocket: str | None = None
        self._serve_websocket: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
        if events:
            self._add_websocket(chain)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="localnet", daemon=True)
        self._thread.start()

    def _add_websocket(self, chain: LocalChain) -> None:
        # Lazy: this loads the websocket library, which only nodes with events need.
        from forecastd.localnet.websocket import (
            WEBSOCKET_PATH,
            EventHub,
        )

        hub, sock = EventHub(lambda: self._node.is_down, chain_id=chain.state.chain_id), listen(0)
        self.websocket = f"ws://{LOOPBACK}:{sock.getsockname()[1]}{WEBSOCKET_PATH}"
        self._node.on_down = hub.drop_connections
        chain.listeners.append(lambda block: hub.publish(block, chain.state.version))
        self._serve_websocket = lambda: hub.serve(sock)

    def call(self, function: Callable[[LocalChain], T]) -> T:
        """Run `function` with the chain in the node's thread, and return its result."""

        async def run() -> T:
            return function(self._chain)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def advance(self, blocks: int = 1) -> int:
        """Make blocks on demand; the first includes the pending transactions. Returns the new height."""

        def step(chain: LocalChain) -> int:
            chain.advance(blocks)
            return chain.state.height

        return self.call(step)

    def add_endpoint(self, faults: Iterable[NodeFault] = (), *, rest: bool = False) -> str:
        """Open another endpoint of the same chain on a free port, with its own faults. Returns its URL.

        Raises:
            ValueError: one of the faults is a fault of the chain; use `inject`.
        """
        return self.call(lambda _: self._node.open_endpoint(faults, rest=rest).url)

    def set_faults(self, faults: Iterable[NodeFault] = (), endpoint: str | None = None) -> None:
        """Replace the faults of an endpoint and reset their counters. `endpoint` None is the main one; no faults repair
        it.

        Raises:
            KeyError: the node has no such endpoint.
            ValueError: one of the faults is a fault of the chain; use `inject`.
        """
        self.call(lambda _: self._node.set_faults(endpoint or self.endpoint, faults))

    def inject(self, *faults: NodeFault) -> None:
        """Replace the faults of the chain; without arguments it has none. ValueError: one is a fault of an endpoint."""
        self.call(lambda chain: chain.inject(*faults))

    def restart(self, seconds: float) -> None:
        """Stop the node for some seconds and lose its mempool. It comes back on the same ports."""
        self.call(lambda _: self._node.restart(seconds))

    def record(self) -> ChainRecord:
        """The chain's own record of what happened."""
        return self.call(lambda chain: take_record(chain.state))

    def stop(self) -> None:
        """Stop serving. The last block is on disk."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(STOP_TIMEOUT_SECONDS)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        async with self._node.serve(), self._serve_websocket():
            await self._stop.wait()


@contextmanager
def open_embedded(
    state_dir: Path,
    clock: Clock,
    *,
    chain_id: str = LOCAL_CHAIN_ID,
    topics: tuple[TopicSpec, ...] | None = None,
    version: EmissionsVersion = "v10",
    block_time: float | None = 5.0,
    seal_at_once: bool = True,
    faucet: bool = True,
    fees: Fees | None = None,
    events: bool = False,
) -> Iterator[EmbeddedNode]:
    """Run a node on the state under `state_dir` during the `with` block. With `events` it has a websocket too.

    `topics` None keeps the chain's own topics (topic 67 on a new chain). With `block_time` None, blocks are made on
    demand or when a transaction arrives.

    Raises:
        RetryLater: another node runs on this state.
        NeedsHuman: the state cannot be written or read.
    """
    config = ChainConfig(
        chain_id=chain_id, version=version, topics=topics, block_time=block_time, faucet=faucet, fees=fees or Fees()
    )
    store = ChainStore(chain_path(state_dir, chain_id))
    try:
        node = EmbeddedNode(LocalChain(config, store, clock), seal_at_once=seal_at_once, events=events)
        try:
            yield node
        finally:
            node.stop()
    finally:
        store.close()
