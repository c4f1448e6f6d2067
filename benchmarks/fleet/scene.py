"""The common ground of the fleet benchmarks: simulated servers, their rolling window, and the size of the measured
model.

Model M is the one of the measurements in the documentation. Its weights are random, so its forecasts mean nothing,
but its cost is that of a trained model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import METRICS, MetricDefinition
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.window.window import FleetWindow, WindowBlock

STEP = 5  # seconds per tick
WINDOW_TICKS = 360  # ticks in memory, as in the service
FIRST_FORECAST_TIME = 1_793_880_000  # unix seconds of the first forecast: a Thursday, 12:00 UTC
Record = dict[str, Any]
LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
THREADS = 2  # for the numeric work of both sides


@dataclass(frozen=True)
class ModelSize:
    """The size of a model."""

    hidden: int = 32
    continuous: int = 16
    heads: int = 4
    layers: int = 2
    encoder: int = 288
    minimum: int = 72
    horizon: int = 96
    levels: tuple[float, ...] = LEVELS
    metrics: tuple[MetricDefinition, ...] = METRICS
    cycles: tuple[str, ...] = ("day", "week")

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics' names."""
        return tuple(metric.name for metric in self.metrics)


MODEL_M = ModelSize()


class SimulatedServers:
    """Simulated servers with a full rolling window that advances tick by tick.

    `tick`: the newest closed one; `values`: the values of the window, float32 `[S, WINDOW_TICKS + ahead, M]`.
    """

    def __init__(self, count: int, *, seed: int, ahead: int = 0) -> None:
        """`ahead`: how many ticks the window can advance."""
        self.tick = FIRST_FORECAST_TIME // STEP
        self.simulator = Simulator(seed, count, "varied", STEP, start=self.tick)
        self.names, self.profiles = self.simulator.names, self.simulator.profiles
        self._first = self.tick - WINDOW_TICKS + 1
        self.values = self.simulator.block(self._first, WINDOW_TICKS + ahead)
        self.window = FleetWindow(STEP, WINDOW_TICKS, max(count, 1))
        self.window.advance(self._first)
        for tick in range(self._first, self.tick + 1):
            self.window.put(self.rows(tick))
            self.window.advance(tick)

    def rows(self, tick: int) -> FleetRows:
        """The rows of all servers for a tick."""
        times = np.full(len(self.names), float(tick * STEP))
        return FleetRows.from_values(
            self.names, times, self.values[:, tick - self._first], step=STEP, profiles=self.profiles
        )

    def advance(self) -> None:
        """Put the rows of the next tick and close it."""
        self.tick += 1
        self.window.put(self.rows(self.tick))
        self.window.advance(self.tick)

    def block(self, length: int) -> WindowBlock:
        """The newest `length` ticks."""
        return self.window.block(self.tick, length)

    def history(self, length: int) -> NDArray[np.float32]:
        """The simulator's values of these ticks: `[S, length, M]`."""
        last = self.tick - self._first + 1
        return self.values[:, last - length : last]

    def records(self, size: ModelSize) -> list[Record]:
        """The rows as other daemons store them: one record per server and tick, tick by tick."""
        values = self.history(size.encoder).astype(np.float64)
        first, records = self.tick - size.encoder + 1, []
        for offset in range(size.encoder):
            for index, (server, profile) in enumerate(zip(self.names, self.profiles, strict=True)):
                metrics = dict(zip(size.names, values[index, offset].tolist(), strict=False))
                records.append({"timestamp": (first + offset) * STEP, "server": server, "profile": profile, **metrics})
        return records
