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

from benchmarks.campaign.worker import new_phrase
from benchmarks.daemon.detection import OFFICIAL
from benchmarks.daemon.process import TOPIC, Plan, daemon, environment, settle_in
from benchmarks.figures import Count, Figure
from benchmarks.processes import ROOT
from forecastd.clock import SystemClock
from forecastd.localnet.embedded import Embedded, open_embedded

if TYPE_CHECKING:
    from psutil import Process

SETTLE = 15.0  # seconds after the submission before the measurement begins
SERVED = 120.0  # seconds that the first submission may take


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """Ten minutes of waiting, both side by side; quick: half a minute."""
    del seed  # nothing here is chosen at random
    seconds = 30.0 if quick else 600.0
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        ours = stack.enter_context(_ours(Path(place) / "ours"))
        theirs = stack.enter_context(_theirs(Path(place) / "theirs"))
        threading.Event().wait(SETTLE)
        before = (_spent(ours), _spent(theirs))
        peaks, children = [0.0, 0.0], 0.0
        for _ in range(int(seconds)):
            threading.Event().wait(1.0)
            peaks = [max(peaks[0], _megabytes(ours)), max(peaks[1], _megabytes(theirs))]
            children = max(children, sum(_megabytes(one) for one in ours.children(recursive=True)))
        after = (_spent(ours), _spent(theirs))
        heavy = _heavy(ours.pid)
    hours = seconds / 3600
    peer = "official worker"
    told = f"{seconds:.0f} s of the parent process"
    spent, peers = ((end - start) / hours for start, end in zip(before, after, strict=True))
    yield Figure(
        f"CPU of an idle hour, from {told}", spent, peers, "s", peer, "below 20 s; ours watches its models, too"
    )
    yield Figure(f"peak memory in {told}", peaks[0], peaks[1], "MB", peer, "ratio >= 1.5")
    yield Count(
        "the daemon while it waits",
        {
            "memory of the model's processes, MB": round(children),
            "heavy libraries in the parent": ", ".join(heavy) or "none",
        },
        "the parent has imported neither torch nor pandas",
        tuple(heavy),
    )


@contextmanager
def _ours(place: Path) -> Iterator[Process]:
    phrase = new_phrase()
    with open_embedded(place / "node", SystemClock(), events=True) as node:
        address = settle_in(node, phrase)
        with daemon(Plan(), environment(place, phrase, node), place) as process:
            _wait_until_served(node, address)
            yield _process(process.pid)


@contextmanager
def _theirs(place: Path) -> Iterator[Process]:
    phrase = new_phrase()
    with open_embedded(place / "node", SystemClock(), events=True) as node:
        address = settle_in(node, phrase)
        port = node.endpoint.rpartition(":")[2]
        line = [sys.executable, "-W", "ignore", "-c", OFFICIAL, port, str(node.websocket), phrase, str(TOPIC), "120"]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                _wait_until_served(node, address)
                yield _process(process.pid)
            finally:
                process.kill()


def _wait_until_served(node: Embedded, address: str) -> None:
    for _ in range(int(SERVED / 0.2)):
        record = node.record()
        if any(one.kind == "payload" and one.sender == address and one.code == 0 for one in record.transactions):
            return
        threading.Event().wait(0.2)
    raise RuntimeError(f"nothing was submitted within {SERVED:g} s")


def _process(pid: int) -> Process:
    from psutil import Process

    return Process(pid)


def _spent(process: Process) -> float:
    """CPU seconds so far, its own only."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _megabytes(process: Process) -> float:
    return float(process.memory_info().rss) / 2**20


def _heavy(pid: int) -> list[str]:
    """Libraries whose native parts the process has mapped although it must not have imported them."""
    mapped = Path(f"/proc/{pid}/maps").read_text()
    return [name for name in ("torch", "pandas", "pyarrow") if f"/site-packages/{name}/" in mapped]
