"""What waiting costs: CPU time and memory of the daemon's parent process beside the official worker's, on nodes alike.

Blocks come every five seconds, the window of an hour is open and served, and nothing is to be done. Both have a websocket
and look every two minutes. The model's processes, which the official worker does not have, are told besides.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.daemon.detection import OFFICIAL_WORKER_SCRIPT
from benchmarks.daemon.process import TOPIC, DaemonPlan, environment, register_worker, start_daemon
from benchmarks.figures import Figure, PremiseCount
from benchmarks.processes import ROOT
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from tests.support.mnemonics import new_mnemonic

if TYPE_CHECKING:
    from psutil import Process

SETTLE_SECONDS = 15.0  # seconds after the submission before the measurement begins
SUBMISSION_TIMEOUT_SECONDS = 120.0  # seconds that the first submission may take


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """Ten minutes of waiting, both side by side; quick: half a minute."""
    del seed  # nothing here is chosen at random
    seconds = 30.0 if quick else 600.0
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        daemon_process = stack.enter_context(_run_daemon(Path(directory) / "ours"))
        official_process = stack.enter_context(_run_official_worker(Path(directory) / "theirs"))
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
        "below 20 s; ours watches its models, too",
    )
    yield Figure(f"peak memory in {description}", peaks[0], peaks[1], "MB", peer, "ratio >= 1.5")
    yield PremiseCount(
        "the daemon while it waits",
        {
            "memory of the model's processes, MB": round(children),
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
            yield _process(process.pid)


@contextmanager
def _run_official_worker(directory: Path) -> Iterator[Process]:
    phrase = new_mnemonic()
    with open_embedded(directory / "node", SystemClock(), events=True) as node:
        address = register_worker(node, phrase)
        port = node.endpoint.rpartition(":")[2]
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            OFFICIAL_WORKER_SCRIPT,
            port,
            str(node.websocket),
            phrase,
            str(TOPIC),
            "120",
        ]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _wait_until_served(node, address)
                yield _process(process.pid)
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


def _process(pid: int) -> Process:
    from psutil import Process

    return Process(pid)


def _cpu_seconds(process: Process) -> float:
    """CPU seconds so far, its own only."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _megabytes(process: Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _heavy_libraries(pid: int) -> list[str]:
    """Libraries whose native parts the process has mapped although it must not have imported them."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in ("torch", "pandas", "pyarrow") if f"/site-packages/{name}/" in mapped]
