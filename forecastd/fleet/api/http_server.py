"""The HTTP server: uvicorn in its own thread, on a socket that was bound before anything else started."""

from __future__ import annotations

import logging
import threading

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from forecastd.fleet.api.listener import IDLE_SECONDS, Listener
from forecastd.runtime.closeable import Closeable

HEADER_BYTES = 32_768
SHUTDOWN_SECONDS = 0.3  # for pending responses at shutdown, and again to abort them


class FleetHttpServer(Closeable):
    """Serves `app` on a listening socket while the block runs."""

    def __init__(self, app: ASGIApp, listener: Listener) -> None:
        async def serve_request(scope: Scope, receive: Receive, send: Send) -> None:
            with listener.request(scope.get("client")):
                await app(scope, receive, send)

        config = uvicorn.Config(
            serve_request, loop="asyncio", http="h11", ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=1, h11_max_incomplete_event_size=HEADER_BYTES,
        )  # fmt: skip
        logging.getLogger("uvicorn").setLevel(logging.ERROR)  # else a client that sends no HTTP could fill the log
        self.port = listener.port
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="http", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether the server thread is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Begin to shut down. Returns immediately."""
        self._server.should_exit = True

    def close(self) -> None:
        self.stop()
        self._thread.join(SHUTDOWN_SECONDS)
        self._server.force_exit = True
        self._thread.join(SHUTDOWN_SECONDS)
