"""Memory and open files of a process, from /proc (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pid: int | str = "self") -> int | None:
    """Resident memory of a process in bytes; None when the process does not exist."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def open_file_count() -> int:
    """The number of open file descriptors of this process; 0 when /proc cannot be read."""
    try:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - only the count is needed
    except OSError:
        return 0
