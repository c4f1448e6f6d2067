"""A local node in the foreground: gRPC and websocket on known ports, until it is told to stop.

The main endpoint and the chain can have faults, and further endpoints with other faults can stand beside the main one.
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
from forecastd.localnet.chain import Block, LocalChain, Rules
from forecastd.localnet.faults import Fault, parse_faults
from forecastd.localnet.running import announced
from forecastd.localnet.server import LOOPBACK, LocalNode, listen
from forecastd.localnet.state import State
from forecastd.localnet.store import Store, chain_path
from forecastd.localnet.websocket import PATH, Hub


@dataclass(frozen=True)
class EndpointSpec:
    """One more endpoint: over gRPC or REST, with faults."""

    rest: bool
    faults: tuple[Fault, ...]

    @classmethod
    def parse(cls, text: str) -> EndpointSpec:
        """`FAULT[,FAULT...]` for gRPC, `rest:` and the same for REST; `ok` is no fault.

        Raises:
            NeedsHuman: not of this form, or one of the faults is the chain's.
        """
        prefix, found, rest = text.partition("rest:")
        over_rest = bool(found) and not prefix.strip()
        told = rest if over_rest else text
        faults = () if told.strip() in ("", "ok") else parse_faults(told)
        wrong = [fault.name for fault in faults if not fault.kind.of_endpoint]
        if wrong:
            raise NeedsHuman(f"{wrong[0]} is a fault of the chain, not of one endpoint. Give it with --fault.")
        return cls(over_rest, faults)

    def __str__(self) -> str:
        return ", ".join(str(fault) for fault in self.faults) or "ok"


@dataclass(frozen=True)
class Started:
    """What a node that began to serve tells."""

    state: State
    endpoint: str
    websocket: str
    rest: str | None
    faults: tuple[str, ...]
    others: tuple[tuple[str, str], ...]  # (URL, faults) of each further endpoint


def run_node(
    state_dir: Path,
    clock: Clock,
    rules: Rules,
    *,
    port: int,
    ws_port: int,
    rest_port: int | None = None,
    seal_at_once: bool,
    faults: Sequence[Fault] = (),
    endpoints: Sequence[EndpointSpec] = (),
    started: Callable[[Started], None],
    block_made: Callable[[Block], None],
) -> None:
    """Serve until SIGINT or SIGTERM. Port 0 takes a free one; without a REST port there is no REST.

    Call it in the main thread.

    `faults`: of the main endpoint and of the chain. `endpoints`: one more endpoint each, on a free port.

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
        chain.inject(*(fault for fault in faults if not fault.kind.of_endpoint))
        own = [fault for fault in faults if fault.kind.of_endpoint]
        node = LocalNode(chain, sock, seal_at_once=seal_at_once, faults=own)
        hub = Hub(lambda: node.is_down, chain_id=rules.chain_id)
        node.on_down = hub.cut
        rest = node.add(_bound(rest_port, "--rest-port"), rest=True).url if rest_port is not None else None
        others = tuple((node.add(listen(0), one.faults, rest=one.rest).url, str(one)) for one in endpoints)
        websocket = f"ws://{LOOPBACK}:{ws_sock.getsockname()[1]}{PATH}"
        told = Started(chain.state, node.main.url, websocket, rest, tuple(map(str, faults)), others)
        stack.enter_context(announced(state_dir, told.endpoint, rules.chain_id, websocket))

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
