"""Simulated servers for `fleet serve --demo`: a simulator in the same process replaces the agents that send rows.

Invariant: simulated rows are never stored together with real data. The window is filled with a simulated history first, so
that the model can forecast at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.fleet.fleet import Fleet
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.simulator import Scenario, Simulator
from forecastd.fleet.ticker import Ticker
from forecastd.runtime.closeable import Closeable

TICKS_PER_SAVE = 16  # when the history is filled
JOIN_SECONDS = 0.2  # for a tick that is being simulated


@dataclass(frozen=True)
class DemoOptions:
    """The number of simulated servers, and what happens to them."""

    servers: int = 20
    scenario: Scenario = "degrading"
    seed: int = 1


class DemoFeed(Closeable):
    """Puts simulated rows into a fleet: the rows of each tick when it begins."""

    def __init__(self, fleet: Fleet, options: DemoOptions) -> None:
        """Raises NeedsHuman if the scenario is unknown."""
        self._window, step = fleet.window, fleet.step
        self._open_tick = int(fleet.clock.now() // step)
        self._simulator = Simulator(options.seed, options.servers, options.scenario, step, start=self._open_tick)
        self._ticker = Ticker("the demo", fleet.clock, step, self._put_rows, self._put_rows, delay=0.0)

    def start(self) -> None:
        """Fill the window with as many past ticks as it retains, then begin."""
        window, simulator, open_tick = self._window.memory, self._simulator, self._open_tick
        window.advance(open_tick - 1)
        ticks = range(open_tick - window.retained_ticks, open_tick + 1)
        values = simulator.block(ticks.start, len(ticks))
        for index, tick in enumerate(ticks):
            times = [float(tick * simulator.step)] * len(simulator.names)
            rows = FleetRows.from_values(
                simulator.names, times, values[:, index], step=simulator.step, profiles=simulator.profiles
            )
            self._window.put(rows)
            if index % TICKS_PER_SAVE == 0:
                self._window.save()
        self._ticker.start()

    def close(self) -> None:
        self._ticker.request_stop()
        self._ticker.join(JOIN_SECONDS)

    def _put_rows(self, tick: int) -> None:
        self._window.put(self._simulator.rows(tick))
