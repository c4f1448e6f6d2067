"""The daemon as a process to measure, with settings from the environment.

Run as `python -m benchmarks.daemon.process JSON`, where JSON has the fields of `DaemonPlan`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.processes import ROOT
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.daemon.loop import Daemon
from forecastd.daemon.watcher import PollOptions
from forecastd.localnet.embedded import EmbeddedNode
from forecastd.localnet.state import Effect
from forecastd.logs import configure, install_hooks
from forecastd.settings import load_settings

TOPIC = 67


@dataclass(frozen=True)
class DaemonPlan:
    """How windows are found, the bounds of the poll interval in seconds, and the size of a log file before rotation."""

    poll: bool = True
    events: bool = True
    min_poll_seconds: float = 5.0
    max_poll_seconds: float = 120.0
    log_bytes: int = 50_000_000


def environment(directory: Path, phrase: str, node: EmbeddedNode, endpoints: tuple[str, ...] = ()) -> dict[str, str]:
    """The environment of a daemon on this node."""
    return {
        "PATH": os.defpath,
        "HOME": str(directory),
        "STATE_DIR": str(directory / "state"),
        "LOG_DIR": str(directory / "logs"),
        "MNEMONIC": phrase,
        "RPC_ENDPOINTS": ",".join(endpoints or (node.endpoint,)),
        "EVENT_ENDPOINTS": node.websocket or "",
    }


def register_worker(node: EmbeddedNode, phrase: str) -> str:
    """Fund the phrase's wallet and register it for the topic. Returns its address."""
    address = Wallet.from_mnemonic(phrase).address
    node.call(lambda chain: chain.fund(address, 10**24))
    node.call(lambda chain: chain.state.apply(Effect(worker=(TOPIC, address))))
    return address


@contextmanager
def start_daemon(plan: DaemonPlan, variables: dict[str, str], directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon while the block runs; killed at the end if it is still running."""
    command = [sys.executable, "-m", "benchmarks.daemon.process", json.dumps(asdict(plan))]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "console").open("ab") as console, subprocess.Popen(
        command, cwd=ROOT, env=variables, stdin=subprocess.DEVNULL, stdout=console, stderr=console
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def main() -> int:
    plan = DaemonPlan(**json.loads(sys.argv[1]))
    settings = load_settings()
    configure(settings.log_path, verbose=False, console_level=logging.INFO, timestamps=True, max_bytes=plan.log_bytes)
    install_hooks()
    poll_options = PollOptions(plan.poll, plan.events, plan.min_poll_seconds, plan.max_poll_seconds)
    return Daemon(lambda: ([load_settings()], []), SystemClock(), poll_options=poll_options).run()


if __name__ == "__main__":
    sys.exit(main())
