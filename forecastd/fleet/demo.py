"""Simulated servers for `fleet serve --demo`: a simulator in the same process replaces the agents that send rows.

Invariant: simulated rows are never stored together with real data. The window is filled with a simulated history first, so
that the model can forecast at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from forecastd.clock import seconds_until
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Scenario, Simulator
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.unexpected import run_guarded

MAX_WAIT_SECONDS = 1.0  # the clock may be set while the thread waits
TICKS_PER_SAVE = 16  # when the history is filled
JOIN_SECONDS = 0.2  # for a tick that is being simulated


@dataclass(frozen=True)
class DemoOptions:
    """The number of simulated servers, and what happens to them."""

    servers: int = 20
    scenario: Scenario = "degrading"
    seed: int = 1


class DemoFeed(Closeable):
    """Puts simulated rows into a fleet. Use as a context manager, after `fill_window`."""

    def __init__(self, fleet: Fleet, options: DemoOptions) -> None:
        """Raises NeedsHuman if the scenario is unknown."""
        self._fleet = fleet
        self._next_tick = int(fleet.clock.now() // fleet.step)  # the open tick
        self._simulator = Simulator(options.seed, options.servers, options.scenario, fleet.step, start=self._next_tick)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo", daemon=True)

    def fill_window(self) -> None:
        """Fill the window with as many past ticks as it retains."""
        window, simulator, step = self._fleet.window.memory, self._simulator, self._fleet.step
        first = self._next_tick - window.retained_ticks
        window.advance(self._next_tick - 1)
        values = simulator.block(first, window.retained_ticks)
        for index in range(window.retained_ticks):
            times = [float((first + index) * step)] * len(simulator.names)
            rows = FleetRows.from_values(
                simulator.names, times, values[:, index], step=step, profiles=simulator.profiles
            )
            self._fleet.put(rows)
            if index % TICKS_PER_SAVE == 0:
                self._fleet.window.save()

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)

    def _run(self) -> None:
        fleet = self._fleet
        while True:
            wait = seconds_until(fleet.clock, self._next_tick * fleet.step)
            if self._stop.wait(min(max(wait, 0.0), MAX_WAIT_SECONDS)):
                return
            if wait <= 0:
                run_guarded("the demo", self._put_next_tick)

    def _put_next_tick(self) -> None:
        """Put the rows of a tick when it begins. Ticks missed while the process was paused are skipped."""
        tick, self._next_tick = (
            self._next_tick,
            max(self._next_tick + 1, int(self._fleet.clock.now() // self._fleet.step)),
        )
        self._fleet.put(self._simulator.rows(tick))
