"""The fleet's HTTP server: uvicorn in a thread of its own, on a socket that is bound before anything else starts."""

from __future__ import annotations

import socket
import threading

import uvicorn
from fastapi import FastAPI

from forecastd.errors import NeedsHuman

GRACE_SECONDS = 0.3


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any that is free.

    Raises:
        NeedsHuman: the address cannot be had.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        return socket.create_server(found[0][4][:2], family=found[0][0], backlog=1024)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise NeedsHuman(
            f"Cannot listen on {host} port {port}: {why}. Choose another --port or --host, or stop what listens there."
        ) from None


class HttpServer:
    """Serves `app` on a listening socket while the block runs."""

    def __init__(self, app: FastAPI, listening: socket.socket) -> None:
        self.port: int = listening.getsockname()[1]
        config = uvicorn.Config(
            app, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=15, timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="http", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(GRACE_SECONDS)
        self._server.force_exit = True
        self._thread.join(GRACE_SECONDS)
