"""A day of ticks at accelerated speed, servers joining and leaving, and the service killed with -9 again and again.

What a sender was told is taken must be on disk after the kill, number by number, but for the tick in flight: rows live in
memory until their tick is closed, a tenth of a step after its end. What was not answered for is sent again, as an agent does.
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

from benchmarks.figures import Count, Figure
from benchmarks.fleet.randombundle import bundle_m
from benchmarks.fleet.scene import STEP
from benchmarks.fleet.serving import PATIENCE, Service, serve
from forecastd.clock import iso
from forecastd.fleet.intake import Rows
from forecastd.fleet.simulator import Simulator, feeds
from forecastd.fleet.store import TickStore
from forecastd.fleet.ticker import GRACE

DAY = 17_280  # ticks
SPEED = 60.0  # so a tick is a twelfth of a second
SERVERS = 40
AWAY = 500  # ticks that a fifth of the servers stays away: longer than the window, so they leave it and are new again
HISTORY_HOURS = 6.0  # that are kept on disk, so that a day shows whether the file is bounded
LATE = 20  # ticks sent in one feed when there are many to be sent again
PROVED = 300  # ticks that are held against the disk, of those before a kill
SLOW = 1.0  # seconds that closing a tick may take on a busy machine
SAMPLE = 20  # ticks between two looks at memory
JUDGED = 2000  # ticks that a life must have for its memory to be judged
FLAT, FLAT_FILES = 1000.0, 1.0  # kB and open files that may be more after 1,000 ticks: an allocator's noise
LEVEL = 25  # ticks that are sent in their own time before a kill, at least
LAST_LIFE = 0.4  # of the day, without a kill, to see whether memory grows


@dataclass
class Life:
    """The service from a start to its end: memory of all its processes in kB, open files and bytes on disk, by tick."""

    ticks: list[int] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)

    def look(self, tick: int, service: Service, path: Path) -> None:
        """One more sample."""
        from psutil import NoSuchProcess, Process

        try:
            running = [Process(pid) for pid in service.pids()]
            memory = sum(one.memory_info().rss for one in running) / 1000
            files = float(sum(one.num_fds() for one in running))
        except NoSuchProcess:
            return
        self.ticks.append(tick)
        self.memory.append(memory)
        self.files.append(files)
        self.disk.append(float(sum(one.stat().st_size for one in path.parent.glob(f"{path.name}*"))))

    def slope(self, of: list[float]) -> float:
        """Growth in 1,000 ticks, without the first third, in which caches fill."""
        first = len(of) // 3
        if len(of) - first < 2:
            return 0.0
        return 1000 * statistics.linear_regression(self.ticks[first:], of[first:]).slope


class Soak:
    """One service through many lives, and the sender that keeps account of what was answered for."""

    def __init__(self, place: Path, ticks: int, kills: int, seed: int) -> None:
        self.place, self.ticks = place, ticks
        self.path = place / "state" / "rehearsal" / "fleet" / "window.sqlite"
        self.since = int(time.time())
        self.first = self._tick() + 1
        self.simulator = Simulator(seed, SERVERS, "varied", STEP, start=self.first)
        chance = random.Random(seed)
        span = ticks * (1 - LAST_LIFE) / kills
        self.kills = [self.first + round(span * (at + chance.uniform(0.7, 1.0))) for at in range(kills)]
        self.waiting: list[int] = []  # ticks that are to be sent
        self.told: dict[int, float] = {}  # ticks answered for since the last kill that was looked into, and when
        self.lives: list[Life] = []
        self.lost: list[int] = []  # how many ticks at each kill
        self.seen: dict[str, int] = {"rows": 0, "again": 0, "tft": 0, "looks": 0}
        self.broken: list[str] = []

    def run(self) -> Count:
        """The whole of it."""
        variables = {"FLEET_HISTORY_HOURS": str(HISTORY_HOURS)}
        last = self.first + self.ticks - 1
        ends = [*self.kills, last]
        began, sent = time.monotonic(), self.first - 1
        for end in ends:
            with serve(
                self.place, bundle_m(), "--speed", f"{SPEED:g}", "--since", iso(self.since), **variables
            ) as service:
                service.wait_for("/status")
                if self.lives:
                    self._account()
                self.lives.append(Life())
                sent = self._live(service, sent, end)
                if end < last:
                    self.killed = self._now()
                    service.process.kill()
                    service.process.wait(PATIENCE)
                else:
                    self._end(service)
        return self._result(time.monotonic() - began)

    def _now(self) -> float:
        """The service's clock, which is computed from the machine's: unix seconds."""
        return self.since + (time.time() - self.since) * SPEED

    def _tick(self) -> int:
        return int(self._now() // STEP)

    def _live(self, service: Service, sent: int, end: int) -> int:
        """Send each tick's rows in its own time until the tick `end` is sent; gives the last one."""
        pause, life, level = threading.Event(), self.lives[-1], False
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        try:
            while sent < end or self.waiting:
                now = self._tick()
                if self.waiting == [] and not level:
                    level, end = True, max(end, now + LEVEL)
                self.waiting += range(sent + 1, min(now, end) + 1)
                sent = max(sent, min(now, end))
                if not self.waiting:
                    pause.wait(max(0.001, ((now + 1) * STEP - self._now()) / SPEED))
                    continue
                self._send(connection)
                if not life.ticks or sent - life.ticks[-1] >= SAMPLE:
                    life.look(sent, service, self.path)
                    self._look_at_forecasts(connection)
        finally:
            connection.close()
        return sent

    def _send(self, connection: http.client.HTTPConnection) -> None:
        """The oldest ticks that wait, in one feed; they wait on when it is not answered for."""
        batch = self.waiting[:LATE]
        found = [record for tick in batch for record in feeds.records(self._rows(tick))]
        body, kind = feeds.body(found, "json")
        try:
            connection.request("POST", "/feed", body, {"Content-Type": kind})
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.broken.append(f"the service did not answer a feed: {error!r}")
            return
        told = json.loads(text) if answer.status == 200 else {}
        if told.get("accepted", 0) + told.get("duplicates", 0) != len(found):
            self.broken.append(f"a feed of {len(found)} rows was answered {answer.status}: {text[:300]!r}")
        self.waiting = self.waiting[len(batch) :]
        self.told |= dict.fromkeys(batch, self._now())
        self.seen["rows"] += len(found)
        self.seen["again"] += len(batch) - 1

    def _rows(self, tick: int) -> Rows:
        """What the servers that are there at a tick tell."""
        rows = self.simulator.rows(tick)
        return rows.take(np.array([self._there(place, tick) for place in range(SERVERS)]))

    def _there(self, place: int, tick: int) -> bool:
        """A fifth of the servers is away at any time, others by and by."""
        return ((tick - self.first + 97 * place) // AWAY + place) % 5 != 0

    def _look_at_forecasts(self, connection: http.client.HTTPConnection) -> None:
        try:
            connection.request("GET", "/forecast?metrics=cpu_percent&levels=0.5&limit=1")
            answer = connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.broken.append(f"the service did not answer for a forecast: {error!r}")
            return
        if answer.status == 200:
            forecasts = json.loads(text)["forecasts"]
            self.seen["looks"] += 1
            self.seen["tft"] += bool(forecasts) and forecasts[0]["model"] == "tft"
        elif answer.status != 503:
            self.broken.append(f"a forecast was answered {answer.status}: {text[:300]!r}")

    def _account(self) -> None:
        """Hold what was answered for before the last kill against the disk: what is missing must have been in flight."""
        missing = self._missing(sorted(self.told)[-PROVED:])
        self.lost.append(len(missing))
        for tick in missing:
            late = (self.killed - due(tick, self.told[tick])) / SPEED
            if late > SLOW:
                self.broken.append(
                    f"tick {tick} was answered for, should have been kept {late:.1f} s before a kill, and is lost"
                )
        self.told.clear()
        self.waiting = sorted({*self.waiting, *missing})

    def _missing(self, ticks: list[int]) -> list[int]:
        """The ticks that are not on disk as they were sent, row by row."""
        if not ticks:
            return []
        found: dict[int, dict[str, NDArray[np.float32]]] = {}
        with TickStore(self.path, step=STEP, read_only=True) as store:
            for chunk in store.history(ticks[0] * STEP, (ticks[-1] + 1) * STEP):
                for server, moment, values in zip(chunk.servers, chunk.times.tolist(), chunk.values, strict=True):
                    found.setdefault(int(moment // STEP), {})[server] = values
        return [tick for tick in ticks if not self._is_whole(tick, found.get(tick, {}))]

    def _is_whole(self, tick: int, kept: dict[str, NDArray[np.float32]]) -> bool:
        rows = self._rows(tick)
        if not set(rows.servers) <= kept.keys():
            return False
        values = np.stack([kept[server] for server in rows.servers])
        return bool(np.allclose(values, rows.values, rtol=1e-5, atol=1e-4))  # as far as the sender rounds

    def _end(self, service: Service) -> None:
        """The day is over: everything that was answered for is on disk once its tick is closed."""
        pause = threading.Event()
        newest = max(self.told)
        while service.status()["tick"]["newest"] <= newest:
            pause.wait(0.05)
        told = service.status()
        self.evicted = SERVERS - told["servers"]["total"]
        if missing := self._missing(sorted(self.told)[-PROVED:]):
            self.broken.append(f"at the end {len(missing)} ticks are not on disk as they were sent: {missing[:5]}")
        if told["window"]["last_error"] or told["window"]["damaged"]:
            self.broken.append(f"the window was damaged, or could not be written: {told['window']}")
        service.process.terminate()
        if service.process.wait(PATIENCE) != 0:
            self.broken.append(f"SIGTERM was answered with exit code {service.process.returncode}")

    def _result(self, seconds: float) -> Count:
        life = self.lives[-1]
        memory, files = life.slope(life.memory), life.slope(life.files)
        judged = len(life.ticks) * SAMPLE >= JUDGED
        disk = [size for one in self.lives for size in one.disk]
        largest = max(disk[-len(disk) // 4 :]) / max(disk[: 3 * len(disk) // 4])
        if judged and memory > FLAT:
            self.broken.append(f"memory grows by {memory:.0f} kB in 1,000 ticks")
        if judged and files > FLAT_FILES:
            self.broken.append(f"open files grow by {files:.1f} in 1,000 ticks")
        if self.ticks > 2 * HISTORY_HOURS * 3600 / STEP and largest > 1.1:
            self.broken.append(f"the file grows: {max(disk) / 1e6:.1f} MB")
        return Count(
            f"{self.ticks:,} ticks at {SPEED:g} times the speed, {SERVERS} servers, {len(self.kills)} kills, {seconds:.0f} s",
            {
                "rows answered for": self.seen["rows"],
                "ticks that waited for the service and came late": self.seen["again"],
                "ticks lost at a kill, at most": max(self.lost, default=0),
                "ticks lost at all kills": sum(self.lost),
                "memory of the last life, kB in 1,000 ticks": round(memory) if judged else "too short a life",
                "memory at the end, MB": round(life.memory[-1] / 1000, 1),
                "open files, in 1,000 ticks": round(files, 2) if judged else "too short a life",
                "open files at the end": int(life.files[-1]),
                "file, MB at the end": round(disk[-1] / 1e6, 2), "file, MB at most": round(max(disk) / 1e6, 2),
                "servers away for the whole window at the end": self.evicted,
                "looks at a forecast": self.seen["looks"], "of these by the model": self.seen["tft"],
            },
            "nothing answered for is lost but what was in flight at a kill; memory, open files and the file are bounded",
            tuple(self.broken[:20]),
        )  # fmt: skip


def due(tick: int, answered: float) -> float:
    """When rows of a tick that were answered for at some time are written: with the first tick that closes after that."""
    closing = math.ceil(answered / STEP - GRACE) * STEP + GRACE * STEP
    return max(closing, (tick + 1 + GRACE) * STEP)


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """A day and 12 kills; quick: 200 ticks and 2."""
    with tempfile.TemporaryDirectory() as name:
        yield Soak(Path(name), 200 if quick else DAY, 2 if quick else 12, seed).run()
