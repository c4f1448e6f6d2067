"""A connection that ends when its other end does not get on.

uvicorn alone waits for ever for the first byte of a request, for the rest of its headers, and for a reader that does not
read; a few such connections would take every place there is. The one thing to know before changing it: it leans on names
of uvicorn's own HTTP/1.1 protocol, so a test with slow clients guards an upgrade.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 512
HEADER_SECONDS = 10.0  # from a connection, or a request's first byte, to the end of its headers
READER_SECONDS = 30.0  # for a reader to take what it asked for on
LINGER_BYTES = 1 << 26  # of a body that was refused and is sent all the same, so that the refusal can be read after it


def _body(error: str, fix: str) -> bytes:
    return json.dumps({"error": error, "fix": fix}).encode()


_FULL = _body("Too many connections are open.", "Try again in a few seconds, and keep connections open.")
_BAD = _body("This is no HTTP request.", "Send HTTP/1.1, with headers of 32 kB at most.")


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, with an end to its patience."""

    _limit: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _lingered = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as the base class has it
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: {len(_FULL)}"
            transport.write(f"{head}\r\nRetry-After: 5\r\nConnection: close\r\n\r\n".encode() + _FULL)
            transport.close()
            return
        self._limit = self.loop.call_later(HEADER_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget(self._limit)
        self._forget(self._stalled)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A request, a part of one, or what is left of a body that nobody wants."""
        if self._between and self._limit is None:
            self._limit = self.loop.call_later(HEADER_SECONDS, self.transport.abort)
        super().data_received(data)
        if not self._between:
            self._forget(self._limit)
            self._limit, self._lingered = None, 0
            return
        self._lingered += len(data)
        if self._lingered > LINGER_BYTES:
            self.transport.abort()

    @property
    def _between(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reader()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forget(self._stalled)
        self._stalled = None

    def _watch_reader(self) -> None:
        """Something is written that the other end has not taken: end it when that does not change."""
        self._forget(self._stalled)
        self._stalled = None
        if left := self.transport.get_write_buffer_size():
            self._stalled = self.loop.call_later(READER_SECONDS, self._look_at_reader, left)

    def _look_at_reader(self, left: int) -> None:
        if self.transport.get_write_buffer_size() >= left:
            self.transport.abort()
        else:
            self._watch_reader()

    def send_400_response(self, msg: str) -> None:
        """Tell that what came is no HTTP, as all errors are told."""
        del msg
        headers = [
            ("content-type", "application/json"), ("content-length", str(len(_BAD))), ("connection", "close"),
        ]  # fmt: skip
        events: list[Any] = [h11.Response(status_code=400, headers=headers), h11.Data(data=_BAD), h11.EndOfMessage()]
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @staticmethod
    def _forget(timer: asyncio.TimerHandle | None) -> None:
        if timer is not None:
            timer.cancel()
