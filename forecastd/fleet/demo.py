"""Made-up servers for `fleet serve --demo`: the simulator in the same process, in the place of agents that send.

The one thing to know before changing it: nothing of it is ever kept beside real data. The window is filled with the past
that these servers would have had, so that the model forecasts at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from forecastd.clock import seconds_until
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Scenario, Simulator
from forecastd.runtime.unexpected import run_guarded

MAX_WAIT_SECONDS = 1.0  # seconds; a clock may be set meanwhile
TICKS_PER_SAVE = 16  # ticks of the past
JOIN_SECONDS = 0.2  # for the tick that is being made up


@dataclass(frozen=True)
class DemoOptions:
    """How many servers are made up, and what happens to them."""

    servers: int = 20
    scenario: Scenario = "degrading"
    seed: int = 1


class DemoFeed:
    """Feeds a fleet. Use as a context manager, after `fill`."""

    def __init__(self, fleet: Fleet, options: DemoOptions) -> None:
        """Raises NeedsHuman when there is no such scenario."""
        self._fleet = fleet
        self._next_tick = int(fleet.clock.now() // fleet.step)  # the open tick
        self._simulator = Simulator(options.seed, options.servers, options.scenario, fleet.step, start=self._next_tick)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo", daemon=True)

    def fill_window(self) -> None:
        """The past: as many ticks as the window keeps."""
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

    def __enter__(self) -> DemoFeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
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
        """The rows of a tick, as it begins; ticks that were missed while the process stood still are gone."""
        tick, self._next_tick = (
            self._next_tick,
            max(self._next_tick + 1, int(self._fleet.clock.now() // self._fleet.step)),
        )
        self._fleet.put(self._simulator.rows(tick))
