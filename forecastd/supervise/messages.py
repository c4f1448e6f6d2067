"""What parent and child say to each other: frames of a JSON header and raw arrays over one socketpair.

A frame is two little-endian uint32 (header length, body length), the header, the body. Nothing in it is ever evaluated
or unpickled, its size is bounded, and every header bears the launch id, so that a message of an earlier child is told
apart. The parent reads with a `Decoder`, which never waits: half a message costs nobody anything.
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
_MOST_SIDES = 8
_FORMS: dict[str, np.dtype[Any]] = {  # of arrays, by letter
    "f": np.dtype("<f8"),
    "i": np.dtype("<i8"),
    "s": np.dtype("<f4"),
    "b": np.dtype("u1"),
}


class ChannelClosed(Exception):
    """The other side is gone."""


class GarbledMessage(Exception):
    """What came is not a message."""


@dataclass(frozen=True, eq=False)
class Message:
    """`kind` up: alive, progress, ready, result, error; down: load, predict, fleet, check, train, stop.

    `arrays` are float64, float32, int64 or bytes.
    """

    kind: str
    launch: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)

    def number(self, name: str) -> float:
        """A field that must be a finite number. Raises GarbledMessage."""
        value = self.fields.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise GarbledMessage(f"{self.kind[:40]} whose {name} is of type {type(value).__name__}")
        try:
            number = float(value)
        except OverflowError:  # an integer of hundreds of digits
            number = math.inf
        if not math.isfinite(number):
            raise GarbledMessage(f"{self.kind[:40]} whose {name} is {number}")
        return number

    def text(self, name: str) -> str:
        """A field that is a text; empty when it is absent. Raises GarbledMessage."""
        value = self.fields.get(name, "")
        if not isinstance(value, str):
            raise GarbledMessage(f"{self.kind[:40]} whose {name} is of type {type(value).__name__}")
        return value


def printable(text: str) -> str:
    """What a child wrote, on one line, without what would command a terminal or what no file could take."""
    return "".join(one if one.isprintable() else "?" for one in text)


def encode(message: Message) -> bytes:
    """The frame of a message."""
    letters = {name: _letter(array) for name, array in message.arrays.items()}
    parts = {name: np.asarray(message.arrays[name], dtype=_FORMS[one], order="C") for name, one in letters.items()}
    told = {name: [letters[name], *part.shape] for name, part in parts.items()}
    header = {"kind": message.kind, "launch": message.launch, "fields": message.fields, "arrays": told}
    head = json.dumps(header).encode()
    size = sum(part.nbytes for part in parts.values())
    return b"".join([_PREFIX.pack(len(head), size), head, *(part.data for part in parts.values() if part.size)])


def _letter(array: NDArray[Any]) -> str:
    """How an array travels: numbers of another type as float64."""
    return next(
        (letter for letter, form in _FORMS.items() if array.dtype == form), "i" if array.dtype.kind == "i" else "f"
    )


class Decoder:
    """Puts frames together from whatever pieces come. `garbled` tells what was no message; nothing after it is one."""

    def __init__(self) -> None:
        self.garbled = ""
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now."""
        found: list[Message] = []
        if self.garbled:
            return found
        self._pending += data
        try:
            while len(self._pending) >= _PREFIX.size:
                head, body = _sizes(bytes(self._pending[: _PREFIX.size]))
                end = _PREFIX.size + head + body
                if len(self._pending) < end:
                    break
                with memoryview(self._pending) as pending:
                    parts = bytes(pending[_PREFIX.size : end - body]), bytes(pending[end - body : end])
                del self._pending[:end]
                found.append(_parse(*parts))
        except GarbledMessage as error:
            self.garbled = str(error)
            self._pending.clear()
        return found


def send(channel: socket.socket, message: Message) -> None:
    """Write one message. Raises ChannelClosed."""
    try:
        channel.sendall(encode(message))
    except OSError as error:
        raise ChannelClosed from error


def receive(channel: socket.socket) -> Message:
    """Wait for one message.

    Raises:
        ChannelClosed: the other side went away.
        GarbledMessage: something else than a message came.
    """
    head, body = _sizes(_exactly(channel, _PREFIX.size))
    return _parse(_exactly(channel, head), _exactly(channel, body))


def _sizes(prefix: bytes) -> tuple[int, int]:
    head, body = _PREFIX.unpack(prefix)
    if head > MAX_HEADER or body > MAX_BODY:
        raise GarbledMessage(f"a frame of {head} + {body} bytes")
    return head, body


def _parse(head: bytes, body: bytes) -> Message:
    try:
        header = json.loads(head)
        kind, launch, fields, told = (header[name] for name in ("kind", "launch", "fields", "arrays"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GarbledMessage(str(error)[:200]) from error
    if not (isinstance(kind, str) and isinstance(launch, str) and isinstance(fields, dict) and isinstance(told, dict)):
        raise GarbledMessage("a header of other types")
    return Message(kind, launch, fields, _arrays(told, body))


def _arrays(told: dict[str, Any], body: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a body, as its header tells them."""
    arrays, offset = {}, 0
    for name, form in told.items():
        if not isinstance(form, list) or form[:1] not in [[letter] for letter in _FORMS] or len(form) > 1 + _MOST_SIDES:
            raise GarbledMessage("an array of no known form")
        letter, shape = form[0], form[1:]
        if any(type(side) is not int or not 0 <= side <= MAX_BODY for side in shape):
            raise GarbledMessage("an array of no possible shape")
        count = math.prod(shape)
        if _FORMS[letter].itemsize * count > len(body) - offset:
            raise GarbledMessage("an array that is longer than its message")
        try:
            flat = np.frombuffer(body, dtype=_FORMS[letter], count=count, offset=offset)
            arrays[name] = flat.reshape(shape)
        except ValueError as error:  # empty, and too large all the same
            raise GarbledMessage(str(error)[:200]) from error
        offset += flat.nbytes
    if offset != len(body):
        raise GarbledMessage("a body that is longer than its arrays")
    return arrays


def _exactly(channel: socket.socket, size: int) -> bytes:
    parts = bytearray(size)
    with memoryview(parts) as view:
        got = 0
        while got < size:
            try:
                more = channel.recv_into(view[got:])
            except OSError as error:
                raise ChannelClosed from error
            if not more:
                raise ChannelClosed
            got += more
    return bytes(parts)
