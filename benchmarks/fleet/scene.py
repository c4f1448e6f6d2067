"""What the fleet's benchmarks run on: made-up servers, their rolling window, and a model of the size that is measured.

Model M is the one of the measurements in the documentation: what it says is of no use, for its weights are random, but it
costs what a trained one costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRICS, Metric
from forecastd.fleet.grid import Block, FleetWindow
from forecastd.fleet.intake import Rows
from forecastd.fleet.simulator import Simulator

STEP = 5  # seconds a tick
KEEP = 360  # ticks in memory, as the service keeps them
NOON = 1_793_880_000  # unix seconds of the first forecast: a Thursday, 12:00 UTC
Record = dict[str, Any]
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
THREADS = 2  # of everybody's numeric work


@dataclass(frozen=True)
class Size:
    """The size of a model; of the metrics the first `metrics` of the contract."""

    hidden: int = 32
    continuous: int = 16
    heads: int = 4
    layers: int = 2
    encoder: int = 288
    minimum: int = 72
    horizon: int = 96
    levels: tuple[float, ...] = LEVELS
    metrics: tuple[Metric, ...] = METRICS
    cycles: tuple[str, ...] = ("day", "week")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names."""
        return tuple(metric.name for metric in self.metrics)


MODEL_M = Size()


class Servers:
    """Made-up servers with a full rolling window that moves on tick by tick.

    `tick` is the newest closed one, `values` what the window was filled with: float32 `[S, KEEP + ahead, M]`.
    """

    def __init__(self, count: int, *, seed: int, ahead: int = 0) -> None:
        """`ahead`: how many ticks the window can be moved on by."""
        self.tick = NOON // STEP
        self.simulator = Simulator(seed, count, "varied", STEP, start=self.tick)
        self.names, self.profiles = self.simulator.names, self.simulator.profiles
        self._first = self.tick - KEEP + 1
        self.values = self.simulator.block(self._first, KEEP + ahead)
        self.window = FleetWindow(STEP, KEEP, max(count, 1))
        self.window.advance(self._first)
        for tick in range(self._first, self.tick + 1):
            self.window.put(self.rows(tick))
            self.window.advance(tick)

    def rows(self, tick: int) -> Rows:
        """What all servers told of a tick."""
        times = np.full(len(self.names), float(tick * STEP))
        return Rows.of(self.names, times, self.values[:, tick - self._first], step=STEP, profiles=self.profiles)

    def move_on(self) -> None:
        """The next tick came in and is closed."""
        self.tick += 1
        self.window.put(self.rows(self.tick))
        self.window.advance(self.tick)

    def block(self, length: int) -> Block:
        """The newest `length` ticks."""
        return self.window.block(self.tick, length)

    def past(self, length: int) -> NDArray[np.float32]:
        """The same numbers as the simulator gave them: `[S, length, M]`."""
        last = self.tick - self._first + 1
        return self.values[:, last - length : last]

    def records(self, size: Size) -> list[Record]:
        """The rows as other daemons keep them: a record for each server and tick, tick by tick."""
        values = self.past(size.encoder).astype(np.float64)
        first, found = self.tick - size.encoder + 1, []
        for at in range(size.encoder):
            for place, (server, profile) in enumerate(zip(self.names, self.profiles, strict=True)):
                told = dict(zip(size.names, values[place, at].tolist(), strict=False))
                found.append({"timestamp": (first + at) * STEP, "server": server, "profile": profile, **told})
        return found
