"""The local node's endpoints and its heart beat, on one asyncio loop.

One chain, any number of endpoints: each listens on a port of its own with faults of its own. The chain's faults that need
sockets, a restart above all, are carried out here.
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

LOOPBACK = "127.0.0.1"
SEAL_DELAY_SECONDS = 0.005  # seconds between a transaction's arrival and its block, when blocks are sealed at once
_MAX_SLEEP_SECONDS = 1.0  # seconds; a clock may be moved by hand meanwhile
_BACKLOG = 128
_SHORT_DELAY_SECONDS = (
    0.02  # seconds: after a connection that could not be taken, and for an answer to get away before a restart
)

log = logging.getLogger(__name__)


def listen(port: int) -> socket.socket:
    """A loopback socket that listens; `port` 0 takes a free one. Raises OSError when the port is taken."""
    sock = _bind(port)
    try:
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bind(port: int) -> socket.socket:
    """A loopback socket that has the port and does not listen: whoever connects is refused."""
    # With the protocol named: asyncio turns Nagle's algorithm off only for sockets that say they are TCP, and with it
    # on every answer waits 40 ms for an acknowledgement.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
    except OSError:
        sock.close()
        raise
    return sock


class EndpointListener:
    """A port that listens or refuses, with the connections through it. Used in the loop's thread once it is open."""

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
        """The endpoint, as RPC_ENDPOINTS takes it."""
        return f"{'rest' if self.is_rest else 'grpc'}+http://{LOOPBACK}:{self.port}"

    def open(self) -> None:
        """Listen."""
        if not self._is_listening:
            self._sock.listen(_BACKLOG)
            self._sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self._sock, self._accept)
            self._is_listening, self._is_refusing = True, False

    def refuse(self) -> None:
        """Refuse connections and cut those there are. The port stays ours."""
        if not self._is_refusing:
            self._drop_all()
            self._is_refusing = True
            self._sock = _bind(self.port)

    async def close(self) -> None:
        """Let go of the port, and of every connection."""
        self._drop_all()
        await asyncio.gather(*self._accept_tasks)

    def _drop_all(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._is_listening = False
        self._sock.close()
        for connection in list(self._connections):
            connection.abort()

    def _accept(self) -> None:
        """A caller is there."""
        loop = asyncio.get_running_loop()
        try:
            client_sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it gave up
        except OSError as error:  # too many open files: look again in a while instead of at once for ever
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
        if listening_sock is not self._sock or not self._is_listening:  # shut meanwhile
            connection.abort()


class LocalNode:
    """A chain behind its endpoints. `main` is the one on the socket it is given; `on_down` is called as it goes down."""

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
        """Serve and beat until the block ends."""
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
            await asyncio.sleep(0)  # the connections' ends are told in the loop's next round

    @property
    def is_down(self) -> bool:
        """Whether the node is between its end and its start."""
        return self._restart_timer is not None

    def add_endpoint(
        self, sock: socket.socket, faults: Iterable[NodeFault] = (), *, rest: bool = False
    ) -> EndpointListener:
        """One more endpoint of the chain, which opens when the node serves.

        Raises:
            ValueError: a fault is the chain's; the socket is closed.
        """
        try:
            view = EndpointView(self.chain, faults)
        except ValueError:
            sock.close()
            raise
        if rest:
            from forecastd.localnet.rest_connection import RestConnection

            listener = EndpointListener(sock, view, lambda: RestConnection(view, self._on_response), rest=True)
        else:
            from forecastd.localnet.grpc_connection import GrpcConnection

            listener = EndpointListener(sock, view, lambda: GrpcConnection(view, self._on_response), rest=False)
        self.listeners.append(listener)
        return listener

    def open_endpoint(self, faults: Iterable[NodeFault] = (), *, rest: bool = False) -> EndpointListener:
        """As `add` on a free port, while serving; in the loop's thread."""
        listener = self.add_endpoint(listen(0), faults, rest=rest)
        self.update_listeners()
        return listener

    def set_faults(self, url: str, faults: Iterable[NodeFault]) -> None:
        """Give an endpoint other faults. KeyError: there is no such endpoint; ValueError: a fault is the chain's."""
        listener = next((listener for listener in self.listeners if listener.url == url), None)
        if listener is None:
            raise KeyError(url)
        listener.view.set_faults(faults)
        self.update_listeners()

    def update_listeners(self) -> None:
        """Open and shut the ports as the faults say at this height."""
        for listener in self.listeners:
            if self.is_down or listener.view.refuses_connections:
                listener.refuse()
            else:
                listener.open()

    def restart(self, seconds: float) -> None:
        """Go down with the mempool lost, and come back on the same ports."""
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
        """After each answer: what the chain wants of the node."""
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
        """Make blocks when they are due, for ever."""
        while True:
            seconds = self.chain.seconds_to_next_block()
            await asyncio.sleep(_MAX_SLEEP_SECONDS if seconds is None else min(max(seconds, 0.001), _MAX_SLEEP_SECONDS))
            if not self.is_down:
                self._try_step(self.chain.tick)

    def _try_step(self, step: Callable[[], object]) -> None:
        """A disk that fails for a moment must not stop the blocks for good."""
        try:
            step()
        except ForecastdError as error:
            log.warning("no block: %s", error, extra={"action": "localnet_block"})
