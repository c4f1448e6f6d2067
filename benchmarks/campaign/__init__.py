"""The campaign that proves exactly once: kills, endpoints, the official worker's cases, a race, a failing disk, the cost.

Every random choice comes from one seed, which is printed. A count whose premise does not hold carries its evidence.
`python -m benchmarks.campaign PART...` runs some of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("kills", "endpoints", "official", "race", "disk", "cost")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; each one's results come as soon as it is through."""
    logging.getLogger("forecastd").setLevel(logging.ERROR)  # of endpoints that fail there is plenty to tell
    for part in parts:
        yield from importlib.import_module(f"benchmarks.campaign.{part}").run(quick=quick, seed=seed)
