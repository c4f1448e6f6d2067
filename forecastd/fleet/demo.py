"""Made-up servers for `fleet serve --demo`: the simulator in the same process, in the place of agents that send.

The one thing to know before changing it: nothing of it is ever kept beside real data. The window is filled with the past
that these servers would have had, so that the model forecasts at once.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from forecastd.clock import seconds_until
from forecastd.daemon.guarded import guarded
from forecastd.fleet.intake import Rows
from forecastd.fleet.service import Fleet
from forecastd.fleet.simulator import Scenario, Simulator

LONGEST_WAIT = 1.0  # seconds; a clock may be set meanwhile
SAVED_AT_ONCE = 16  # ticks of the past
LAST_SECONDS = 0.2  # for the tick that is being made up


@dataclass(frozen=True)
class Demo:
    """How many servers are made up, and what happens to them."""

    servers: int = 20
    scenario: Scenario = "degrading"
    seed: int = 1


class DemoFeed:
    """Feeds a fleet. Use as a context manager, after `fill`."""

    def __init__(self, fleet: Fleet, demo: Demo) -> None:
        """Raises NeedsHuman when there is no such scenario."""
        self._fleet = fleet
        self._next = int(fleet.clock.now() // fleet.step)  # the open tick
        self._simulator = Simulator(demo.seed, demo.servers, demo.scenario, fleet.step, start=self._next)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo", daemon=True)

    def fill(self) -> None:
        """The past: as many ticks as the window keeps."""
        window, simulator, step = self._fleet.memory.window, self._simulator, self._fleet.step
        first = self._next - window.keep
        window.advance(self._next - 1)
        values = simulator.block(first, window.keep)
        for place in range(window.keep):
            times = [float((first + place) * step)] * len(simulator.names)
            rows = Rows.of(simulator.names, times, values[:, place], step=step, profiles=simulator.profiles)
            self._fleet.put(rows)
            if place % SAVED_AT_ONCE == 0:
                self._fleet.memory.save()

    def __enter__(self) -> DemoFeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(LAST_SECONDS)

    def _run(self) -> None:
        fleet = self._fleet
        while True:
            wait = seconds_until(fleet.clock, self._next * fleet.step)
            if self._stop.wait(min(max(wait, 0.0), LONGEST_WAIT)):
                return
            if wait <= 0:
                guarded("the demo", self._feed)

    def _feed(self) -> None:
        """The rows of a tick, as it begins; ticks that were missed while the process stood still are gone."""
        tick, self._next = self._next, max(self._next + 1, int(self._fleet.clock.now() // self._fleet.step))
        self._fleet.put(self._simulator.rows(tick))
