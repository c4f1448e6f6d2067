"""The cost of waiting: CPU time and memory of the daemon's parent process and of the official worker, on equal nodes.

Blocks come every five seconds, the hour's window is open and served, and there is nothing to do. Both have a
websocket and poll every two minutes. The model processes, which the official worker does not have, are reported
separately.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from psutil import Process

from benchmarks.daemon.detection import OFFICIAL_WORKER_SCRIPT
from benchmarks.daemon.process import TOPIC, DaemonPlan, environment, register_worker, start_daemon
from benchmarks.figures import Figure, PremiseCount
from benchmarks.processes import ROOT
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from tests.support.mnemonics import new_mnemonic

SETTLE_SECONDS = 15.0  # from the submission to the start of the measurement
SUBMISSION_TIMEOUT_SECONDS = 120.0  # for the first submission


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """Ten minutes of waiting for both in parallel; quick: 30 s."""
    del seed  # nothing here is random
    seconds = 30.0 if quick else 600.0
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        daemon_process = stack.enter_context(_run_daemon(Path(directory) / "daemon"))
        official_process = stack.enter_context(_run_official_worker(Path(directory) / "official"))
        threading.Event().wait(SETTLE_SECONDS)
        before = (_cpu_seconds(daemon_process), _cpu_seconds(official_process))
        peaks, children = [0.0, 0.0], 0.0
        for _ in range(int(seconds)):
            threading.Event().wait(1.0)
            peaks = [max(peaks[0], _megabytes(daemon_process)), max(peaks[1], _megabytes(official_process))]
            children = max(children, sum(_megabytes(child) for child in daemon_process.children(recursive=True)))
        after = (_cpu_seconds(daemon_process), _cpu_seconds(official_process))
        heavy_libraries = _heavy_libraries(daemon_process.pid)
    hours = seconds / 3600
    peer = "official worker"
    description = f"{seconds:.0f} s of the parent process"
    cpu_seconds, peer_cpu_seconds = ((end - start) / hours for start, end in zip(before, after, strict=True))
    yield Figure(
        f"CPU of an idle hour, from {description}",
        cpu_seconds,
        peer_cpu_seconds,
        "s",
        peer,
        "ratio >= 1; the daemon also supervises its models",
    )
    yield Figure(f"peak memory in {description}", peaks[0], peaks[1], "MB", peer, "ratio >= 1.5")
    yield PremiseCount(
        "the daemon while it waits",
        {
            "memory of the model processes, MB": round(children),
            "heavy libraries in the parent": ", ".join(heavy_libraries) or "none",
        },
        "the parent has imported neither torch nor pandas",
        tuple(heavy_libraries),
    )


@contextmanager
def _run_daemon(directory: Path) -> Iterator[Process]:
    phrase = new_mnemonic()
    with open_embedded(directory / "node", SystemClock(), events=True) as node:
        address = register_worker(node, phrase)
        with start_daemon(DaemonPlan(), environment(directory, phrase, node), directory) as process:
            _wait_until_served(node, address)
            yield Process(process.pid)


@contextmanager
def _run_official_worker(directory: Path) -> Iterator[Process]:
    phrase = new_mnemonic()
    with open_embedded(directory / "node", SystemClock(), events=True) as node:
        address = register_worker(node, phrase)
        port = node.endpoint.rpartition(":")[2]
        script = [sys.executable, "-W", "ignore", "-c", OFFICIAL_WORKER_SCRIPT]
        command = [*script, port, str(node.websocket), phrase, str(TOPIC), "120"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _wait_until_served(node, address)
                yield Process(process.pid)
            finally:
                process.kill()


def _wait_until_served(node: EmbeddedNode, address: str) -> None:
    for _ in range(int(SUBMISSION_TIMEOUT_SECONDS / 0.2)):
        record = node.record()
        if any(
            transaction.kind == "payload" and transaction.sender == address and transaction.code == 0
            for transaction in record.transactions
        ):
            return
        threading.Event().wait(0.2)
    raise RuntimeError(f"nothing was submitted within {SUBMISSION_TIMEOUT_SECONDS:g} s")


def _cpu_seconds(process: Process) -> float:
    """CPU seconds of the process so far, without its children."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _megabytes(process: Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _heavy_libraries(pid: int) -> list[str]:
    """The libraries that the process must not import but whose native code it has mapped."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in ("torch", "pandas", "pyarrow") if f"/site-packages/{name}/" in mapped]
