"""The local node's gRPC server and its heart beat, on one asyncio loop.

Bytes go in and out unread by the server itself: a method reads its request when it is called, so no message class is
loaded before it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakSet

from grpclib import GRPCError
from grpclib.const import Cardinality, Handler, Status
from grpclib.encoding.base import CodecBase
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from forecastd.errors import ForecastdError
from forecastd.localnet import emissions
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.service import METHODS, Declined, Method

LOOPBACK = "127.0.0.1"
SEAL_AFTER = 0.005  # seconds between a transaction's arrival and its block, when blocks are sealed at once
_LONGEST_NAP = 1.0  # seconds; a clock may be moved by hand meanwhile
_EMISSIONS = [(version, method) for version in ("v9", "v10") for method in emissions.QUERIES]

log = logging.getLogger(__name__)


class RawCodec(CodecBase):
    """Passes bytes through."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        del message_type
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> Any:
        del message_type
        return data


class _Server(Server):
    """grpclib's server, which by itself leaves the connections open that it has when it is closed."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._connections: WeakSet[H2Protocol] = WeakSet()

    def _protocol_factory(self) -> H2Protocol:
        protocol = super()._protocol_factory()
        self._connections.add(protocol)
        return protocol

    async def hang_up(self) -> None:
        """Close the connections that are still open."""
        for protocol in list(self._connections):
            if hasattr(protocol, "processor"):  # it has, once it is connected
                protocol.processor.close()
        await asyncio.sleep(0)  # transports close in the next turn of the loop


def listen(port: int) -> socket.socket:
    """A loopback socket that listens; `port` 0 takes a free one. Raises OSError when the port is taken."""
    # With the protocol named: asyncio turns Nagle's algorithm off only for sockets that say they are TCP, and with it
    # on every answer waits 40 ms for an acknowledgement.
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOOPBACK, port))
        sock.listen()
    except OSError:
        sock.close()
        raise
    return sock


class LocalNode:
    """A chain behind gRPC on a socket that listens."""

    def __init__(self, chain: LocalChain, sock: socket.socket, *, seal_at_once: bool) -> None:
        self.chain = chain
        self._sock = sock
        self._seal_at_once = seal_at_once
        self._sealing: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve and beat until the block ends."""
        server = _Server([self], codec=RawCodec())
        await server.start(sock=self._sock)
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)
            if self._sealing is not None:
                self._sealing.cancel()
            server.close()
            await server.wait_closed()
            await server.hang_up()

    def __mapping__(self) -> dict[str, Handler]:
        paths = {path: self._handler(method) for path, method in METHODS.items()}
        for version, method in _EMISSIONS:
            paths[f"/emissions.{version}.QueryService/{method}"] = self._handler(_query(version, method))
        return paths

    def _handler(self, method: Method) -> Handler:
        async def handle(stream: Any) -> None:
            request = await stream.recv_message()
            try:
                reply = method(self.chain, request or b"")
            except Declined as no:
                raise GRPCError(Status[no.status], no.details) from no
            except ForecastdError as error:
                raise GRPCError(Status.UNAVAILABLE, str(error)) from error
            except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error) as error:
                # What betterproto2 raises for bytes that are no message.
                log.debug("unreadable request: %r", error)
                raise GRPCError(Status.INVALID_ARGUMENT, "the request is not readable") from error
            await stream.send_message(reply)
            self._seal_soon()

        return Handler(handle, Cardinality.UNARY_UNARY, bytes, bytes)

    def _seal_soon(self) -> None:
        if self._seal_at_once and self.chain.waiting and self._sealing is None:
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
            self._try(self.chain.tick)

    def _try(self, step: Callable[[], object]) -> None:
        """A disk that fails for a moment must not stop the blocks for good."""
        try:
            step()
        except ForecastdError as error:
            log.warning("no block: %s", error, extra={"action": "localnet_block"})


def _query(version: str, method: str) -> Method:
    return lambda chain, request: emissions.answer(chain, version, method, request)
