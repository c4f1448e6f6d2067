"""How soon a cycle starts when a window has opened: by polling alone, by events alone, and the official worker with both.

Blocks come every 50 ms and a window is open for ten seconds, which is as short as makes sense of a poll of five seconds at
the least. When a cycle starts is read from the daemon's own log, when the official worker's does from its model.
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

from benchmarks.campaign.worker import new_phrase
from benchmarks.daemon.process import TOPIC, Plan, daemon, environment, settle_in
from benchmarks.figures import Count, Figure
from benchmarks.processes import ROOT
from forecastd.clock import SystemClock
from forecastd.localnet.chain import Block
from forecastd.localnet.embedded import Embedded, open_embedded
from forecastd.localnet.topics import TopicSpec

BLOCK_SECONDS, EPOCH, WINDOW = 0.05, 240, 200
POLL = 5.0
OFFICIAL = """
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
class Times:
    """When windows opened and when they were noticed, by nonce, in unix seconds."""

    opened: dict[int, float] = field(default_factory=dict)
    noticed: dict[int, float] = field(default_factory=dict)

    def lags(self) -> list[float]:
        """Seconds from one to the other. The first window may have been open before anybody looked."""
        both = sorted(set(self.opened) & set(self.noticed))[1:]
        return [self.noticed[nonce] - self.opened[nonce] for nonce in both]


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """40 windows, all three side by side; quick: 4."""
    del seed  # nothing here is chosen at random
    windows = 4 if quick else 40
    found = {name: Times() for name in ("polling", "events", "official")}
    with tempfile.TemporaryDirectory() as place:
        threads = [
            threading.Thread(target=_ours, args=(Path(place) / "p", Plan(events=False), windows, found["polling"])),
            threading.Thread(target=_ours, args=(Path(place) / "e", Plan(poll=False), windows, found["events"])),
            threading.Thread(target=_theirs, args=(Path(place) / "o", windows, found["official"])),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    peer = found["official"].lags()
    for name in ("polling", "events"):
        lags = found[name].lags()
        yield Count(
            f"from window opened to cycle started, {name} alone, {windows} windows of {WINDOW * BLOCK_SECONDS:g} s",
            {"noticed": len(lags), "median, ms": _ms(lags), "longest, ms": 1000 * max(lags, default=0.0),
             "official worker, websocket and polling: noticed": len(peer), "official worker: median, ms": _ms(peer)},
            "every window is noticed" + (f", within the poll of {POLL:g} s and its look" if name == "polling" else ""),
            tuple(f"only {len(lags)} of {windows - 1}" for _ in range(1) if len(lags) < windows - 1),
        )  # fmt: skip
    if peer and found["events"].lags():
        yield Figure(
            "window opened to cycle started, by events, median", statistics.median(found["events"].lags()),
            statistics.median(peer), "s", "the official worker's model is called", "no slower",
        )  # fmt: skip


def _ms(lags: list[float]) -> float:
    return 1000 * statistics.median(lags) if lags else float("nan")


def _wait_for(times: Times, windows: int) -> None:
    """Until so many windows have closed."""
    wait = threading.Event()
    while len(times.opened) < windows + 1:
        wait.wait(0.1)


def _open_node(place: Path, times: Times) -> Iterator[Embedded]:
    spec = TopicSpec(TOPIC, epoch_length=EPOCH, worker_submission_window=WINDOW)

    def made(block: Block) -> None:
        for _, nonce in block.opened:
            times.opened[nonce] = SystemClock().now()

    with open_embedded(place, SystemClock(), topics=(spec,), block_time=BLOCK_SECONDS, events=True) as node:
        node.call(lambda chain: chain.listeners.append(made))
        yield node


def _ours(place: Path, plan: Plan, windows: int, times: Times) -> None:
    phrase = new_phrase()
    for node in _open_node(place / "node", times):
        settle_in(node, phrase)
        with daemon(plan, environment(place, phrase, node), place) as process:
            _wait_for(times, windows)
            process.terminate()
            process.wait(20)
    times.noticed = _cycles(place / "logs" / "submission.log")


def _cycles(log: Path) -> dict[int, float]:
    """When the cycle began that served each nonce: the last beginning before the line that names the nonce."""
    found: dict[int, float] = {}
    began = 0.0
    for line in log.read_text().splitlines():
        if line.endswith(" chain begins"):
            began = datetime.fromisoformat(line.split()[0].rstrip("Z")).replace(tzinfo=UTC).timestamp()
        elif " chain: " in line and " nonce " in line:
            found.setdefault(int(line.split(" nonce ")[1].split()[0]), began)
    return found


def _theirs(place: Path, windows: int, times: Times) -> None:
    phrase = new_phrase()
    for node in _open_node(place / "node", times):
        settle_in(node, phrase)
        port = node.endpoint.rpartition(":")[2]
        line = [sys.executable, "-W", "ignore", "-c", OFFICIAL, port, str(node.websocket), phrase, str(TOPIC), "5"]
        with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            reading = threading.Thread(target=_read, args=(process.stdout, times))
            reading.start()
            _wait_for(times, windows)
            process.kill()
            reading.join()


def _read(out: TextIO, times: Times) -> None:
    for line in out:
        words = line.split()
        if words[:1] == ["called"]:
            times.noticed.setdefault(int(words[1]), float(words[2]))
