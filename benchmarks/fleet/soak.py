"""A day of ticks at accelerated speed, with servers joining and leaving, and a service that is killed with -9
repeatedly.

Every row that was acknowledged must be on disk after the kill, value by value, except for the tick in progress: rows
are in memory until their tick closes, a tenth of a step after its end. Rows that were not acknowledged are sent
again, as an agent does.
"""

from __future__ import annotations

import http.client
import json
import math
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from psutil import NoSuchProcess, Process

from benchmarks.figures import Figure, PremiseCount
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import STEP
from benchmarks.fleet.serving import TIMEOUT_SECONDS, ServiceProcess, serve
from forecastd.clock import to_iso
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Simulator, feeds
from forecastd.fleet.ticker import CLOSE_STEPS, due_time
from forecastd.fleet.window.store import TickStore

DAY_TICKS = 17_280
SPEED = 60.0  # a tick takes a twelfth of a second
SERVERS = 40
ABSENCE_TICKS = 500  # for a fifth of the servers: longer than the window, so they are removed and come back as new
HISTORY_HOURS = 6.0  # on disk, so that a day shows whether the file is bounded
MAX_TICKS_PER_FEED = 20  # when many ticks must be sent again
CHECKED_TICKS = 300  # ticks before a kill that are compared with the disk
CLOSE_TOLERANCE_SECONDS = 1.0  # for closing a tick on a busy machine
SAMPLE_TICKS = 20  # ticks between two samples
MIN_TICKS_FOR_SLOPE = 2000  # ticks that a run needs for a valid slope
MAX_MEMORY_SLOPE, MAX_FILES_SLOPE = 1000.0, 1.0  # kB and open files per 1,000 ticks: noise of the allocator
MIN_LIVE_TICKS = 25  # minimum number of ticks sent on time before a kill
LAST_RUN_SHARE = 0.4  # of the day, without a kill, to measure memory growth


@dataclass
class ServiceRun:
    """The service from a start to its end: memory of all processes in kB, open files and bytes on disk, by tick."""

    ticks: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)

    def sample(self, tick: int, service: ServiceProcess, path: Path) -> None:
        """Take one sample."""
        try:
            running = [Process(pid) for pid in service.pids()]
            memory = sum(item.memory_info().rss for item in running) / 1000
            files = float(sum(item.num_fds() for item in running))
        except NoSuchProcess:
            return
        self.ticks.append(tick)
        self.memory.append(memory)
        self.files.append(files)
        self.disk.append(float(sum(item.stat().st_size for item in path.parent.glob(f"{path.name}*"))))

    def slope(self, samples: list[float]) -> float:
        """Growth per 1,000 ticks, without the first third, in which caches fill."""
        first = len(samples) // 3
        if len(samples) - first < 2:
            return 0.0
        return 1000 * statistics.linear_regression(self.ticks[first:], samples[first:]).slope


