"""How much memory a process has, and how many files this one, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process in bytes; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def open_file_count() -> int:
    """How many file descriptors are open."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - how many is all that is wanted
    except OSError:
        return 0
