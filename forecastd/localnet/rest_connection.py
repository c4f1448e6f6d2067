"""REST over HTTP/1.1 on one connection. `rest` makes the answers; this module sends them, damaged by the faults.

Requests on a connection are answered one after the other, as HTTP/1.1 requires.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from forecastd.localnet.connection import DUPLICATE_DELAY_SECONDS, GARBAGE, HTML_PAGE, HUGE_BYTES, EndpointConnection
from forecastd.localnet.endpoint_view import EndpointView, NoResponse
from forecastd.localnet.faults import FaultLevel, NodeFault
from forecastd.localnet.rest import (
    MAX_HEADER_BYTES,
    MalformedRequest,
    answer_request,
    error_body,
    error_response,
    find_route,
    read_head,
)
from forecastd.localnet.service import RpcStatusError

_JSON, _HTML = "application/json", "text/html"

log = logging.getLogger(__name__)


class RestConnection(EndpointConnection):
    """One client connection."""

    def __init__(self, view: EndpointView, on_response: Callable[[], None]) -> None:
        super().__init__(view, on_response)
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None

    def receive(self, data: bytes) -> None:
        self._buffer.extend(data)
        if self._task is None:
            self._start_next_request()

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _start_next_request(self) -> None:
        """Start the next request once it has arrived completely."""
        self._task = None
        if self.transport.is_closing():
            return
        head, separator, rest = bytes(self._buffer).partition(b"\r\n\r\n")
        if not separator and len(head) <= MAX_HEADER_BYTES:
            return
        try:
            verb, target, length = read_head(head + separator)
        except MalformedRequest as error:
            self._send(400, json.dumps(error_body("INVALID_ARGUMENT", str(error))).encode())
            self.transport.close()
            return
        if len(rest) < length:
            return
        self._buffer = bytearray(rest[length:])
        self._task = asyncio.get_running_loop().create_task(self._serve(verb, target, rest[:length]))
        self._task.add_done_callback(lambda task: None if task.cancelled() else self._start_next_request())

    async def _serve(self, verb: str, target: str, body: bytes) -> None:
        try:
            method, fields = find_route(verb, target)
        except RpcStatusError as error:
            status, error_json = error_response(error)
            self._send(status, json.dumps(error_json).encode())
            return
        faults = self.view.on_request(method)
        wire_faults = {fault.name: fault for fault in faults if fault.kind.level is FaultLevel.WIRE}
        if "slow" in wire_faults:
            await asyncio.sleep(wire_faults["slow"].number)
        if "hang" in wire_faults:
            await asyncio.Event().wait()
        if "flapping" in wire_faults:
            self.abort()
        elif "goaway" in wire_faults:
            self.transport.close()
        elif "http-429" in wire_faults:
            self._send(429, b"", "text/plain", {"Retry-After": "1"})
        elif "http-502" in wire_faults or "html" in wire_faults:
            self._send(502 if "http-502" in wire_faults else 200, HTML_PAGE, _HTML)
        else:
            await self._answer(method, fields, body, faults, wire_faults)
            self.on_response()

    async def _answer(
        self,
        method: str,
        fields: dict[str, Any],
        body: bytes,
        faults: tuple[NodeFault, ...],
        wire_faults: dict[str, NodeFault],
    ) -> None:
        try:
            response = answer_request(
                lambda path, request: self.answer_request(path, request, faults), method, fields, body
            )
        except NoResponse:
            self.on_response()
            await asyncio.Event().wait()
            return
        except RpcStatusError as error:
            status, response = error_response(error)
            self._send(status, json.dumps(response).encode())
            return
        await self._send_response(json.dumps(response).encode(), wire_faults)

    async def _send_response(self, reply: bytes, wire_faults: dict[str, NodeFault]) -> None:
        """Send an answer, damaged by the faults."""
        if "garbage" in wire_faults:
            reply = GARBAGE
        if "blank" in wire_faults:
            reply = b"{}"
        if "huge" in wire_faults:
            self._send_head(200, HUGE_BYTES)
            for _ in range(HUGE_BYTES // 2**16):
                await self._write(b" " * 2**16)
        elif "disconnect" in wire_faults:
            self._send_head(200, len(reply))
            await self._write(reply[: len(reply) // 2])
            await asyncio.sleep(DUPLICATE_DELAY_SECONDS)
            self.abort()
        elif "truncated" in wire_faults:
            self._send(200, reply[: len(reply) // 2])
        elif "drip" in wire_faults:
            self._send_head(200, len(reply))
            for index in range(len(reply)):
                await self._write(reply[index : index + 1])
                await asyncio.sleep(wire_faults["drip"].number)
        elif "empty" in wire_faults:
            self._send(200, b"")
        else:
            self._send(200, reply)
            if "duplicate" in wire_faults:
                await asyncio.sleep(DUPLICATE_DELAY_SECONDS)
                self._send(200, reply)

    def _send(
        self, status: int, body: bytes, content_type: str = _JSON, extra_headers: dict[str, str] | None = None
    ) -> None:
        self._send_head(status, len(body), content_type, extra_headers)
        if not self.transport.is_closing():
            self.transport.write(body)

    def _send_head(
        self, status: int, length: int, content_type: str = _JSON, extra_headers: dict[str, str] | None = None
    ) -> None:
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
        fields = {"Content-Type": content_type, "Content-Length": str(length), **(extra_headers or {})}
        lines = [f"HTTP/1.1 {status} {phrase}", *(f"{name}: {value}" for name, value in fields.items())]
        if not self.transport.is_closing():
            self.transport.write("\r\n".join([*lines, "", ""]).encode())

    async def _write(self, data: bytes) -> None:
        """Send data as fast as the client reads it."""
        await self.writable.wait()
        if not self.transport.is_closing():
            self.transport.write(data)
