"""Timeouts for slow clients.

uvicorn alone waits forever for the first byte of a request, for the rest of its headers, and for a client that does
not read its response; a few such connections would use all slots.

Invariant: this depends on names of uvicorn's internal HTTP/1.1 protocol; a test with slow clients guards an upgrade.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
HEADER_TIMEOUT_SECONDS = 10.0  # from a new connection or the first byte of a request to the end of its headers
READER_TIMEOUT_SECONDS = 30.0  # without progress of a client that reads its response
MAX_DISCARDED_BYTES = 1 << 26  # of a refused body that is sent anyway; the client can read the refusal after it


def _error_body(error: str, fix: str) -> bytes:
    return json.dumps({"error": error, "fix": fix}).encode()


_TOO_MANY_CONNECTIONS = _error_body("Too many open connections.", "Retry in a few seconds, and reuse connections.")
_NOT_HTTP = _error_body("Not an HTTP request.", "Send HTTP/1.1 with at most 32 kB of headers.")


class TimeoutProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol with timeouts and a limit on connections."""

    _header_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _discarded_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the base
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            length = len(_TOO_MANY_CONNECTIONS)
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {length}"
            transport.write(f"{head}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n".encode() + _TOO_MANY_CONNECTIONS)
            transport.close()
            return
        self._header_timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel(self._header_timer)
        self._cancel(self._reader_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle a request, a part of one, or the rest of a refused body."""
        if self._is_idle and self._header_timer is None:
            self._header_timer = self.loop.call_later(HEADER_TIMEOUT_SECONDS, self.transport.abort)
        super().data_received(data)
        if not self._is_idle:
            self._cancel(self._header_timer)
            self._header_timer, self._discarded_bytes = None, 0
            return
        self._discarded_bytes += len(data)
        if self._discarded_bytes > MAX_DISCARDED_BYTES:
            self.transport.abort()

    @property
    def _is_idle(self) -> bool:
        """Whether no request is in progress."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._start_reader_timer()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_reader_timer()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel(self._reader_timer)
        self._reader_timer = None

    def _start_reader_timer(self) -> None:
        """Close the connection if the client reads nothing of the pending response for `READER_TIMEOUT_SECONDS`."""
        self._cancel(self._reader_timer)
        self._reader_timer = None
        if unread_bytes := self.transport.get_write_buffer_size():
            self._reader_timer = self.loop.call_later(READER_TIMEOUT_SECONDS, self._check_reader, unread_bytes)

    def _check_reader(self, unread_bytes: int) -> None:
        if self.transport.get_write_buffer_size() >= unread_bytes:
            self.transport.abort()
        else:
            self._start_reader_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP in the shape of all errors."""
        del msg
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(_NOT_HTTP))), ("connection", "close"),
        ]  # fmt: skip
        events: list[Any] = [
            h11.Response(status_code=400, headers=headers),
            h11.Data(data=_NOT_HTTP),
            h11.EndOfMessage(),
        ]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @staticmethod
    def _cancel(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
