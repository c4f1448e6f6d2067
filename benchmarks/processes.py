"""Wall time and peak memory of a command in a fresh process, including its children."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class MeasuredRun:
    """Wall seconds, peak resident memory in MB (sum of the process and its children), and stdout."""

    seconds: float
    megabytes: float
    stdout: str


def measure(arguments: Sequence[str], environment: dict[str, str] | None = None) -> MeasuredRun:
    """Run a command to its end. Raises RuntimeError with its output when it fails."""
    started = time.perf_counter()
    with subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        peak = [0.0]
        watcher = threading.Thread(target=_sample_memory, args=(process.pid, peak))
        watcher.start()
        stdout, stderr = process.communicate()
        seconds = time.perf_counter() - started
        watcher.join()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}: {stderr[-2000:]}{stdout[-500:]}")
    return MeasuredRun(seconds, peak[0], stdout)


def _sample_memory(pid: int, peak: list[float]) -> None:
    """Sample the resident memory of the process tree until it ends."""
    import psutil

    try:
        root = psutil.Process(pid)
        while root.is_running() and root.status() != psutil.STATUS_ZOMBIE:
            total = 0
            for process in (root, *root.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak[0] = max(peak[0], total / 2**20)
            time.sleep(0.005)
    except psutil.NoSuchProcess:
        return


def alternate(
    ours: Callable[[], MeasuredRun], peer: Callable[[], MeasuredRun], runs: int
) -> tuple[MeasuredRun, MeasuredRun]:
    """Run both in turns, so that a noisy machine affects both alike; return medians of seconds and megabytes."""
    pairs = [(ours(), peer()) for _ in range(runs)]
    return _median([pair[0] for pair in pairs]), _median([pair[1] for pair in pairs])


def _median(runs: list[MeasuredRun]) -> MeasuredRun:
    return MeasuredRun(
        statistics.median(run.seconds for run in runs),
        statistics.median(run.megabytes for run in runs),
        runs[-1].stdout,
    )


def python(*arguments: str) -> list[str]:
    """A command line of this interpreter."""
    return [sys.executable, *arguments]
