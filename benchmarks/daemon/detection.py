"""How soon a cycle starts after a window opened: by polling only, by events only, and the official worker with both.

Blocks come every 50 ms, and a window is open for ten seconds, the minimum for a poll interval of five seconds. The
start of a cycle is read from the daemon's log; for the official worker it is the call of its model.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from benchmarks.daemon.process import TOPIC, DaemonPlan, environment, register_worker, start_daemon
from benchmarks.figures import Figure, PremiseCount
from benchmarks.processes import ROOT
from forecastd.clock import SystemClock
from forecastd.localnet.chain import ChainBlock
from forecastd.localnet.embedded import EmbeddedNode, open_embedded
from forecastd.localnet.topics import TopicSpec
from tests.support.mnemonics import new_mnemonic

BLOCK_SECONDS, EPOCH_BLOCKS, WINDOW_BLOCKS = 0.05, 240, 200
POLL_SECONDS = 5.0
OFFICIAL_WORKER_SCRIPT = """
import asyncio, logging, sys, time
from allora_sdk import AlloraNetworkConfig, AlloraWalletConfig, AlloraWorker, LocalWallet

port, websocket, phrase, topic, polling = sys.argv[1:]

async def model(context):
    print("called", context.nonce, time.time(), flush=True)
    return 0.01

async def main():
    wallet = AlloraWalletConfig(wallet=LocalWallet.from_mnemonic(phrase, prefix="allo"))
    worker = AlloraWorker.inferer(
        run=model, wallet=wallet, network=AlloraNetworkConfig.local(port=int(port), websocket_url=websocket),
        topic_id=int(topic), polling_interval=int(polling), show_banner=False)
    async for _ in worker.run():
        pass

logging.disable(logging.CRITICAL)
asyncio.run(main())
"""


@dataclass
class WindowTimes:
    """When windows opened and when they were noticed: unix seconds by nonce."""

    opened_at: dict[int, float] = field(default_factory=dict)
    noticed_at: dict[int, float] = field(default_factory=dict)

    def lags(self) -> list[float]:
        """Seconds from opened to noticed. Without the first window, which may have opened before the start."""
        both = sorted(set(self.opened_at) & set(self.noticed_at))[1:]
        return [self.noticed_at[nonce] - self.opened_at[nonce] for nonce in both]


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """40 windows for all three in parallel; quick: 4."""
    del seed  # nothing here is random
    windows = 4 if quick else 40
    times = {name: WindowTimes() for name in ("polling", "events", "official")}
    with tempfile.TemporaryDirectory() as directory:
        threads = [
            threading.Thread(
                target=_run_daemon, args=(Path(directory) / "p", DaemonPlan(events=False), windows, times["polling"])
            ),
            threading.Thread(
                target=_run_daemon, args=(Path(directory) / "e", DaemonPlan(poll=False), windows, times["events"])
            ),
            threading.Thread(target=_run_official_worker, args=(Path(directory) / "o", windows, times["official"])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    peer = times["official"].lags()
    for name in ("polling", "events"):
        lags = times[name].lags()
        yield PremiseCount(
            f"from window opened to cycle started, {name} only, {windows} windows of {WINDOW_BLOCKS * BLOCK_SECONDS:g} s",
            {"noticed": len(lags), "median, ms": _median_ms(lags), "longest, ms": 1000 * max(lags, default=0.0),
             "official worker, websocket and polling: noticed": len(peer), "official worker: median, ms": _median_ms(peer)},
            "every window is noticed" + (f", within the poll interval of {POLL_SECONDS:g} s" if name == "polling" else ""),
            tuple(f"only {len(lags)} of {windows - 1}" for _ in range(1) if len(lags) < windows - 1),
        )  # fmt: skip
    if peer and times["events"].lags():
        yield Figure(
            "window opened to cycle started, by events, median", statistics.median(times["events"].lags()),
            statistics.median(peer), "s", "the official worker's model is called", "no slower",
        )  # fmt: skip


def _median_ms(lags: list[float]) -> float:
    return 1000 * statistics.median(lags) if lags else float("nan")


def _wait_for_windows(times: WindowTimes, windows: int) -> None:
    """Wait until `windows` windows have closed."""
    wait = threading.Event()
    while len(times.opened_at) < windows + 1:
        wait.wait(0.1)


def _open_node(directory: Path, times: WindowTimes) -> Iterator[EmbeddedNode]:
    spec = TopicSpec(TOPIC, epoch_length=EPOCH_BLOCKS, worker_submission_window=WINDOW_BLOCKS)

    def record_windows(block: ChainBlock) -> None:
        for _, nonce in block.opened_windows:
            times.opened_at[nonce] = SystemClock().now()

    with open_embedded(directory, SystemClock(), topics=(spec,), block_time=BLOCK_SECONDS, events=True) as node:
        node.call(lambda chain: chain.listeners.append(record_windows))
        yield node


def _run_daemon(directory: Path, plan: DaemonPlan, windows: int, times: WindowTimes) -> None:
    phrase = new_mnemonic()
    for node in _open_node(directory / "node", times):
        register_worker(node, phrase)
        with start_daemon(plan, environment(directory, phrase, node), directory) as process:
            _wait_for_windows(times, windows)
            process.terminate()
            process.wait(20)
    times.noticed_at = _cycle_start_times(directory / "logs" / "submission.log")


def _cycle_start_times(log: Path) -> dict[int, float]:
    """The start of the cycle that served each nonce: the last start before the first line with the nonce."""
    start_times: dict[int, float] = {}
    started_at = 0.0
    for line in log.read_text().splitlines():
        if line.endswith(" chain starts"):
            started_at = datetime.fromisoformat(line.split()[0].rstrip("Z")).replace(tzinfo=UTC).timestamp()
        elif " chain: " in line and " nonce " in line:
            start_times.setdefault(int(line.split(" nonce ")[1].split()[0]), started_at)
    return start_times


def _run_official_worker(directory: Path, windows: int, times: WindowTimes) -> None:
    phrase = new_mnemonic()
    for node in _open_node(directory / "node", times):
        register_worker(node, phrase)
        port = node.endpoint.rpartition(":")[2]
        script = [sys.executable, "-W", "ignore", "-c", OFFICIAL_WORKER_SCRIPT]
        command = [*script, port, str(node.websocket), phrase, str(TOPIC), "5"]
        with subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            reader = threading.Thread(target=_read_calls, args=(process.stdout, times))
            reader.start()
            _wait_for_windows(times, windows)
            process.kill()
            reader.join()


def _read_calls(out: TextIO, times: WindowTimes) -> None:
    for line in out:
        words = line.split()
        if words[:1] == ["called"]:
            times.noticed_at.setdefault(int(words[1]), float(words[2]))
