"""Where the API listens, and who can reach it there."""

from __future__ import annotations

import ipaddress
import socket

from forecastd.errors import NeedsHuman

BACKLOG = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        NeedsHuman: the address cannot be had.
    """
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = addresses[0]
        listener = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise NeedsHuman(
            f"Cannot listen on {host} port {port}: {reason}. Choose another --port or --host, or stop what listens there."
        ) from None
    # Connections have it from here. asyncio does it only for sockets that were made another way, and without it the head and
    # the body of an answer wait 40 ms for each other.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address. A name other than `localhost` may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
