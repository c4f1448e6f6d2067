"""Make glibc keep freed memory, for a process that allocates the same large arrays at every tick.

By default glibc returns large blocks to the kernel, and each forecast then costs hundreds of thousands of page faults.
"""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_THRESHOLD_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Return whether glibc was configured to keep memory; other C libraries are left unchanged."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(
        mallopt(_MMAP_THRESHOLD, _THRESHOLD_BYTES) and mallopt(_TRIM_THRESHOLD, _THRESHOLD_BYTES)
    )
