"""glibc told to keep the memory that it has: a process that makes the same large arrays at every tick needs them again.

By default it gives large blocks back to the kernel, and hundreds of thousands of page faults a forecast bring them again.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THRESHOLD_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Whether it could be told; another C library has no such call, and is left as it is."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES) and mallopt(_TRIM_THRESHOLD, _THRESHOLD_BYTES)
    )
