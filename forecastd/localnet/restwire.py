"""REST over HTTP/1.1 on one connection, able to misbehave: the answers are `rest`'s, how they travel is decided here.

Requests on a connection are answered one after the other, as HTTP/1.1 has it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from forecastd.localnet.caller import GARBAGE, HUGE, MOMENT, PAGE, Caller
from forecastd.localnet.faults import Fault, Level
from forecastd.localnet.rest import MOST_HEADERS, Malformed, error_of, read_head, refusal, respond, route_of
from forecastd.localnet.service import Declined
from forecastd.localnet.view import NeverAnswered, View

_JSON, _HTML = "application/json", "text/html"

log = logging.getLogger(__name__)


class RestConnection(Caller):
    """One caller's connection."""

    def __init__(self, view: View, served: Callable[[], None]) -> None:
        super().__init__(view, served)
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None

    def receive(self, data: bytes) -> None:
        self._buffer.extend(data)
        if self._task is None:
            self._next()

    def end(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _next(self) -> None:
        """Begin with the next request, once it is there as a whole."""
        self._task = None
        if self.transport.is_closing():
            return
        head, separator, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not separator and len(head) <= MOST_HEADERS:
            return
        try:
            verb, target, length = read_head(head + separator)
        except Malformed as error:
            self._send(400, json.dumps(error_of("INVALID_ARGUMENT", str(error))).encode())
            self.transport.close()
            return
        if len(rest) < length:
            return
        self._buffer = bytearray(rest[length:])
        self._task = asyncio.get_running_loop().create_task(self._serve(verb, target, rest[:length]))
        self._task.add_done_callback(lambda task: None if task.cancelled() else self._next())

    async def _serve(self, verb: str, target: str, body: bytes) -> None:
        try:
            method, fields = route_of(verb, target)
        except Declined as no:
            status, told = refusal(no)
            self._send(status, json.dumps(told).encode())
            return
        struck = self.view.on_request(method)
        wire = {fault.name: fault for fault in struck if fault.kind.level is Level.WIRE}
        if "slow" in wire:
            await asyncio.sleep(wire["slow"].number)
        if "hang" in wire:
            await asyncio.Event().wait()
        if "flapping" in wire:
            self.cut()
        elif "goaway" in wire:
            self.transport.close()
        elif "http-429" in wire:
            self._send(429, b"", "text/plain", {"Retry-After": "1"})
        elif "http-502" in wire or "html" in wire:
            self._send(502 if "http-502" in wire else 200, PAGE, _HTML)
        else:
            await self._answer(method, fields, body, struck, wire)
            self.served()

    async def _answer(
        self, method: str, fields: dict[str, Any], body: bytes, struck: tuple[Fault, ...], wire: dict[str, Fault]
    ) -> None:
        try:
            told = respond(lambda path, request: self.ask(path, request, struck), method, fields, body)
        except NeverAnswered:
            self.served()
            await asyncio.Event().wait()
            return
        except Declined as no:
            status, told = refusal(no)
            self._send(status, json.dumps(told).encode())
            return
        await self._reply(json.dumps(told).encode(), wire)

    async def _reply(self, reply: bytes, wire: dict[str, Fault]) -> None:
        """Send an answer, damaged as the faults say."""
        if "garbage" in wire:
            reply = GARBAGE
        if "blank" in wire:
            reply = b"{}"
        if "huge" in wire:
            self._head(200, HUGE)
            for _ in range(HUGE // 2**16):
                await self._write(b" " * 2**16)
        elif "disconnect" in wire:
            self._head(200, len(reply))
            await self._write(reply[: len(reply) // 2])
            await asyncio.sleep(MOMENT)
            self.cut()
        elif "truncated" in wire:
            self._send(200, reply[: len(reply) // 2])
        elif "drip" in wire:
            self._head(200, len(reply))
            for at in range(len(reply)):
                await self._write(reply[at : at + 1])
                await asyncio.sleep(wire["drip"].number)
        elif "empty" in wire:
            self._send(200, b"")
        else:
            self._send(200, reply)
            if "duplicate" in wire:
                await asyncio.sleep(MOMENT)
                self._send(200, reply)

    def _send(self, status: int, body: bytes, kind: str = _JSON, more: dict[str, str] | None = None) -> None:
        self._head(status, len(body), kind, more)
        if not self.transport.is_closing():
            self.transport.write(body)

    def _head(self, status: int, length: int, kind: str = _JSON, more: dict[str, str] | None = None) -> None:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
        fields = {"Content-Type": kind, "Content-Length": str(length), **(more or {})}
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join([*lines, "", ""]).encode())

    async def _write(self, data: bytes) -> None:
        """Send a piece as the caller makes room for it."""
        await self.writable.wait()
        if not self.transport.is_closing():
            self.transport.write(data)
