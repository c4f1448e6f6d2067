"""What parent and child say to each other: frames of a JSON header and raw arrays over one socketpair.

A frame is two little-endian uint32 (header length, body length), the header, the body. Nothing in it is ever evaluated
or unpickled, its size is bounded, and every header bears the launch id, so that a message of an earlier child is told
apart.
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.clock import Deadline

_PREFIX = struct.Struct("<II")
MAX_HEADER = 1 << 20
MAX_BODY = 1 << 26


class ChannelClosed(Exception):
    """The other side is gone."""


class GarbledMessage(Exception):
    """What came is not a message."""


@dataclass(frozen=True, eq=False)
class Message:
    """`kind` up: ready, result, error; down: load, predict, stop. `arrays` are float64."""

    kind: str
    launch: str
    fields: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)


def send(channel: socket.socket, message: Message) -> None:
    """Write one message. Raises ChannelClosed, or TimeoutError as the socket is set."""
    shapes = {name: list(array.shape) for name, array in message.arrays.items()}
    header = {"kind": message.kind, "launch": message.launch, "fields": message.fields, "arrays": shapes}
    head = json.dumps(header, allow_nan=True).encode()
    body = b"".join(np.ascontiguousarray(array, dtype="<f8").tobytes() for array in message.arrays.values())
    try:
        channel.sendall(_PREFIX.pack(len(head), len(body)) + head + body)
    except (BrokenPipeError, ConnectionResetError) as error:
        raise ChannelClosed from error


def receive(channel: socket.socket, timeout: float | None = None) -> Message:
    """Read one message within `timeout` seconds in all (None: for ever).

    Raises:
        TimeoutError: no whole message came in time.
        ChannelClosed: the other side went away.
        GarbledMessage: something else than a message came.
    """
    deadline = Deadline(timeout)
    head_size, body_size = _PREFIX.unpack(_exactly(channel, _PREFIX.size, deadline))
    if head_size > MAX_HEADER or body_size > MAX_BODY:
        raise GarbledMessage(f"a frame of {head_size} + {body_size} bytes")
    head, body = _exactly(channel, head_size, deadline), _exactly(channel, body_size, deadline)
    try:
        header = json.loads(head)
        arrays, offset = {}, 0
        for name, shape in header["arrays"].items():
            count = int(np.prod(shape, dtype=np.int64))
            arrays[name] = np.frombuffer(body, dtype="<f8", count=count, offset=offset).reshape(shape)
            offset += 8 * count
        return Message(str(header["kind"]), str(header["launch"]), dict(header["fields"]), arrays)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GarbledMessage(str(error)) from error


def _exactly(channel: socket.socket, size: int, deadline: Deadline) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        channel.settimeout(deadline.left())
        try:
            part = channel.recv(min(size - len(parts), 1 << 16))
        except ConnectionResetError as error:
            raise ChannelClosed from error
        if not part:
            raise ChannelClosed
        parts += part
    return bytes(parts)
