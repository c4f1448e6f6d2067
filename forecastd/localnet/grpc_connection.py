"""gRPC over HTTP/2 on one connection, frame by frame with the h2 library, so that faults can damage the traffic.

A gRPC server library cannot send half an answer or a web page, and a worker must survive both. Without faults this is a
plain unary gRPC server. All connections share one asyncio loop, with one task per request.
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

from forecastd.localnet.connection import DUPLICATE_DELAY_SECONDS, GARBAGE, HTML_PAGE, HUGE_BYTES, EndpointConnection
from forecastd.localnet.endpoint_view import EndpointView, NoResponse
from forecastd.localnet.faults import FaultLevel, NodeFault
from forecastd.localnet.service import RpcStatusError

MAX_REQUEST_BYTES = 4 * 2**20
_STATUS_CODES = {
    "OK": 0, "UNKNOWN": 2, "INVALID_ARGUMENT": 3, "NOT_FOUND": 5, "RESOURCE_EXHAUSTED": 8, "UNIMPLEMENTED": 12,
    "INTERNAL": 13, "UNAVAILABLE": 14, "UNAUTHENTICATED": 16,
}  # fmt: skip
_UNQUOTED_CHARS = " " + "".join(set(string.punctuation) - {"%"})

log = logging.getLogger(__name__)


class GrpcConnection(EndpointConnection):
    """One client connection."""

    def __init__(self, view: EndpointView, on_response: Callable[[], None]) -> None:
        super().__init__(view, on_response)
        self._http = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self._requests: dict[int, tuple[dict[str, str], bytearray]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._window_updated = asyncio.Event()

    def start(self) -> None:
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
            self._handle_event(event)
        self._flush()

    def stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()

    # HTTP/2

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._requests[event.stream_id] = ({str(name): str(value) for name, value in event.headers}, bytearray())
        elif isinstance(event, DataReceived):
            self._http.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            if event.stream_id in self._requests:
                self._requests[event.stream_id][1].extend(event.data)
                if len(self._requests[event.stream_id][1]) > MAX_REQUEST_BYTES:
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
            self._window_updated.set()
        elif isinstance(event, ConnectionTerminated):
            self.transport.close()

    async def _serve(self, stream: int, headers: dict[str, str], body: bytes) -> None:
        try:
            if headers.get(":method") != "POST" or not headers.get("content-type", "").startswith("application/grpc"):
                self._send_headers(stream, {":status": "415"}, end=True)
                return
            path = headers.get(":path", "")
            await self._respond(stream, path, body, self.view.on_request(path))
        except (H2Error, ConnectionError) as error:
            log.debug("the client disconnected: %r", error)

    async def _respond(self, stream: int, path: str, body: bytes, faults: tuple[NodeFault, ...]) -> None:
        wire_faults = {fault.name: fault for fault in faults if fault.kind.level is FaultLevel.WIRE}
        if "slow" in wire_faults:
            await asyncio.sleep(wire_faults["slow"].number)
        if "hang" in wire_faults:
            return
        if "flapping" in wire_faults:
            self.abort()
        elif "goaway" in wire_faults:
            self._http.close_connection()
            self._flush()
            self.transport.close()
        elif "http-429" in wire_faults:
            self._send_headers(stream, {":status": "429", "retry-after": "1", "content-type": "text/plain"}, end=True)
        elif "http-502" in wire_faults or "html" in wire_faults:
            self._send_headers(
                stream, {":status": "502" if "http-502" in wire_faults else "200", "content-type": "text/html"}
            )
            await self._send_data(stream, HTML_PAGE, end=True)
        else:
            await self._answer(stream, path, body, faults, wire_faults)

    async def _answer(
        self, stream: int, path: str, body: bytes, faults: tuple[NodeFault, ...], wire_faults: dict[str, NodeFault]
    ) -> None:
        try:
            reply = self._response_bytes(path, body, faults)
        except NoResponse:
            self.on_response()
            return
        except RpcStatusError as error:
            self._send_status(stream, error.status, error.details, headers_sent=False)
            self.on_response()
            return
        await self._send_response(stream, reply, wire_faults)
        self.on_response()

    def _response_bytes(self, path: str, body: bytes, faults: tuple[NodeFault, ...]) -> bytes:
        """The bytes of the answer. Raises RpcStatusError and NoResponse as the view does."""
        if len(body) < 5 or body[0] or int.from_bytes(body[1:5], "big") != len(body) - 5:
            raise RpcStatusError("INVALID_ARGUMENT", "a request must be one uncompressed message")
        return bytes(self.answer_request(path, body[5:], faults).SerializeToString())

    async def _send_response(self, stream: int, reply: bytes, wire_faults: dict[str, NodeFault]) -> None:
        """Send an answer, damaged by the faults."""
        if "garbage" in wire_faults:
            reply = GARBAGE
        if "blank" in wire_faults:
            reply = b""
        frame = _frame(reply)
        self._send_headers(stream, {":status": "200", "content-type": "application/grpc+proto"})
        if "huge" in wire_faults:
            await self._send_data(stream, struct.pack(">BI", 0, HUGE_BYTES))
            for _ in range(HUGE_BYTES // 2**16):
                await self._send_data(stream, bytes(2**16))
        elif "disconnect" in wire_faults:
            await self._send_data(stream, frame[: max(1, len(frame) // 2)])
            self.abort()
            return
        elif "truncated" in wire_faults:
            await self._send_data(stream, frame[: max(1, len(frame) // 2)])
        elif "drip" in wire_faults:
            for index in range(len(frame)):
                await self._send_data(stream, frame[index : index + 1])
                await asyncio.sleep(wire_faults["drip"].number)
        elif "empty" not in wire_faults:
            await self._send_data(stream, frame)
            if "duplicate" in wire_faults:
                await asyncio.sleep(DUPLICATE_DELAY_SECONDS)
                await self._send_data(stream, frame)
        self._send_status(stream, "OK", "", headers_sent=True)

    def _send_status(self, stream: int, status: str, details: str, *, headers_sent: bool) -> None:
        """End a stream with its status, after an answer or instead of one."""
        fields = {} if headers_sent else {":status": "200", "content-type": "application/grpc+proto"}
        fields["grpc-status"] = str(_STATUS_CODES.get(status, 2))
        if details:
            fields["grpc-message"] = quote(details, safe=_UNQUOTED_CHARS)
        self._send_headers(stream, fields, end=True)

    def _send_headers(self, stream: int, fields: dict[str, str], *, end: bool = False) -> None:
        self._http.send_headers(stream, list(fields.items()), end_stream=end)
        self._flush()

    async def _send_data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send data of a stream as fast as the client's flow control allows."""
        while True:
            await self.writable.wait()
            window = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if window <= 0 and data:
                self._window_updated.clear()
                await self._window_updated.wait()
                continue
            chunk, data = data[:window], data[window:]
            self._http.send_data(stream, chunk, end_stream=end and not data)
            self._flush()
            if not data:
                return

    def _flush(self) -> None:
        data = self._http.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)


def _frame(message: bytes) -> bytes:
    return struct.pack(">BI", 0, len(message)) + message
