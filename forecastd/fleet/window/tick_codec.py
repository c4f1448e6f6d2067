"""One saved tick as bytes: which servers, when in the tick, their status and their values, under a checksum.

The one thing to know before changing it: what is read back is either exactly what was written or nothing. The checksum covers
the bytes and their place (tick, part, layout). The number of a server is made from its name, so that no flipped bit gives one
server another one's values. The bytes are little-endian arrays one after the other: servers' numbers int64 `[N]`, seconds
into the tick float32 `[N]`, places in STATUSES uint8 `[N]`, values float32 `[N, metrics]`.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import STATUSES

FIXED_BYTES_PER_SERVER = 13  # bytes a server beside its values
MAX_PARTS = 1 << 16  # parts a tick can have: the first is written when it closes, one more for each batch of late rows


@dataclass(frozen=True)
class SavedTick:
    """Rows of one tick as the store keeps them."""

    start: int  # unix seconds
    server_ids: NDArray[np.int64]  # [N], numbers of servers
    offsets: NDArray[np.float32]  # [N], seconds after `start`
    status_codes: NDArray[np.uint8]  # [N], places in STATUSES
    values: NDArray[np.float32]  # [N, metrics]


def row_key(start: int, part: int = 0) -> int:
    """The row of part `part` of the tick that begins at `start`; rows sort by time, then part."""
    return start * MAX_PARTS + part


def tick_start(row: int) -> int:
    """The time of a row, unix seconds."""
    return row // MAX_PARTS


def tick_crc(row: int, layout: int, data: bytes) -> int:
    """Over a tick and its place."""
    return zlib.crc32(data, zlib.crc32(f"{row}|{layout}".encode()))


def make_server_id(name: str, profile: str) -> int:
    """The number of a server of this profile, made from both: the table of servers cannot say anything else under it."""
    digest = hashlib.blake2b(f"{name}|{profile}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def encode_tick(tick: SavedTick) -> bytes:
    """The bytes of a tick."""
    return b"".join((
        tick.server_ids.astype("<i8").tobytes(),
        tick.offsets.astype("<f4").tobytes(),
        tick.status_codes.astype(np.uint8).tobytes(),
        tick.values.astype("<f4").tobytes(),
    ))  # fmt: skip


def decode_tick(row: int, layout: int, data: object, crc: object, metrics: int) -> SavedTick | None:
    """The tick that stands in a row, with `metrics` values a server; None where it is not what was written."""
    size = FIXED_BYTES_PER_SERVER + 4 * metrics
    if not isinstance(data, bytes) or len(data) % size or tick_crc(row, layout, data) != crc:
        return None
    count = len(data) // size
    status_codes = np.frombuffer(data, np.uint8, count, 12 * count)
    if status_codes.max(initial=0) >= len(STATUSES):
        return None
    return SavedTick(
        tick_start(row),
        np.frombuffer(data, "<i8", count, 0).astype(np.int64, copy=False),
        np.frombuffer(data, "<f4", count, 8 * count).astype(np.float32, copy=False),
        status_codes,
        np.frombuffer(data[FIXED_BYTES_PER_SERVER * count :], "<f4")
        .astype(np.float32, copy=False)
        .reshape(count, metrics),
    )
