"""A fleet that does not exist: 14 metrics of any number of servers, at any tick, that look and behave like real ones.

It is the source of `fleet simulate`, of `fleet serve --demo` and of what the demo model is trained on. The one thing to know
before changing it: it has no state. What it says of a tick depends on the seed and the tick alone, so a restart, a backfill
and a training run see the same series.
"""

from forecastd.fleet.simulator.faults import SCENARIOS, Scenario
from forecastd.fleet.simulator.fleet import Simulator

__all__ = ["SCENARIOS", "Scenario", "Simulator"]
