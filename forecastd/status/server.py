"""Three read-only HTTP endpoints on this machine: /healthz, /metrics, /status.

They use the standard library's server, because they run in the daemon's parent process, which must stay small:
FastAPI with uvicorn would cost tens of megabytes. Invariant: a client may send nothing or never stop sending. A
request is therefore read completely first, bounded in bytes and in time, and the number of concurrent connections is
limited.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

from forecastd.clock import Clock
from forecastd.runtime.closeable import Closeable
from forecastd.status.health import check_health
from forecastd.status.model import DaemonStatus

log = logging.getLogger(__name__)

HOST = "127.0.0.1"
MAX_CONNECTIONS = 8
MAX_REQUEST_BYTES = 8192  # of a request
REQUEST_SECONDS = 5.0  # to receive a complete request
RESPONSE_SECONDS = 5.0  # for one send call of the response
ALLOWED_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})  # others may be DNS rebinding


class HealthServer(Closeable):
    """Serves while the block runs. `read_status` returns the daemon's current status and must be thread-safe.

    If the port cannot be bound, a warning is logged, `port` is None and nothing is served: monitoring must not stop
    what it monitors.
    """

    def __init__(self, port: int, read_status: Callable[[], DaemonStatus], clock: Clock) -> None:
        """`port` 0 takes any free port."""
        self.port: int | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        try:
            self._server: _HealthHTTPServer | None = _HealthHTTPServer(port, read_status, clock)
        except OSError as error:
            log.warning(
                "No health over HTTP: cannot bind port %d of %s (%s). Choose another HEALTH_PORT.", port, HOST,
                error.strerror, extra={"action": "health"},
            )  # fmt: skip
            self._server = None
        else:
            self.port = self._server.server_address[1]

    def start(self) -> None:
        if self._server is not None:
            self._thread = threading.Thread(target=self._serve, args=(self._server,), name="health", daemon=True)
            self._thread.start()
            log.info(
                "health over HTTP: http://%s:%s/healthz, /metrics, /status", HOST, self.port, extra={"action": "health"}
            )

    def close(self) -> None:
        """Release the port. Responses in progress finish by themselves."""
        if self._server is None or self._closing.is_set():
            return
        self._closing.set()
        # Ends the wait for a connection; the library's own shutdown would poll a flag twice a second.
        self._server.socket.shutdown(socket.SHUT_RDWR)
        if self._thread is not None:
            self._thread.join()
        self._server.server_close()

    def _serve(self, server: _HealthHTTPServer) -> None:
        while not self._closing.is_set():
            server.handle_request()


class _HealthHTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, port: int, read_status: Callable[[], DaemonStatus], clock: Clock) -> None:
        self.read_status, self.clock = read_status, clock
        self._connection_slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__((HOST, port), _HealthRequestHandler)

    def server_bind(self) -> None:
        """Bind only: the library's method would also query DNS for this machine's name."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = HOST, self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._connection_slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._connection_slots.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connection_slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        level = logging.DEBUG if isinstance(error, OSError) else logging.ERROR
        log.log(level, "A health request failed: %r", error, exc_info=level == logging.ERROR)


class _HealthRequestHandler(BaseHTTPRequestHandler):
    server: _HealthHTTPServer
    server_version, sys_version = "forecastd", ""
    protocol_version = "HTTP/1.0"  # one request per connection

    def setup(self) -> None:
        super().setup()
        self.rfile = BytesIO(self._read_request())
        self.connection.settimeout(RESPONSE_SECONDS)

    def _read_request(self) -> bytes:
        """The bytes up to the blank line; empty, and so rejected, if the request is too long or too slow."""
        clock, data = self.server.clock, bytearray()
        deadline = clock.monotonic() + REQUEST_SECONDS
        while b"\r\n\r\n" not in data and b"\n\n" not in data and len(data) < MAX_REQUEST_BYTES:
            seconds_left = deadline - clock.monotonic()
            if seconds_left <= 0:
                return b""
            self.connection.settimeout(seconds_left)
            chunk = self.connection.recv(MAX_REQUEST_BYTES - len(data))
            if not chunk:
                return b""
            data += chunk
        return bytes(data) if len(data) < MAX_REQUEST_BYTES else b""

    def do_GET(self) -> None:
        """Serve one of the three paths; 404 for any other."""
        if not _is_local_host(self.headers.get("Host") or HOST):
            self.send_error(403)
            return
        routes = {"/healthz": self._serve_healthz, "/metrics": self._serve_metrics, "/status": self._serve_status}
        route = routes.get(urlsplit(self.path).path)
        if route is None:
            self.send_error(404)
        else:
            route()

    do_HEAD = do_GET  # noqa: N815 - the name that the library calls

    def _serve_healthz(self) -> None:
        health = check_health(self.server.read_status(), self.server.clock.now())
        self._send_json(200 if health.ok else 503, {"ok": health.ok, "reasons": list(health.reasons)})

    def _serve_metrics(self) -> None:
        from forecastd.status.metrics import CONTENT_TYPE, exposition

        self._send_body(200, CONTENT_TYPE, exposition(self.server.read_status(), self.server.clock.now()))

    def _serve_status(self) -> None:
        self._send_body(200, "application/json", self.server.read_status().to_json() + b"\n")

    def _send_json(self, code: int, document: dict[str, object]) -> None:
        self._send_body(code, "application/json", json.dumps(document).encode() + b"\n")

    def _send_body(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """An error response that repeats nothing of the request."""
        del message, explain
        self._send_json(code, {"error": self.responses[code][0]})

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        log.debug("health: %s", format % args)


def _is_local_host(host: str) -> bool:
    """Whether a Host header, with or without a port, names this machine."""
    try:
        return urlsplit(f"//{host}").hostname in ALLOWED_HOSTS
    except ValueError:
        return False
