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
from collections.abc import Iterator
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
        self._frames = _read_frames()
        self._unfilled = memoryview(b"")  # the part of the current buffer that is still to be received

    def feed(self, data: bytes) -> list[ChildMessage]:
        """The messages that are complete after this chunk."""
        messages: list[ChildMessage] = []
        rest = memoryview(b"" if self.error else data)
        try:
            while rest or not (self._unfilled or self.error):
                if self._unfilled:
                    size = min(len(rest), len(self._unfilled))
                    self._unfilled[:size] = rest[:size]
                    self._unfilled, rest = self._unfilled[size:], rest[size:]
                elif isinstance(step := next(self._frames), ChildMessage):
                    messages.append(step)
                else:
                    self._unfilled = step
        except InvalidMessage as error:
            self.error = str(error)
        return messages


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
    frames = _read_frames()
    while not isinstance(step := next(frames), ChildMessage):
        while step:
            try:
                count = channel.recv_into(step)
            except OSError as error:
                raise ChannelClosed from error
            if not count:
                raise ChannelClosed
            step = step[count:]
    return step


def _read_frames() -> Iterator[memoryview | ChildMessage]:
    """Yields the buffers of each frame, each to be filled before the next step, and then its message.

    Raises InvalidMessage.
    """
    while True:
        prefix = bytearray(_PREFIX.size)
        yield memoryview(prefix)
        head_size, body_size = _PREFIX.unpack(prefix)
        if head_size > MAX_HEADER or body_size > MAX_BODY:
            raise InvalidMessage(f"a frame of {head_size} + {body_size} bytes")
        head = bytearray(head_size)
        yield memoryview(head)
        try:
            body = np.empty(body_size, dtype=np.uint8)  # the system provides the pages as they are filled
        except MemoryError:
            raise InvalidMessage(f"not enough memory for a message of {body_size} bytes") from None
        yield body.data
        yield _parse_message(head, body)


def _parse_message(head: bytearray, body: NDArray[np.uint8]) -> ChildMessage:
    try:
        header = json.loads(head)
        kind, launch_id, fields, array_specs = (header[name] for name in ("kind", "launch", "fields", "arrays"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidMessage(str(error)[:200]) from error
    is_text = isinstance(kind, str) and isinstance(launch_id, str)
    if not (is_text and isinstance(fields, dict) and isinstance(array_specs, dict)):
        raise InvalidMessage("a header field has the wrong type")
    body.flags.writeable = False
    return ChildMessage(kind, launch_id, fields, _parse_arrays(array_specs, body))


def _parse_arrays(array_specs: dict[str, Any], body: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The arrays of a body, as its header describes them."""
    arrays, offset = {}, 0
    for name, spec in array_specs.items():
        known = isinstance(spec, list) and spec and isinstance(spec[0], str) and spec[0] in _ARRAY_TYPES
        if not known or len(spec) > 1 + _MAX_DIMENSIONS:
            raise InvalidMessage("an array has an unknown type or too many dimensions")
        dtype, shape = _ARRAY_TYPES[spec[0]], spec[1:]
        if any(type(dimension) is not int or not 0 <= dimension <= MAX_BODY for dimension in shape):
            raise InvalidMessage("an array has an invalid shape")
        count = math.prod(shape)
        if dtype.itemsize * count > len(body) - offset:
            raise InvalidMessage("an array is longer than the body")
        try:
            arrays[name] = np.frombuffer(body, dtype, count, offset).reshape(shape)
        except ValueError as error:  # empty, but with a dimension that is too large
            raise InvalidMessage(str(error)[:200]) from error
        offset += dtype.itemsize * count
    if offset != len(body):
        raise InvalidMessage("the body is longer than its arrays")
    return arrays
