"""What supervision is held to: nothing lost under random faults, hangs found in time, no false alarm, and what it costs.

Every random choice comes from one seed, which is printed. Times are read where the pool tells its events, on the machine's
monotonic clock. `python -m benchmarks.supervise PART...` runs some of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("handover", "detection", "costs", "healthy", "faults")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; each one's results come as soon as it is through."""
    log = logging.getLogger("forecastd.supervise")
    level = log.level
    log.setLevel(logging.CRITICAL)  # of children that hang there is plenty to tell
    try:
        for part in parts:
            yield from importlib.import_module(f"benchmarks.supervise.{part}").run(quick=quick, seed=seed)
    finally:
        log.setLevel(level)
