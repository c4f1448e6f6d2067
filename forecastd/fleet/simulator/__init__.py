"""A simulated fleet: 14 realistic metrics of any number of servers, at any tick.

It is the source of `fleet simulate`, of `fleet serve --demo` and of the training data of the demo model.

Invariant: it has no state. The values of a tick depend on the seed and the tick only, so a restart, a backfill and a
training run see the same series.
"""

from forecastd.fleet.simulator.faults import SCENARIOS, Scenario
from forecastd.fleet.simulator.fleet import Simulator

__all__ = ["SCENARIOS", "Scenario", "Simulator"]
