"""The endpoints of the local node and the loop that makes its blocks, on one asyncio loop.

One chain can have many endpoints. Each listens on its own port with its own faults. Faults of the chain that need
sockets, such as a restart, are applied here.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from forecastd.errors import ForecastdError
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.connection import EndpointConnection
from forecastd.localnet.endpoint_view import EndpointView
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.grpc_connection import GrpcConnection
from forecastd.localnet.rest_connection import RestConnection

LOOPBACK = "127.0.0.1"
SEAL_DELAY_SECONDS = 0.005  # from a transaction's arrival to its block, when blocks are sealed at once
_MAX_SLEEP_SECONDS = 1.0  # short, because a test may move the clock
_BACKLOG = 128
_SHORT_DELAY_SECONDS = 0.02  # after a failed accept, and before a restart so that an answer can be sent

log = logging.getLogger(__name__)


def listen(port: int) -> socket.socket:
    """A loopback socket that listens. Port 0 uses a free port. Raises OSError when the port is in use."""
    sock = _bind(port)
    try:
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(port: int) -> socket.socket:
    """A loopback socket that holds the port without listening: connections are refused."""
    # Name the protocol: asyncio disables Nagle's algorithm only for sockets that are declared as TCP. With Nagle, every
    # answer would wait 40 ms for an acknowledgement.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock


class EndpointListener:
    """A port that accepts or refuses connections. Once it is open, use it only in the thread of the loop."""

    def __init__(
        self, sock: socket.socket, view: EndpointView, connect: Callable[[], EndpointConnection], *, rest: bool
    ) -> None:
        self.view = view
        self.is_rest = rest
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        self._connect = connect
        self._is_listening = self._is_refusing = False
        self._accept_tasks: set[asyncio.Task[None]] = set()
        self._connections: set[EndpointConnection] = set()

    @property
    def url(self) -> str:
        """The URL of the endpoint, as in RPC_ENDPOINTS."""
        return f"{'rest' if self.is_rest else 'grpc'}+http://{LOOPBACK}:{self.port}"

    def open(self) -> None:
        """Accept connections."""
        if not self._is_listening:
            self._sock.listen(_BACKLOG)
            self._sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self._sock, self._accept)
            self._is_listening, self._is_refusing = True, False

    def refuse(self) -> None:
        """Refuse new connections and reset the existing ones. The port stays reserved."""
        if not self._is_refusing:
            self._drop_all()
            self._is_refusing = True
            self._sock = _bind(self.port)

    async def close(self) -> None:
        """Close the port and every connection."""
        self._drop_all()
        await asyncio.gather(*self._accept_tasks)

    def _drop_all(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._is_listening = False
        self._sock.close()
        for connection in list(self._connections):
            connection.abort()

    def _accept(self) -> None:
        """Accept one connection."""
        loop = asyncio.get_running_loop()
        try:
            client_sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # the client gave up
        except OSError as error:  # too many open files: retry after a pause instead of in a busy loop
            log.debug("no connection: %r", error)
            loop.remove_reader(self._sock)
            self._is_listening = False
            loop.call_later(_SHORT_DELAY_SECONDS, lambda: None if self._is_refusing else self.open())
            return
        task = loop.create_task(self._start_connection(client_sock, self._sock))
        self._accept_tasks.add(task)
        task.add_done_callback(self._accept_tasks.discard)

    async def _start_connection(self, client_sock: socket.socket, listening_sock: socket.socket) -> None:
        connection = self._connect()
        connection.on_close = lambda: self._connections.discard(connection)
        self._connections.add(connection)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, client_sock)
        if listening_sock is not self._sock or not self._is_listening:  # refused in the meantime
            connection.abort()


class LocalNode:
    """A chain with its endpoints. `main_listener` uses the given socket; `on_down` is called when the node goes down."""

    def __init__(
        self, chain: LocalChain, sock: socket.socket, *, seal_at_once: bool, faults: Iterable[NodeFault] = ()
    ) -> None:
        self.chain = chain
        self.listeners: list[EndpointListener] = []
        self.on_down: Callable[[], None] = lambda: None
        self._seal_at_once = seal_at_once
        self._seal_timer: asyncio.TimerHandle | None = None
        self._restart_timer: asyncio.TimerHandle | None = None
        self.main_listener = self.add_endpoint(sock, faults)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve and make blocks during the `async with` block."""
        self.chain.listeners.append(self._on_block)
        self._on_block()
        block_task = asyncio.create_task(self._make_due_blocks())
        try:
            yield
        finally:
            self.chain.listeners.remove(self._on_block)
            block_task.cancel()
            await asyncio.gather(block_task, return_exceptions=True)
            for timer in (self._seal_timer, self._restart_timer):
                if timer is not None:
                    timer.cancel()
            for listener in self.listeners:
                await listener.close()
            await asyncio.sleep(0)  # closed connections are reported in the next iteration of the loop

    @property
    def is_down(self) -> bool:
        """Whether the node is in the down time of a restart."""
        return self._restart_timer is not None

    def add_endpoint(
        self, sock: socket.socket, faults: Iterable[NodeFault] = (), *, rest: bool = False
    ) -> EndpointListener:
        """Add an endpoint of the chain. It opens when the node serves.

        Raises:
            ValueError: one of the faults is a fault of the chain. The socket is closed.
        """
        try:
            view = EndpointView(self.chain, faults)
        except ValueError:
            sock.close()
            raise
        if rest:
            listener = EndpointListener(sock, view, lambda: RestConnection(view, self._on_response), rest=True)
        else:
            listener = EndpointListener(sock, view, lambda: GrpcConnection(view, self._on_response), rest=False)
        self.listeners.append(listener)
        return listener

    def open_endpoint(self, faults: Iterable[NodeFault] = (), *, rest: bool = False) -> EndpointListener:
        """Like `add_endpoint` on a free port while the node serves. Call it in the thread of the loop."""
        listener = self.add_endpoint(listen(0), faults, rest=rest)
        self.update_listeners()
        return listener

    def set_faults(self, url: str, faults: Iterable[NodeFault]) -> None:
        """Replace the faults of an endpoint.

        KeyError: there is no such endpoint. ValueError: one is a fault of the chain.
        """
        listener = next((listener for listener in self.listeners if listener.url == url), None)
        if listener is None:
            raise KeyError(url)
        listener.view.set_faults(faults)
        self.update_listeners()

    def update_listeners(self) -> None:
        """Open or close each port as the faults require at this height."""
        for listener in self.listeners:
            if self.is_down or listener.view.refuses_connections:
                listener.refuse()
            else:
                listener.open()

    def restart(self, seconds: float) -> None:
        """Go down and lose the mempool; come back on the same ports after `seconds`."""
        self.chain.clear_mempool()
        if self._restart_timer is not None:
            self._restart_timer.cancel()
        self._restart_timer = asyncio.get_running_loop().call_later(seconds, self._come_back)
        self.update_listeners()
        self.on_down()

    def _come_back(self) -> None:
        self._restart_timer = None
        self._try_step(self.chain.catch_up)
        self.update_listeners()

    def _on_block(self, *_: object) -> None:
        self.update_listeners()

    def _on_response(self) -> None:
        """After each answer: restart or seal a block if the chain requires it."""
        seconds = self.chain.faults.take_restart()
        if seconds is not None:
            self.chain.clear_mempool()
            asyncio.get_running_loop().call_later(_SHORT_DELAY_SECONDS, self.restart, seconds)
        elif self._seal_at_once and self.chain.pending_count and self._seal_timer is None and not self.is_down:
            self._seal_timer = asyncio.get_running_loop().call_later(SEAL_DELAY_SECONDS, self._seal)

    def _seal(self) -> None:
        self._seal_timer = None
        if self.chain.pending_count:
            self._try_step(self.chain.seal)

    async def _make_due_blocks(self) -> None:
        """Make blocks when they are due, forever."""
        while True:
            seconds = self.chain.seconds_to_next_block()
            await asyncio.sleep(_MAX_SLEEP_SECONDS if seconds is None else min(max(seconds, 0.001), _MAX_SLEEP_SECONDS))
            if not self.is_down:
                self._try_step(self.chain.tick)

    def _try_step(self, step: Callable[[], object]) -> None:
        """Run a step and log its failure: a temporary disk error must not stop the chain."""
        try:
            step()
        except ForecastdError as error:
            log.warning("no block: %s", error, extra={"action": "localnet_block"})
