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
from forecastd.localnet.faults import Fault
from forecastd.localnet.service import Declined
from forecastd.localnet.view import View

PAGE = b"<!DOCTYPE html><html><head><title>Just a moment...</title></head><body>Checking your browser</body></html>"
GARBAGE = b"\xff" * 96
HUGE = 100 * 2**20
MOMENT = 0.05  # seconds between an answer and its repetition
_UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error)

log = logging.getLogger(__name__)


class Caller(asyncio.Protocol, ABC):
    """A connection. `served` is called after each answer, `on_end` when the connection is over."""

    def __init__(self, view: View, served: Callable[[], None]) -> None:
        self.view = view
        self.served = served
        self.on_end: Callable[[], None] = lambda: None
        self.transport: Any = None
        self.writable = asyncio.Event()
        self.writable.set()
        self._fault: Fault | None = None

    def begin(self) -> None:
        """The connection is there."""

    @abstractmethod
    def receive(self, data: bytes) -> None:
        """Bytes came."""

    def end(self) -> None:
        """The connection is over."""

    def cut(self) -> None:
        """End the connection as a crash does: with a reset, whatever was on its way."""
        if self.transport is None:  # not begun; who takes it up looks again
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with suppress(OSError):  # the caller was faster
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def ask(self, path: str, request: bytes, struck: tuple[Fault, ...]) -> Any:
        """The view's answer as a message; whatever goes wrong on the way is Declined, too."""
        try:
            return self.view.answer(path, request, struck)
        except ForecastdError as error:
            raise Declined("UNAVAILABLE", str(error)) from error
        except _UNREADABLE as error:  # what betterproto2 raises for bytes that are no message
            log.debug("unreadable request: %r", error)
            raise Declined("INVALID_ARGUMENT", "the request is not readable") from error

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._fault = self.view.on_connection()
        if self._fault is None:
            self.begin()
        elif self._fault.name == "reset":
            self.cut()

    def data_received(self, data: bytes) -> None:
        if self._fault is None:
            self.receive(data)
        elif self._fault.name == "web-server":
            head = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nContent-Length: {len(PAGE)}\r\n"
            self.transport.write(head.encode() + b"Connection: close\r\n\r\n" + PAGE)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.end()
        self.on_end()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()
