"""gRPC over HTTP/2 on one connection, able to misbehave: what travels is decided frame by frame, on the h2 library.

A gRPC server library cannot cut an answer in half or send a web page, and a worker must survive both. Without faults this
is a plain unary gRPC server. One asyncio loop, one task a request.
"""

from __future__ import annotations

import asyncio
import logging
import string
import struct
from collections.abc import Callable
from urllib.parse import quote

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    Event,
    RemoteSettingsChanged,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import H2Error

from forecastd.localnet.caller import GARBAGE, HUGE, MOMENT, PAGE, Caller
from forecastd.localnet.faults import Fault, Level
from forecastd.localnet.service import Declined
from forecastd.localnet.view import NeverAnswered, View

MOST_REQUEST = 4 * 2**20
_CODES = {
    "OK": 0, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "NOT_FOUND": 5, "RESOURCE_EXHAUSTED": 8, "UNIMPLEMENTED": 12,
    "INTERNAL": 13, "UNAVAILABLE": 14, "UNAUTHENTICATED": 16,
}  # fmt: skip
_PLAIN = " " + "".join(set(string.punctuation) - {"%"})

log = logging.getLogger(__name__)


class GrpcConnection(Caller):
    """One caller's connection."""

    def __init__(self, view: View, served: Callable[[], None]) -> None:
        super().__init__(view, served)
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Event()

    def begin(self) -> None:
        self._http.initiate_connection()
        self._flush()

    def receive(self, data: bytes) -> None:
        try:
            events = self._http.receive_data(data)
        except H2Error as error:
            log.debug("not HTTP/2: %r", error)
            self._flush()
            self.transport.close()
            return
        for event in events:
            self._take(event)
        self._flush()

    def end(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    # HTTP/2's side

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._requests[event.stream_id] = ({str(name): str(value) for name, value in event.headers}, bytearray())
        elif isinstance(event, DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            if event.stream_id in self._requests:
                self._requests[event.stream_id][1].extend(event.data)
                if len(self._requests[event.stream_id][1]) > MOST_REQUEST:
                    del self._requests[event.stream_id]
                    self._http.reset_stream(event.stream_id)
        elif isinstance(event, StreamEnded) and event.stream_id in self._requests:
            headers, body = self._requests.pop(event.stream_id)
            task = asyncio.get_running_loop().create_task(self._serve(event.stream_id, headers, bytes(body)))
            self._tasks[event.stream_id] = task
            task.add_done_callback(lambda _: self._tasks.pop(event.stream_id, None))
        elif isinstance(event, StreamReset):
            self._requests.pop(event.stream_id, None)
            if event.stream_id in self._tasks:
                self._tasks[event.stream_id].cancel()
        elif isinstance(event, WindowUpdated | RemoteSettingsChanged):
            self._room.set()
        elif isinstance(event, ConnectionTerminated):
            self.transport.close()

    async def _serve(self, stream: int, headers: dict[str, str], body: bytes) -> None:
        try:
            if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith("application/grpc"):
                self._head(stream, {":status": "415"}, end=True)
                return
            path = headers.get(":path", "")
            await self._respond(stream, path, body, self.view.on_request(path))
        except (H2Error, ConnectionError) as error:
            log.debug("the caller went away: %r", error)

    async def _respond(self, stream: int, path: str, body: bytes, struck: tuple[Fault, ...]) -> None:
        wire = {fault.name: fault for fault in struck if fault.kind.level is Level.WIRE}
        if "slow" in wire:
            await asyncio.sleep(wire["slow"].number)
        if "hang" in wire:
            return
        if "flapping" in wire:
            self.cut()
        elif "goaway" in wire:
            self._http.close_connection()
            self._flush()
            self.transport.close()
        elif "http-429" in wire:
            self._head(stream, {":status": "429", "retry-after": "1", "content-type": "text/plain"}, end=True)
        elif "http-502" in wire or "html" in wire:
            self._head(stream, {":status": "502" if "http-502" in wire else "200", "content-type": "text/html"})
            await self._data(stream, PAGE, end=True)
        else:
            await self._answer(stream, path, body, struck, wire)

    async def _answer(
        self, stream: int, path: str, body: bytes, struck: tuple[Fault, ...], wire: dict[str, Fault]
    ) -> None:
        try:
            reply = self._ask(path, body, struck)
        except NeverAnswered:
            self.served()
            return
        except Declined as no:
            self._status(stream, no.status, no.details, begun=False)
            self.served()
            return
        await self._reply(stream, reply, wire)
        self.served()

    def _ask(self, path: str, body: bytes, struck: tuple[Fault, ...]) -> bytes:
        """The answer's bytes. Raises Declined and NeverAnswered as the view does."""
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise Declined("INVALID_ARGUMENT", "a request is one message, not compressed")
        return bytes(self.ask(path, body[5:], struck))

    async def _reply(self, stream: int, reply: bytes, wire: dict[str, Fault]) -> None:
        """Send an answer, damaged as the faults say."""
        if "garbage" in wire:
            reply = GARBAGE
        if "blank" in wire:
            reply = b""
        framed = _framed(reply)
        self._head(stream, {":status": "200", "content-type": "application/grpc+proto"})
        if "huge" in wire:
            await self._data(stream, struct.pack(">BI", 0, HUGE))
            for _ in range(HUGE // 2**16):
                await self._data(stream, bytes(2**16))
        elif "disconnect" in wire:
            await self._data(stream, framed[: max(1, len(framed) // 2)])
            self.cut()
            return
        elif "truncated" in wire:
            await self._data(stream, framed[: max(1, len(framed) // 2)])
        elif "drip" in wire:
            for at in range(len(framed)):
                await self._data(stream, framed[at : at + 1])
                await asyncio.sleep(wire["drip"].number)
        elif "empty" not in wire:
            await self._data(stream, framed)
            if "duplicate" in wire:
                await asyncio.sleep(MOMENT)
                await self._data(stream, framed)
        self._status(stream, "OK", "", begun=True)

    def _status(self, stream: int, status: str, details: str, *, begun: bool) -> None:
        """End a stream with its status, after an answer or in its place."""
        fields = {} if begun else {":status": "200", "content-type": "application/grpc+proto"}
        fields["grpc-status"] = str(_CODES.get(status, 2))
        if details:
            fields["grpc-message"] = quote(details, safe=_PLAIN)
        self._head(stream, fields, end=True)

    def _head(self, stream: int, fields: dict[str, str], *, end: bool = False) -> None:
        self._http.send_headers(stream, list(fields.items()), end_stream=end)
        self._flush()

    async def _data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a stream's data as the caller makes room for it."""
        while True:
            await self.writable.wait()
            room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if room <= 0 and data:
                self._room.clear()
                await self._room.wait()
                continue
            piece, data = data[:room], data[room:]
            self._http.send_data(stream, piece, end_stream=end and not data)
            self._flush()
            if not data:
                return

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)


def _framed(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message
