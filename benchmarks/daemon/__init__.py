"""Benchmarks of the daemon: how soon it notices a window, what it costs while idle, and a long run with faults.

Each daemon is a separate process on a local node in this process. `python -m benchmarks.daemon PART...` runs some
parts.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("detection", "idle", "soak")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; yields the results of each part when it ends."""
    log = logging.getLogger("forecastd")
    level = log.level
    log.setLevel(logging.ERROR)  # failing endpoints cause many warnings
    try:
        for part in parts:
            yield from importlib.import_module(f"benchmarks.daemon.{part}").run(quick=quick, seed=seed)
    finally:
        log.setLevel(level)
