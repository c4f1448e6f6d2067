"""The address that the API listens on."""

from __future__ import annotations

import socket

from forecastd.errors import NeedsHuman

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
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
    # Connections inherit TCP_NODELAY from this socket. asyncio sets it only on sockets of its own; without it the head
    # and the body of a response wait 40 ms for each other.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
