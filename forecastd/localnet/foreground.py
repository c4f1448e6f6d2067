"""Runs a local node in the foreground: gRPC, REST and websocket on known ports, until a signal.

The main endpoint and the chain can have faults. Extra endpoints can have other faults.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.localnet.chain import ChainBlock, ChainConfig, LocalChain
from forecastd.localnet.discovery import publish_endpoint
from forecastd.localnet.faults import NodeFault, parse_faults
from forecastd.localnet.server import LOOPBACK, LocalNode, listen
from forecastd.localnet.state import ChainState
from forecastd.localnet.store import ChainStore, chain_path
from forecastd.localnet.websocket import WEBSOCKET_PATH, EventHub


@dataclass(frozen=True)
class EndpointSpec:
    """An extra endpoint over gRPC or REST, with its faults."""

    is_rest: bool
    faults: tuple[NodeFault, ...]

    @classmethod
    def parse(cls, text: str) -> EndpointSpec:
        """Parse `FAULT[,FAULT...]` for gRPC, or the same after `rest:` for REST. `ok` means no fault.

        Raises:
            NeedsHuman: the text has the wrong format, or one of the faults is a fault of the chain.
        """
        prefix, separator, remainder = text.partition("rest:")
        is_rest = bool(separator) and not prefix.strip()
        fault_text = remainder if is_rest else text
        faults = () if fault_text.strip() in ("", "ok") else parse_faults(fault_text)
        chain_faults = [fault.name for fault in faults if not fault.kind.is_endpoint_fault]
        if chain_faults:
            raise NeedsHuman(f"{chain_faults[0]} is a fault of the chain, not of one endpoint. Give it with --fault.")
        return cls(is_rest, faults)

    def __str__(self) -> str:
        return ", ".join(str(fault) for fault in self.faults) or "ok"


@dataclass(frozen=True)
class NodeStartup:
    """What a node reports when it starts to serve."""

    state: ChainState
    endpoint: str
    websocket: str
    rest: str | None
    faults: tuple[str, ...]
    extra_endpoints: tuple[tuple[str, str], ...]  # (URL, faults) of each extra endpoint


def run_node(
    state_dir: Path,
    clock: Clock,
    config: ChainConfig,
    *,
    port: int,
    ws_port: int,
    rest_port: int | None = None,
    seal_at_once: bool,
    faults: Sequence[NodeFault] = (),
    endpoints: Sequence[EndpointSpec] = (),
    on_started: Callable[[NodeStartup], None],
    on_block: Callable[[ChainBlock], None],
) -> None:
    """Serve until SIGINT or SIGTERM. Must run in the main thread.

    Port 0 uses a free port; without a REST port there is no REST. `faults` are those of the main endpoint and of the
    chain. `endpoints` are extra endpoints, each on a free port.

    Raises:
        NeedsHuman: a port is in use, another node runs on the state, or the state cannot be used.
    """
    with ExitStack() as stack:
        store = _open_store(chain_path(state_dir, config.chain_id))
        stack.callback(store.close)
        sock = _listen_on(port, "--port")
        stack.callback(sock.close)
        ws_sock = _listen_on(ws_port, "--ws-port")
        stack.callback(ws_sock.close)
        chain = LocalChain(config, store, clock)
        chain.inject(*(fault for fault in faults if not fault.kind.is_endpoint_fault))
        endpoint_faults = [fault for fault in faults if fault.kind.is_endpoint_fault]
        node = LocalNode(chain, sock, seal_at_once=seal_at_once, faults=endpoint_faults)
        hub = EventHub(lambda: node.is_down, chain_id=config.chain_id)
        node.on_down = hub.drop_connections
        rest = node.add_endpoint(_listen_on(rest_port, "--rest-port"), rest=True).url if rest_port is not None else None
        extra_endpoints = tuple(
            (node.add_endpoint(listen(0), spec.faults, rest=spec.is_rest).url, str(spec)) for spec in endpoints
        )
        websocket = f"ws://{LOOPBACK}:{ws_sock.getsockname()[1]}{WEBSOCKET_PATH}"
        startup = NodeStartup(
            chain.state, node.main_listener.url, websocket, rest, tuple(map(str, faults)), extra_endpoints
        )
        stack.enter_context(publish_endpoint(state_dir, startup.endpoint, config.chain_id, websocket))

        def on_new_block(block: ChainBlock) -> None:
            hub.publish(block, chain.state.version)
            on_block(block)

        chain.listeners.append(on_new_block)

        async def main() -> None:
            stop, loop = asyncio.Event(), asyncio.get_running_loop()
            for signal_number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(signal_number, stop.set)
            async with AsyncExitStack() as serving:
                await serving.enter_async_context(node.serve())
                await serving.enter_async_context(hub.serve(ws_sock))
                on_started(startup)
                await stop.wait()

        asyncio.run(main())


def _open_store(path: Path) -> ChainStore:
    try:
        return ChainStore(path, timeout_seconds=0.0)
    except RetryLater as error:  # in the foreground only the operator can resolve this
        raise NeedsHuman(str(error)) from error


def _listen_on(port: int, option: str) -> socket.socket:
    try:
        return listen(port)
    except OSError as error:
        raise NeedsHuman(
            f"Port {port} cannot be used: {os.strerror(error.errno or 0)}. "
            f"Stop the program that uses it, or choose another port with {option}."
        ) from error
