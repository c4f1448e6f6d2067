"""Benchmark of supervision: no job lost under random faults, hangs detected in time, no false alarms, and its cost.

Every random choice comes from one seed, which is printed. Times are taken when the pool publishes its events,
from the monotonic clock. `python -m benchmarks.supervise PART...` runs some of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("failover", "detection", "costs", "healthy", "faults")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; yield the results of each part as soon as it ends."""
    log = logging.getLogger("forecastd.supervise")
    level = log.level
    log.setLevel(logging.CRITICAL)  # hung children log a lot
    try:
        for part in parts:
            yield from importlib.import_module(f"benchmarks.supervise.{part}").run(quick=quick, seed=seed)
    finally:
        log.setLevel(level)
