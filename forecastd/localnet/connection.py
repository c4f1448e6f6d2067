"""One client connection to an endpoint, whatever its protocol, and the faults that apply before the first request."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import DecodeError, Message

from forecastd.errors import ForecastdError
from forecastd.localnet.endpoint_view import EndpointView
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.service import RpcStatusError

HTML_PAGE = (
    b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
)
GARBAGE = b"\xff" * 96
HUGE_BYTES = 100 * 2**20
DUPLICATE_DELAY_SECONDS = 0.05  # between an answer and its duplicate

log = logging.getLogger(__name__)


class EndpointConnection(asyncio.Protocol, ABC):
    """A connection. `on_response` is called after each answer, `on_close` when the connection has ended."""

    def __init__(self, view: EndpointView, on_response: Callable[[], None]) -> None:
        self.view = view
        self.on_response = on_response
        self.on_close: Callable[[], None] = lambda: None
        self.transport: Any = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._fault: NodeFault | None = None

    def start(self) -> None:
        """Called when the connection is open."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Called when bytes arrive."""

    def stop(self) -> None:
        """Called when the connection has ended."""

    def abort(self) -> None:
        """End the connection with a reset, as a crash does. Data in transit is lost."""
        if self.transport is None:  # not open yet; `EndpointListener` checks again once it is
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # the client closed first
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def answer_request(self, path: str, request: bytes, faults: tuple[NodeFault, ...]) -> Message:
        """The view's answer as a message. Any other failure is raised as RpcStatusError too."""
        try:
            return self.view.answer(path, request, faults)
        except ForecastdError as error:
            raise RpcStatusError("UNAVAILABLE", str(error)) from error
        except DecodeError as error:
            log.debug("unreadable request: %r", error)
            raise RpcStatusError("INVALID_ARGUMENT", "the request is not readable") from error

    # Callbacks of asyncio

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
