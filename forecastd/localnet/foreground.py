"""A local node in the foreground: gRPC and websocket on known ports, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import Block, LocalChain, Rules
from forecastd.localnet.running import announced
from forecastd.localnet.server import LOOPBACK, LocalNode, listen
from forecastd.localnet.state import State
from forecastd.localnet.store import Store, chain_path
from forecastd.localnet.websocket import PATH, Hub

GRPC_PORT, WEBSOCKET_PORT = 9090, 26657  # where allora_sdk's AlloraNetworkConfig.local() looks


@dataclass(frozen=True)
class Started:
    """What a node that began to serve tells."""

    state: State
    endpoint: str
    websocket: str


def run_node(
    state_dir: Path,
    clock: Clock,
    rules: Rules,
    *,
    port: int,
    ws_port: int,
    seal_at_once: bool,
    started: Callable[[Started], None],
    block_made: Callable[[Block], None],
) -> None:
    """Serve until SIGINT or SIGTERM. Port 0 takes a free one. Call it in the main thread.

    Raises:
        NeedsHuman: a port is taken, another node runs on the state, or the state cannot be used.
    """
    with ExitStack() as stack:
        store = _own(chain_path(state_dir, rules.chain_id))
        stack.callback(store.close)
        sock = _bound(port, "--port")
        stack.callback(sock.close)
        ws_sock = _bound(ws_port, "--ws-port")
        stack.callback(ws_sock.close)
        chain = LocalChain(rules, store, clock)
        told = Started(
            chain.state,
            f"grpc+http://{LOOPBACK}:{sock.getsockname()[1]}",
            f"ws://{LOOPBACK}:{ws_sock.getsockname()[1]}{PATH}",
        )
        stack.enter_context(announced(state_dir, told.endpoint, rules.chain_id))
        node, hub = LocalNode(chain, sock, seal_at_once=seal_at_once), Hub()

        def made(block: Block) -> None:
            hub.publish(block, chain.state.version)
            block_made(block)

        chain.listeners.append(made)

        async def main() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            async with AsyncExitStack() as serving:
                await serving.enter_async_context(node.serve())
                await serving.enter_async_context(hub.serve(ws_sock))
                started(told)
                await stop.wait()

        asyncio.run(main())


def _own(path: Path) -> Store:
    try:
        return Store(path, wait=0.0)
    except RetryLater as error:  # whoever starts a second node in the foreground has to stop one of them
        raise NeedsHuman(str(error)) from error


def _bound(port: int, option: str) -> socket.socket:
    try:
        return listen(port)
    except OSError as error:
        raise NeedsHuman(
            f"Port {port} cannot be used: {os.strerror(error.errno or 0)}. "
            f"Stop what listens there, or choose another with {option}."
        ) from error
