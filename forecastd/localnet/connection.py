"""One caller's connection to an endpoint, whatever is spoken on it, and the faults that come before a word is said."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from forecastd.errors import ForecastdError
from forecastd.localnet.endpoint_view import EndpointView
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.service import RpcStatusError

HTML_PAGE = (
    b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
)
GARBAGE = b"\xff" * 96
HUGE_BYTES = 100 * 2**20
DUPLICATE_DELAY_SECONDS = 0.05  # seconds between an answer and its repetition
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error)

log = logging.getLogger(__name__)


class EndpointConnection(asyncio.Protocol, ABC):
    """A connection. `served` is called after each answer, `on_end` when the connection is over."""

    def __init__(self, view: EndpointView, on_response: Callable[[], None]) -> None:
        self.view = view
        self.on_response = on_response
        self.on_close: Callable[[], None] = lambda: None
        self.transport: Any = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._fault: NodeFault | None = None

    def start(self) -> None:
        """The connection is there."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Bytes came."""

    def stop(self) -> None:
        """The connection is over."""

    def abort(self) -> None:
        """End the connection as a crash does: with a reset, whatever was on its way."""
        if self.transport is None:  # not begun; who takes it up looks again
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # the caller was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def answer_request(self, path: str, request: bytes, faults: tuple[NodeFault, ...]) -> Any:
        """The view's answer as a message; whatever goes wrong on the way is Declined, too."""
        try:
            return self.view.answer(path, request, faults)
        except ForecastdError as error:
            raise RpcStatusError("UNAVAILABLE", str(error)) from error
        except _UNREADABLE as error:  # what betterproto2 raises for bytes that are no message
            log.debug("unreadable request: %r", error)
            raise RpcStatusError("INVALID_ARGUMENT", "the request is not readable") from error

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._fault = self.view.on_connection()
        if self._fault is None:
            self.start()
        elif self._fault.name == "reset":
            self.abort()

    def data_received(self, data: bytes) -> None:
        if self._fault is None:
            self.receive(data)
        elif self._fault.name == "web-server":
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: {len(HTML_PAGE)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + HTML_PAGE)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.stop()
        self.on_close()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()
