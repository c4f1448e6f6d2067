"""The listening socket of the API, with limits that keep slow and silent clients from using all connections.

uvicorn waits forever for the first byte of a request, for the rest of its headers, and for the rest of a body that was
refused. So a connection without a request in progress has a time limit, which is applied when another client connects.
The kernel closes the connection of a client that does not read its response.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from forecastd.clock import Clock
from forecastd.errors import NeedsHuman

BACKLOG = 1024
MAX_CONNECTIONS = 512
IDLE_SECONDS = 30  # without a request in progress, which begins at the end of its headers
READER_SECONDS = 30  # in which a client reads nothing of its response

_BODY = json.dumps({"error": "Too many open connections.", "fix": "Retry in a few seconds, and reuse connections."})
_REFUSAL = (
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\nConnection: close\r\n"
    f"Content-Length: {len(_BODY)}\r\n\r\n{_BODY}"
).encode()


@dataclass
class _Connection:
    """`idle_since`: the monotonic second of its start, or of the end of its last request."""

    socket: socket.socket
    idle_since: float
    requests: int = 0  # in progress


class Listener(socket.socket):
    """A listening socket with at most `MAX_CONNECTIONS` connections. Used by one event loop."""

    def __init__(self, listener: socket.socket, clock: Clock) -> None:
        """Take over a listening socket."""
        super().__init__(fileno=listener.detach())
        self._clock = clock
        self._connections: dict[tuple[str, int], _Connection] = {}  # by the client's address

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self.getsockname()[1])

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection.

        Raises:
            BlockingIOError: there is none; the socket is non-blocking.
            ConnectionAbortedError: there were too many, so it got a response with status 503. The event loop calls
                again, after other work.
        """
        connection, address = super().accept()
        now = self._clock.monotonic()
        self._close_idle(now)
        if len(self._connections) < MAX_CONNECTIONS:
            self._connections[address[:2]] = _Connection(connection, now)
            return connection, address
        with connection, suppress(OSError):
            connection.sendall(_REFUSAL)
        raise ConnectionAbortedError

    @contextmanager
    def request(self, address: tuple[str, int] | None) -> Iterator[None]:
        """Count a request of a client as in progress while the block runs."""
        connection = None if address is None else self._connections.get(address)
        if connection is None:
            yield
            return
        connection.requests += 1
        try:
            yield
        finally:
            connection.requests -= 1
            connection.idle_since = self._clock.monotonic()

    def _close_idle(self, now: float) -> None:
        for address, connection in list(self._connections.items()):
            if connection.socket.fileno() == -1:  # closed
                del self._connections[address]
            elif not connection.requests and now - connection.idle_since > IDLE_SECONDS:
                del self._connections[address]
                with suppress(OSError):
                    connection.socket.shutdown(socket.SHUT_RDWR)  # the event loop closes it


def listen(host: str, port: int, clock: Clock) -> Listener:
    """A listening socket; port 0 takes any free port.

    Raises:
        NeedsHuman: the address is unknown or in use.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = addresses[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NeedsHuman(
            f"Cannot listen on {host} port {port}: {reason}. "
            "Choose another --port or --host, or stop the program that listens there."
        ) from None
    # Connections inherit the options of this socket. asyncio sets TCP_NODELAY only on sockets of its own; without it
    # the head and the body of a response wait 40 ms for each other.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * READER_SECONDS))
    return Listener(listener, clock)
