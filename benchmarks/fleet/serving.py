"""Runs `fleet serve` as a process to be measured: with a state directory of its own and no rate limit."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from psutil import NoSuchProcess, Process

from benchmarks.fleet.scene import STEP
from benchmarks.processes import ROOT
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.window.store import TickStore

TIMEOUT_SECONDS = 300.0  # for a response


@dataclass
class ServiceProcess:
    """A running `fleet serve`; `started`: the monotonic second of its start."""

    process: subprocess.Popen[bytes]
    port: int
    started: float
    console: Path

    def request(self, path: str) -> tuple[int, bytes]:
        """Status and body of the response; status 0 if there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()

    def wait_for(self, path: str, interval: float = 0.02) -> bytes:
        """The body of the first response with status 200."""
        pause = threading.Event()
        end = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < end:
            status, body = self.request(path)
            if status == 200:
                return body
            if self.process.poll() is not None:
                break
            pause.wait(interval)
        raise RuntimeError(f"{path} did not return 200; output of the service: {self.console.read_text()[-3000:]}")

    def status(self) -> dict[str, Any]:
        """The document of `GET /status`."""
        status: dict[str, Any] = json.loads(self.wait_for("/status"))
        return status

    def pids(self) -> list[int]:
        """The process ids of the service and its children."""
        try:
            return [self.process.pid, *(child.pid for child in Process(self.process.pid).children(recursive=True))]
        except NoSuchProcess:
            return []


@contextmanager
def serve(directory: Path, bundle: Path, *options: str, **variables: str) -> Iterator[ServiceProcess]:
    """A service while the block runs; terminated at its end, and killed if that takes too long."""
    port = free_port()
    command = [sys.executable, str(ROOT / "submit_prediction.py"), "fleet", "serve", "--port", str(port), *options]
    environment = {
        "PATH": os.defpath, "HOME": str(directory), "STATE_DIR": str(directory / "state"), "LOG_DIR": str(directory / "logs"),
        "FLEET_MODEL": str(bundle), "FLEET_RATE_LIMIT": "0", **variables,
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    console = directory / "console"
    started = time.monotonic()
    with console.open("ab") as output, subprocess.Popen(
        command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
    ) as process:  # fmt: skip
        try:
            yield ServiceProcess(process, port, started, console)
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port() -> int:
    """A port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def current_closed_tick() -> int:
    """The tick before the current one, by the machine's clock."""
    return int(time.time() // STEP) - 1


class StoredHistory:
    """A store as a service leaves it: so many ticks of simulated servers, the newest just closed."""

    def __init__(self, path: Path, count: int, ticks: int, seed: int) -> None:
        self.path, self.end = path, current_closed_tick()
        self.simulator = Simulator(seed, count, "varied", STEP, start=self.end)
        self._append(self.end - ticks + 1, self.end)

    def catch_up(self) -> None:
        """Append the ticks that have passed since."""
        first, self.end = self.end + 1, current_closed_tick()
        if self.end >= first:
            self._append(first, self.end)

    def _append(self, first: int, last: int) -> None:
        names, profiles = self.simulator.names, self.simulator.profiles
        values = self.simulator.block(first, last - first + 1)
        with TickStore(self.path, step=STEP) as store:
            for tick in range(first, last + 1):
                times = np.full(len(names), float(tick * STEP))
                rows = FleetRows.from_values(names, times, values[:, tick - first], step=STEP, profiles=profiles)
                assert store.append(rows, float((tick + 1) * STEP)), store.last_error