class Soak:
    """One service through many runs, and the sender that remembers what was acknowledged."""

    def __init__(self, directory: Path, ticks: int, kills: int, seed: int) -> None:
        self.directory, self.ticks = directory, ticks
        self.path = directory / "state" / "rehearsal" / "fleet" / "window.sqlite"
        self.since = int(time.time())
        self.first = self._tick() + 1
        self.simulator = Simulator(seed, SERVERS, "varied", STEP, start=self.first)
        generator = random.Random(seed)
        span = ticks * (1 - LAST_RUN_SHARE) / kills
        self.kills = [self.first + round(span * (index + generator.uniform(0.7, 1.0))) for index in range(kills)]
        self.pending: list[int] = []  # ticks to send
        self.acknowledged: dict[int, float] = {}  # tick -> when, since the last kill
        self.runs: list[ServiceRun] = []
        self.lost_ticks: list[int] = []  # number of ticks lost at each kill
        self.counts: dict[str, int] = {"rows": 0, "late": 0, "tft": 0, "samples": 0}
        self.failures: list[str] = []

    def run(self) -> PremiseCount:
        """Run the whole benchmark."""
        variables = {"FLEET_HISTORY_HOURS": str(HISTORY_HOURS)}
        last = self.first + self.ticks - 1
        ends = [*self.kills, last]
        started, last_sent = time.monotonic(), self.first - 1
        for end in ends:
            with serve(
                self.directory, bundle_m(), "--speed", f"{SPEED:g}", "--since", to_iso(self.since), **variables
            ) as service:
                service.wait_for("/status")
                if self.runs:
                    self._check_last_kill()
                self.runs.append(ServiceRun())
                last_sent = self._run_until(service, last_sent, end)
                if end < last:
                    self.killed_at = self._now()
                    service.process.kill()
                    service.process.wait(TIMEOUT_SECONDS)
                else:
                    self._finish(service)
        return self._result(time.monotonic() - started)

    def _now(self) -> float:
        """The service's clock, derived from the machine's: unix seconds."""
        return self.since + (time.time() - self.since) * SPEED

    def _tick(self) -> int:
        return int(self._now() // STEP)

    def _run_until(self, service: ServiceProcess, last_sent: int, end: int) -> int:
        """Send each tick's rows on time until the tick `end` is sent; returns the last one."""
        pause, run, is_live = threading.Event(), self.runs[-1], False
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=TIMEOUT_SECONDS)
        try:
            while last_sent < end or self.pending:
                now = self._tick()
                if self.pending == [] and not is_live:
                    is_live, end = True, max(end, now + MIN_LIVE_TICKS)
                self.pending += range(last_sent + 1, min(now, end) + 1)
                last_sent = max(last_sent, min(now, end))
                if not self.pending:
                    pause.wait(max(0.001, ((now + 1) * STEP - self._now()) / SPEED))
                    continue
                self._send(connection)
                if not run.ticks or last_sent - run.ticks[-1] >= SAMPLE_TICKS:
                    run.sample(last_sent, service, self.path)
                    self._sample_forecast(connection)
        finally:
            connection.close()
        return last_sent

    def _send(self, connection: http.client.HTTPConnection) -> None:
        """Send the oldest pending ticks in one feed; they stay pending if it is not acknowledged."""
        batch = self.pending[:MAX_TICKS_PER_FEED]
        records = [
            record for tick in batch for record in feeds.encode_records(feeds.to_plain_records(self._rows(tick)))
        ]
        body, kind = feeds.encode_body(records, "json")
        try:
            connection.request("POST", "/feed", body, {"Content-Type": kind})
            reply = connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.failures.append(f"no response to a feed: {error!r}")
            return
        response = json.loads(text) if reply.status == 200 else {}
        if response.get("accepted", 0) + response.get("duplicates", 0) != len(records):
            self.failures.append(
                f"a feed of {len(records)} rows was answered with status {reply.status}: {text[:300]!r}"
            )
        self.pending = self.pending[len(batch) :]
        self.acknowledged |= dict.fromkeys(batch, self._now())
        self.counts["rows"] += len(records)
        self.counts["late"] += len(batch) - 1

    def _rows(self, tick: int) -> FleetRows:
        """The rows of the servers that are present at a tick."""
        rows = self.simulator.rows(tick)
        return rows.filter(np.array([self._is_present(index, tick) for index in range(SERVERS)]))

    def _is_present(self, index: int, tick: int) -> bool:
        """A fifth of the servers is absent at any time, in rotation."""
        return ((tick - self.first + 97 * index) // ABSENCE_TICKS + index) % 5 != 0

    def _sample_forecast(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/forecast?metrics=cpu_percent&levels=0.5&limit=1")
            reply = connection.getresponse()
            text = reply.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.failures.append(f"no response to a forecast request: {error!r}")
            return
        if reply.status == 200:
            forecasts = json.loads(text)["forecasts"]
            self.counts["samples"] += 1
            self.counts["tft"] += bool(forecasts) and forecasts[0]["model"] == "tft"
        elif reply.status != 503:
            self.failures.append(f"a forecast request was answered with status {reply.status}: {text[:300]!r}")

    def _check_last_kill(self) -> None:
        """Compare what was acknowledged before the last kill with the disk: only ticks in progress may be missing."""
        missing = self._missing(sorted(self.acknowledged)[-CHECKED_TICKS:])
        self.lost_ticks.append(len(missing))
        for tick in missing:
            late = (self.killed_at - written_by(tick, self.acknowledged[tick])) / SPEED
            if late > CLOSE_TOLERANCE_SECONDS:
                self.failures.append(
                    f"tick {tick} was acknowledged and due on disk {late:.1f} s before a kill, but is lost"
                )
        self.acknowledged.clear()
        self.pending = sorted({*self.pending, *missing})

    def _missing(self, ticks: list[int]) -> list[int]:
        """The ticks that are not on disk as they were sent, row by row."""
        if not ticks:
            return []
        stored: dict[int, dict[str, NDArray[np.float32]]] = {}
        with TickStore(self.path, step=STEP, read_only=True) as store:
            for chunk in store.history(ticks[0] * STEP, (ticks[-1] + 1) * STEP):
                for server, time, values in zip(chunk.servers, chunk.times.tolist(), chunk.values, strict=True):
                    stored.setdefault(int(time // STEP), {})[server] = values
        return [tick for tick in ticks if not self._is_whole(tick, stored.get(tick, {}))]

    def _is_whole(self, tick: int, stored: dict[str, NDArray[np.float32]]) -> bool:
        rows = self._rows(tick)
        if not set(rows.servers) <= stored.keys():
            return False
        values = np.stack([stored[server] for server in rows.servers])
        return bool(np.allclose(values, rows.values, rtol=1e-5, atol=1e-4))  # the sender's rounding

    def _finish(self, service: ServiceProcess) -> None:
        """The end of the day: everything acknowledged is on disk once its tick is closed."""
        pause = threading.Event()
        newest = max(self.acknowledged)
        while service.status()["tick"]["newest"] <= newest:
            pause.wait(0.05)
        status = service.status()
        self.absent_servers = SERVERS - status["servers"]["total"]
        if missing := self._missing(sorted(self.acknowledged)[-CHECKED_TICKS:]):
            self.failures.append(f"at the end {len(missing)} ticks on disk differ from those sent: {missing[:5]}")
        if status["window"]["last_error"] or status["window"]["damaged"]:
            self.failures.append(f"the window was damaged, or could not be written: {status['window']}")
        service.process.terminate()
        if service.process.wait(TIMEOUT_SECONDS) != 0:
            self.failures.append(f"SIGTERM was answered with exit code {service.process.returncode}")

    def _result(self, seconds: float) -> PremiseCount:
        last_run = self.runs[-1]
        memory, files = last_run.slope(last_run.memory), last_run.slope(last_run.files)
        has_slope = len(last_run.ticks) * SAMPLE_TICKS >= MIN_TICKS_FOR_SLOPE
        disk = [size for run in self.runs for size in run.disk]
        largest = max(disk[-len(disk) // 4 :]) / max(disk[: 3 * len(disk) // 4])
        if has_slope and memory > MAX_MEMORY_SLOPE:
            self.failures.append(f"memory grows by {memory:.0f} kB in 1,000 ticks")
        if has_slope and files > MAX_FILES_SLOPE:
            self.failures.append(f"open files grow by {files:.1f} in 1,000 ticks")
        if self.ticks > 2 * HISTORY_HOURS * 3600 / STEP and largest > 1.1:
            self.failures.append(f"the file grows: {max(disk) / 1e6:.1f} MB")
        return PremiseCount(
            f"{self.ticks:,} ticks at {SPEED:g} times the speed, {SERVERS} servers, {len(self.kills)} kills, {seconds:.0f} s",
            {
                "acknowledged rows": self.counts["rows"],
                "ticks sent late": self.counts["late"],
                "maximum of ticks lost at a kill": max(self.lost_ticks, default=0),
                "ticks lost at all kills": sum(self.lost_ticks),
                "memory growth of the last run, kB per 1,000 ticks": round(memory) if has_slope else "run too short",
                "memory at the end, MB": round(last_run.memory[-1] / 1000, 1),
                "growth of open files per 1,000 ticks": round(files, 2) if has_slope else "run too short",
                "open files at the end": int(last_run.files[-1]),
                "file, MB at the end": round(disk[-1] / 1e6, 2), "file, MB at most": round(max(disk) / 1e6, 2),
                "servers absent for the whole window at the end": self.absent_servers,
                "forecasts sampled": self.counts["samples"], "of these by the model": self.counts["tft"],
            },
            "no acknowledged row is lost except those in progress at a kill; memory, open files and the file are bounded",
            tuple(self.failures[:20]),
        )  # fmt: skip


def written_by(tick: int, acknowledged_at: float) -> float:
    """When rows of a tick acknowledged at this time are written: with the first tick that closes after that."""
    first_closed = math.ceil(acknowledged_at / STEP - CLOSE_STEPS)
    return due_time(max(first_closed, tick), STEP)


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """A day and 12 kills; quick: 200 ticks and 2 kills."""
    with tempfile.TemporaryDirectory() as name:
        yield Soak(Path(name), 200 if quick else DAY_TICKS, 2 if quick else 12, seed).run()
