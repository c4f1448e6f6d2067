"""How much memory and how many files the daemon has, from /proc (proc(5)): its own, and its children's."""

from __future__ import annotations

import os
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")


def resident(pid: int | str = "self") -> int | None:
    """Resident memory of a process in bytes; None when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE
    except (OSError, ValueError, IndexError):
        return None


def children() -> list[int]:
    """The process numbers of this process's own children, whichever of its threads started them."""
    found: list[int] = []
    for task in _listed("/proc/self/task"):
        try:
            found += map(int, Path(f"/proc/self/task/{task}/children").read_bytes().split())
        except (OSError, ValueError):
            continue
    return found


def of_children() -> int:
    """Resident memory of all children together, in bytes."""
    return sum(resident(pid) or 0 for pid in children())


def open_files() -> int:
    """How many file descriptors are open."""
    return len(_listed("/proc/self/fd"))


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)  # noqa: PTH208 - names are all that is wanted
    except OSError:
        return []
