"""The protocol between parent and child: frames of a JSON header and raw arrays over one socketpair.

A frame is two little-endian uint32 (header length, body length), the header, and the body. Every header carries the launch
id, which separates messages of an earlier child. The parent reads with a `MessageDecoder`, which never blocks.

Invariant: nothing in a frame is evaluated or unpickled, and its size is bounded.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PREFIX = struct.Struct("<II")
MAX_HEADER = 1 << 20
MAX_BODY = 1 << 28
_MAX_DIMENSIONS = 8
_ARRAY_TYPES: dict[str, np.dtype[Any]] = {  # by type code
    "f": np.dtype("<f8"),
    "i": np.dtype("<i8"),
    "s": np.dtype("<f4"),
    "b": np.dtype("u1"),
}


class ChannelClosed(Exception):
    """The other side closed the channel."""


class InvalidMessage(Exception):
    """The received bytes are not a valid message."""


@dataclass(frozen=True, eq=False)
class ChildMessage:
    """One message. `kind` to the parent: heartbeat, progress, ready, result, error; to the child: load, run, check,
    stop.

    `arrays`: float64, float32, int64 or uint8.
    """

    kind: str
    launch_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """A field that must be a finite number. Raises InvalidMessage."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidMessage(f"{self.kind[:40]}: {name} has type {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            raise InvalidMessage(f"{self.kind[:40]}: {name} is {number}")
        return number

    def text(self, name: str) -> str:
        """A text field; empty when it is absent. Raises InvalidMessage."""
        value = self.fields.get(name, "")
        if not isinstance(value, str):
            raise InvalidMessage(f"{self.kind[:40]}: {name} has type {type(value).__name__}")
        return value


def printable(text: str) -> str:
    """A child's text on one line, without control characters for a terminal or surrogates that no file can hold."""
    return "".join(character if character.isprintable() else "?" for character in text)


def frame_buffers(message: ChildMessage) -> list[memoryview]:
    """The frame of a message: prefix and header, then the arrays' own memory, which must not change until it is sent."""
    type_codes = {name: _type_code(array) for name, array in message.arrays.items()}
    parts = {
        name: np.asarray(message.arrays[name], dtype=_ARRAY_TYPES[type_code], order="C")
        for name, type_code in type_codes.items()
    }
    array_specs = {name: [type_codes[name], *part.shape] for name, part in parts.items()}
    header = {"kind": message.kind, "launch": message.launch_id, "fields": message.fields, "arrays": array_specs}
    head = json.dumps(header).encode()
    size = sum(part.nbytes for part in parts.values())
    bodies = [part.reshape(-1).view(np.uint8).data for part in parts.values() if part.size]
    return [memoryview(_PREFIX.pack(len(head), size) + head), *bodies]


def encode(message: ChildMessage) -> bytes:
    """The frame of a message as one bytes object."""
    return b"".join(frame_buffers(message))


def _type_code(array: NDArray[Any]) -> str:
    """The type code that an array is sent as: other integers as int64, other numbers as float64."""
    return next(
        (type_code for type_code, dtype in _ARRAY_TYPES.items() if array.dtype == dtype),
        "i" if array.dtype.kind == "i" else "f",
    )


class MessageDecoder:
    """Assembles messages from chunks of any size. `error`: why the stream became invalid; nothing is decoded after that."""

    def __init__(self) -> None:
        self.error = ""
        self._header = bytearray()  # prefix and header of the current frame
        self._body: NDArray[np.uint8] | None = None  # its body, once the header is complete
        self._received = 0

    def feed(self, data: bytes) -> list[ChildMessage]:
        """The messages that are complete after this chunk."""
        messages: list[ChildMessage] = []
        rest = memoryview(data)
        try:
            while rest and not self.error:
                rest = self._append(rest)
                if self._body is not None and self._received == len(self._body):
                    head, body = bytes(self._header[_PREFIX.size :]), self._body
                    self._header, self._body = bytearray(), None
                    messages.append(_parse_message(head, body))
        except InvalidMessage as error:
            self.error = str(error)
            self._header, self._body = bytearray(), None
        return messages

    def _append(self, rest: memoryview) -> memoryview:
        """Add the current frame's part of `rest`; return what remains."""
        if self._body is None:
            rest = self._fill_header(rest, _PREFIX.size)
            if len(self._header) < _PREFIX.size:
                return rest
            head, body = _parse_sizes(self._header[: _PREFIX.size])
            rest = self._fill_header(rest, _PREFIX.size + head)
            if len(self._header) < _PREFIX.size + head:
                return rest
            self._body, self._received = _allocate(body), 0
        chunk = rest[: len(self._body) - self._received]
        self._body[self._received : self._received + len(chunk)] = chunk
        self._received += len(chunk)
        return rest[len(chunk) :]

    def _fill_header(self, rest: memoryview, size: int) -> memoryview:
        """Fill prefix and header up to `size` bytes; return what remains."""
        missing = max(0, size - len(self._header))
        self._header += rest[:missing]
        return rest[missing:]


def send(channel: socket.socket, message: ChildMessage) -> None:
    """Send one message. Raises ChannelClosed."""
    try:
        for part in frame_buffers(message):
            channel.sendall(part)
    except OSError as error:
        raise ChannelClosed from error


def receive(channel: socket.socket) -> ChildMessage:
    """Wait for one message.

    Raises:
        ChannelClosed: the other side closed the channel.
        InvalidMessage: the received bytes are not a message.
    """
    head, body = _parse_sizes(_receive_exactly(channel, _PREFIX.size).tobytes())
    return _parse_message(_receive_exactly(channel, head).tobytes(), _receive_exactly(channel, body))


def _allocate(size: int) -> NDArray[np.uint8]:
    try:
        return np.empty(size, dtype=np.uint8)  # the system provides the pages as they are filled
    except MemoryError:
        raise InvalidMessage(f"not enough memory for a message of {size} bytes") from None


def _parse_sizes(prefix: bytes | bytearray) -> tuple[int, int]:
    head, body = _PREFIX.unpack(prefix)
    if head > MAX_HEADER or body > MAX_BODY:
        raise InvalidMessage(f"a frame of {head} + {body} bytes")
    return head, body


def _parse_message(head: bytes, body: NDArray[np.uint8]) -> ChildMessage:
    try:
        header = json.loads(head)
        kind, launch_id, fields, array_specs = (header[name] for name in ("kind", "launch", "fields", "arrays"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidMessage(str(error)[:200]) from error
    if not (
        isinstance(kind, str)
        and isinstance(launch_id, str)
        and isinstance(fields, dict)
        and isinstance(array_specs, dict)
    ):
        raise InvalidMessage("a header field has the wrong type")
    body.flags.writeable = False
    return ChildMessage(kind, launch_id, fields, _parse_arrays(array_specs, body))


def _parse_arrays(array_specs: dict[str, Any], body: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The arrays of a body, as its header describes them."""
    arrays, offset = {}, 0
    for name, spec in array_specs.items():
        if (
            not isinstance(spec, list)
            or spec[:1] not in [[type_code] for type_code in _ARRAY_TYPES]
            or len(spec) > 1 + _MAX_DIMENSIONS
        ):
            raise InvalidMessage("an array has an unknown type or too many dimensions")
        type_code, shape = spec[0], spec[1:]
        if any(type(dimension) is not int or not 0 <= dimension <= MAX_BODY for dimension in shape):
            raise InvalidMessage("an array has an invalid shape")
        count = math.prod(shape)
        if _ARRAY_TYPES[type_code].itemsize * count > len(body) - offset:
            raise InvalidMessage("an array is longer than the body")
        try:
            flat = np.frombuffer(body, dtype=_ARRAY_TYPES[type_code], count=count, offset=offset)
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # empty, but with a dimension that is too large
            raise InvalidMessage(str(error)[:200]) from error
        offset += flat.nbytes
    if offset != len(body):
        raise InvalidMessage("the body is longer than its arrays")
    return arrays


def _receive_exactly(channel: socket.socket, size: int) -> NDArray[np.uint8]:
    buffer = np.empty(size, dtype=np.uint8)
    received = 0
    while received < size:
        try:
            count = channel.recv_into(buffer[received:].data)
        except OSError as error:
            raise ChannelClosed from error
        if not count:
            raise ChannelClosed
        received += count
    return buffer
