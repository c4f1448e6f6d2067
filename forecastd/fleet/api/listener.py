"""The HTTP server: uvicorn in a thread of its own, on a socket that was bound before anything else started."""

from __future__ import annotations

import logging
import socket
import threading

import uvicorn
from fastapi import FastAPI

from forecastd.errors import NeedsHuman
from forecastd.fleet.api.patience import PatientProtocol

BACKLOG = 1024
KEEP_ALIVE_SECONDS = 30  # of a connection on which nothing is asked
HEADER_BYTES = 32_768
GRACE_SECONDS = 0.3  # for answers under way when the server ends, and again to cut them off


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        NeedsHuman: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, *_, address = found[0]
        listening = socket.create_server(address[:2], family=family, backlog=BACKLOG)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise NeedsHuman(
            f"Cannot listen on {host} port {port}: {why}. Choose another --port or --host, or stop what listens there."
        ) from None
    # Connections have it from here. asyncio does it only for sockets that were made another way, and without it the head and
    # the body of an answer wait 40 ms for each other.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


class HttpServer:
    """Serves `app` on a listening socket while the block runs."""

    def __init__(self, app: FastAPI, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        config = uvicorn.Config(
            app, loop="asyncio", http=PatientProtocol, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=HEADER_BYTES,
        )  # fmt: skip
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # who sends no HTTP chooses how often
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Begin to end. Returns at once."""
        self._server.should_exit = True

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(GRACE_SECONDS)
        self._server.force_exit = True
        self._thread.join(GRACE_SECONDS)
