"""The resources that a process holds: children, grandchildren, descriptors, shared memory, threads.

Taken before and after a run, and compared. A grandchild whose parent is dead is recognized by its command line, which names
the pid of the process that started the children.
"""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class ProcessResources:
    """Each resource as a unique text."""

    processes: frozenset[str]
    descriptors: frozenset[str]
    shared_memory: frozenset[str]
    threads: frozenset[str]

    def count_added(self, before: ProcessResources) -> dict[str, int]:
        """The number of resources of each kind that were not held before."""
        return {name: len(added) for name, added in self.added_since(before).items()}

    def added_since(self, before: ProcessResources) -> dict[str, frozenset[str]]:
        """The resources of each kind that were not held before."""
        names = {
            "processes": "processes left",
            "descriptors": "file handles left",
            "shared_memory": "entries of /dev/shm left",
            "threads": "threads left",
        }
        return {label: getattr(self, name) - getattr(before, name) for name, label in names.items()}


def current_resources() -> ProcessResources:
    """The resources that this process holds now."""
    gc.collect()
    return ProcessResources(_processes(), _descriptors(), frozenset(_names(Path("/dev/shm"))), _threads())  # noqa: S108


def _processes() -> frozenset[str]:
    own_pid = str(os.getpid())
    processes = {f"{child.pid} {child.name()}" for child in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        command = process.info["cmdline"] or []
        if "forecastd.inference.child" in command and own_pid in command[-2:-1]:
            processes.add(f"{process.info['pid']} {process.info['name']}")
    return frozenset(processes)


def _descriptors() -> frozenset[str]:
    descriptors = set()
    for name in _names(Path("/proc/self/fd")):
        try:
            descriptors.add(f"{name} {(Path('/proc/self/fd') / name).readlink()}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return frozenset(descriptors)


def _names(directory: Path) -> list[str]:
    return os.listdir(directory) if directory.is_dir() else []  # noqa: PTH208 - names are wanted, not paths


def _threads() -> frozenset[str]:
    return frozenset(f"{thread.ident} {thread.name}" for thread in threading.enumerate())
