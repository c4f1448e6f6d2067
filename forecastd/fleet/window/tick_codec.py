"""One saved tick as bytes: servers, seconds into the tick, statuses and values, with a checksum.

Invariant: a read returns exactly what was written, or nothing. The checksum covers the bytes and their position
(tick, part, layout). The id of a server is derived from its name, so no flipped bit can assign values to another
server. The bytes are little-endian arrays one after the other: server ids int64 `[N]`, seconds into the tick float32
`[N]`, indices into STATUSES uint8 `[N]`, values float32 `[N, metrics]`.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import STATUSES

FIXED_BYTES_PER_SERVER = 13  # in addition to the values
MAX_PARTS = 1 << 16  # per tick: one when it closes, and one for each batch of late rows


@dataclass(frozen=True)
class SavedTick:
    """Rows of one tick as they are stored."""

    start: int  # unix seconds
    server_ids: NDArray[np.int64]  # [N], ids of servers
    offsets: NDArray[np.float32]  # [N], seconds after `start`
    status_codes: NDArray[np.uint8]  # [N], indices into STATUSES
    values: NDArray[np.float32]  # [N, metrics]


def row_key(start: int, part: int = 0) -> int:
    """The key of part `part` of the tick that begins at `start`; keys sort by time, then part."""
    return start * MAX_PARTS + part


def tick_start(row: int) -> int:
    """The start of the tick of a row, unix seconds."""
    return row // MAX_PARTS


def tick_crc(row: int, layout: int, data: bytes) -> int:
    """The checksum of a tick and its position."""
    return zlib.crc32(data, zlib.crc32(f"{row}|{layout}".encode()))


def make_server_id(name: str, profile: str) -> int:
    """The id of a server with this profile, derived from both, so that the table of servers can be verified."""
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
    """The tick in a row, with `metrics` values per server; None if it is not what was written."""
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
