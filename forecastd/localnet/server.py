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
from forecastd.localnet.caller import Caller
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.faults import Fault
from forecastd.localnet.view import View

LOOPBACK = "127.0.0.1"
SEAL_AFTER = 0.005  # seconds between a transaction's arrival and its block, when blocks are sealed at once
_LONGEST_NAP = 1.0  # seconds; a clock may be moved by hand meanwhile
_BACKLOG = 128
_BREATH = 0.02  # seconds: after a connection that could not be taken, and for an answer to get away before a restart

log = logging.getLogger(__name__)


def listen(port: int) -> socket.socket:
    """A loopback socket that listens; `port` 0 takes a free one. Raises OSError when the port is taken."""
    sock = _bound(port)
    try:
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _bound(port: int) -> socket.socket:
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


class Door:
    """A port that listens or refuses, with the connections through it. Used in the loop's thread once it is open."""

    def __init__(self, sock: socket.socket, view: View, connect: Callable[[], Caller], *, rest: bool) -> None:
        self.view = view
        self.rest = rest
        self.port: int = sock.getsockname()[1]
        self._sock = sock
        self._connect = connect
        self._open = self._shut = False
        self._joining: set[asyncio.Task[None]] = set()
        self._connections: set[Caller] = set()

    @property
    def url(self) -> str:
        """The endpoint, as RPC_ENDPOINTS takes it."""
        return f"{'rest' if self.rest else 'grpc'}+http://{LOOPBACK}:{self.port}"

    def open(self) -> None:
        """Listen."""
        if not self._open:
            self._sock.listen(_BACKLOG)
            self._sock.setblocking(False)
            asyncio.get_running_loop().add_reader(self._sock, self._accept)
            self._open, self._shut = True, False

    def shut(self) -> None:
        """Refuse connections and cut those there are. The port stays ours."""
        if not self._shut:
            self._end()
            self._shut = True
            self._sock = _bound(self.port)

    async def close(self) -> None:
        """Let go of the port, and of every connection."""
        self._end()
        await asyncio.gather(*self._joining)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._sock)
        self._open = False
        self._sock.close()
        for connection in list(self._connections):
            connection.cut()

    def _accept(self) -> None:
        """A caller is there."""
        loop = asyncio.get_running_loop()
        try:
            caller, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it gave up
        except OSError as error:  # too many open files: look again in a while instead of at once for ever
            log.debug("no connection: %r", error)
            loop.remove_reader(self._sock)
            self._open = False
            loop.call_later(_BREATH, lambda: None if self._shut else self.open())
            return
        task = loop.create_task(self._join(caller, self._sock))
        self._joining.add(task)
        task.add_done_callback(self._joining.discard)

    async def _join(self, caller: socket.socket, door: socket.socket) -> None:
        connection = self._connect()
        connection.on_end = lambda: self._connections.discard(connection)
        self._connections.add(connection)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, caller)
        if door is not self._sock or not self._open:  # shut meanwhile
            connection.cut()


class LocalNode:
    """A chain behind its endpoints. `main` is the one on the socket it is given; `on_down` is called as it goes down."""

    def __init__(
        self, chain: LocalChain, sock: socket.socket, *, seal_at_once: bool, faults: Iterable[Fault] = ()
    ) -> None:
        self.chain = chain
        self.doors: list[Door] = []
        self.on_down: Callable[[], None] = lambda: None
        self._seal_at_once = seal_at_once
        self._sealing: asyncio.TimerHandle | None = None
        self._waking: asyncio.TimerHandle | None = None
        self.main = self.add(sock, faults)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve and beat until the block ends."""
        self.chain.listeners.append(self._refresh)
        self._refresh()
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            self.chain.listeners.remove(self._refresh)
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            for timer in (self._sealing, self._waking):
                if timer is not None:
                    timer.cancel()
            for door in self.doors:
                await door.close()
            await asyncio.sleep(0)  # the connections' ends are told in the loop's next round

    @property
    def is_down(self) -> bool:
        """Whether the node is between its end and its start."""
        return self._waking is not None

    def add(self, sock: socket.socket, faults: Iterable[Fault] = (), *, rest: bool = False) -> Door:
        """One more endpoint of the chain, which opens when the node serves.

        Raises:
            ValueError: a fault is the chain's; the socket is closed.
        """
        try:
            view = View(self.chain, faults)
        except ValueError:
            sock.close()
            raise
        if rest:
            from forecastd.localnet.restwire import RestConnection

            door = Door(sock, view, lambda: RestConnection(view, self._served), rest=True)
        else:
            from forecastd.localnet.grpcwire import GrpcConnection

            door = Door(sock, view, lambda: GrpcConnection(view, self._served), rest=False)
        self.doors.append(door)
        return door

    def open(self, faults: Iterable[Fault] = (), *, rest: bool = False) -> Door:
        """As `add` on a free port, while serving; in the loop's thread."""
        door = self.add(listen(0), faults, rest=rest)
        self.refresh()
        return door

    def set_faults(self, url: str, faults: Iterable[Fault]) -> None:
        """Give an endpoint other faults. KeyError: there is no such endpoint; ValueError: a fault is the chain's."""
        door = next((door for door in self.doors if door.url == url), None)
        if door is None:
            raise KeyError(url)
        door.view.set_faults(faults)
        self.refresh()

    def refresh(self) -> None:
        """Open and shut the ports as the faults say at this height."""
        for door in self.doors:
            if self.is_down or door.view.refuses:
                door.shut()
            else:
                door.open()

    def restart(self, seconds: float) -> None:
        """Go down with the mempool lost, and come back on the same ports."""
        self.chain.forget_mempool()
        if self._waking is not None:
            self._waking.cancel()
        self._waking = asyncio.get_running_loop().call_later(seconds, self._wake)
        self.refresh()
        self.on_down()

    def _wake(self) -> None:
        self._waking = None
        self._try(self.chain.catch_up)
        self.refresh()

    def _refresh(self, *_: object) -> None:
        self.refresh()

    def _served(self) -> None:
        """After each answer: what the chain wants of the node."""
        seconds = self.chain.trouble.take_restart()
        if seconds is not None:
            self.chain.forget_mempool()
            asyncio.get_running_loop().call_later(_BREATH, self.restart, seconds)
        elif self._seal_at_once and self.chain.waiting and self._sealing is None and not self.is_down:
            self._sealing = asyncio.get_running_loop().call_later(SEAL_AFTER, self._seal)

    def _seal(self) -> None:
        self._sealing = None
        if self.chain.waiting:
            self._try(self.chain.seal)

    async def _beat(self) -> None:
        """Make blocks when they are due, for ever."""
        while True:
            due = self.chain.due_in()
            await asyncio.sleep(_LONGEST_NAP if due is None else min(max(due, 0.001), _LONGEST_NAP))
            if not self.is_down:
                self._try(self.chain.tick)

    def _try(self, step: Callable[[], object]) -> None:
        """A disk that fails for a moment must not stop the blocks for good."""
        try:
            step()
        except ForecastdError as error:
            log.warning("no block: %s", error, extra={"action": "localnet_block"})
