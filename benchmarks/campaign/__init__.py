"""The campaign that checks exactly-once submission: kills, endpoint faults, the official worker's cases, a race, disk
faults, cost.

One seed decides every random choice, and it is printed. A count whose premise does not hold carries its evidence. To
run some of the parts: `python -m benchmarks.campaign PART...`.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("kills", "endpoints", "official", "race", "disk", "cost")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn. The results of a part are yielded as soon as it has finished."""
    logging.getLogger("forecastd").setLevel(logging.ERROR)  # endpoints fail all the time here
    for part in parts:
        yield from importlib.import_module(f"benchmarks.campaign.{part}").run(quick=quick, seed=seed)
