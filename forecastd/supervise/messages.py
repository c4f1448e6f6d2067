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


def buffers(message: Message) -> list[memoryview]:
    """The frame of a message: prefix and header, and then the arrays' own memory, which is not to change until it is sent."""
    letters = {name: _letter(array) for name, array in message.arrays.items()}
    parts = {name: np.asarray(message.arrays[name], dtype=_FORMS[one], order="C") for name, one in letters.items()}
    told = {name: [letters[name], *part.shape] for name, part in parts.items()}
    header = {"kind": message.kind, "launch": message.launch, "fields": message.fields, "arrays": told}
    head = json.dumps(header).encode()
    size = sum(part.nbytes for part in parts.values())
    bodies = [part.reshape(-1).view(np.uint8).data for part in parts.values() if part.size]
    return [memoryview(_PREFIX.pack(len(head), size) + head), *bodies]


def encode(message: Message) -> bytes:
    """The frame of a message in one."""
    return b"".join(buffers(message))


def _letter(array: NDArray[Any]) -> str:
    """How an array travels: numbers of another type as float64."""
    return next(
        (letter for letter, form in _FORMS.items() if array.dtype == form), "i" if array.dtype.kind == "i" else "f"
    )


class Decoder:
    """Puts frames together from whatever pieces come. `garbled` tells what was no message; nothing after it is one."""

    def __init__(self) -> None:
        self.garbled = ""
        self._head = bytearray()  # of the frame under way: its prefix and header
        self._body: NDArray[np.uint8] | None = None  # and, when that is whole, its body, of which `_got` bytes came
        self._got = 0

    def feed(self, data: bytes) -> list[Message]:
        """The messages that are whole now."""
        found: list[Message] = []
        rest = memoryview(data)
        try:
            while rest and not self.garbled:
                rest = self._take(rest)
                if self._body is not None and self._got == len(self._body):
                    head, body = bytes(self._head[_PREFIX.size :]), self._body
                    self._head, self._body = bytearray(), None
                    found.append(_parse(head, body))
        except GarbledMessage as error:
            self.garbled = str(error)
            self._head, self._body = bytearray(), None
        return found

    def _take(self, rest: memoryview) -> memoryview:
        """Put to the frame what belongs to it; gives what does not."""
        if self._body is None:
            rest = self._complete(rest, _PREFIX.size)
            if len(self._head) < _PREFIX.size:
                return rest
            head, body = _sizes(self._head[: _PREFIX.size])
            rest = self._complete(rest, _PREFIX.size + head)
            if len(self._head) < _PREFIX.size + head:
                return rest
            self._body, self._got = _room(body), 0
        taken = rest[: len(self._body) - self._got]
        self._body[self._got : self._got + len(taken)] = taken
        self._got += len(taken)
        return rest[len(taken) :]

    def _complete(self, rest: memoryview, size: int) -> memoryview:
        """Take what the prefix and the header lack of `size` bytes; gives what is left."""
        lacking = max(0, size - len(self._head))
        self._head += rest[:lacking]
        return rest[lacking:]


def send(channel: socket.socket, message: Message) -> None:
    """Write one message. Raises ChannelClosed."""
    try:
        for part in buffers(message):
            channel.sendall(part)
    except OSError as error:
        raise ChannelClosed from error


def receive(channel: socket.socket) -> Message:
    """Wait for one message.

    Raises:
        ChannelClosed: the other side went away.
        GarbledMessage: something else than a message came.
    """
    head, body = _sizes(_exactly(channel, _PREFIX.size).tobytes())
    return _parse(_exactly(channel, head).tobytes(), _exactly(channel, body))


def _room(size: int) -> NDArray[np.uint8]:
    try:
        return np.empty(size, dtype=np.uint8)  # taken as it is filled
    except MemoryError:
        raise GarbledMessage(f"a message of {size} bytes, for which there is no memory") from None


def _sizes(prefix: bytes | bytearray) -> tuple[int, int]:
    head, body = _PREFIX.unpack(prefix)
    if head > MAX_HEADER or body > MAX_BODY:
        raise GarbledMessage(f"a frame of {head} + {body} bytes")
    return head, body


def _parse(head: bytes, body: NDArray[np.uint8]) -> Message:
    try:
        header = json.loads(head)
        kind, launch, fields, told = (header[name] for name in ("kind", "launch", "fields", "arrays"))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GarbledMessage(str(error)[:200]) from error
    if not (isinstance(kind, str) and isinstance(launch, str) and isinstance(fields, dict) and isinstance(told, dict)):
        raise GarbledMessage("a header of other types")
    body.flags.writeable = False
    return Message(kind, launch, fields, _arrays(told, body))


def _arrays(told: dict[str, Any], body: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
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


def _exactly(channel: socket.socket, size: int) -> NDArray[np.uint8]:
    found = np.empty(size, dtype=np.uint8)
    got = 0
    while got < size:
        try:
            more = channel.recv_into(found[got:].data)
        except OSError as error:
            raise ChannelClosed from error
        if not more:
            raise ChannelClosed
        got += more
    return found
