"""What the daemon is held to: every window accounted for over a long time with faults, cheap to keep, quick to notice.

Every daemon here is a process of its own on a local node in this one. `python -m benchmarks.daemon PART...` runs some of it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Sequence

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("detection", "idle", "soak")


def run(*, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; each one's results come as soon as it is through."""
    log = logging.getLogger("forecastd")
    level = log.level
    log.setLevel(logging.ERROR)  # of endpoints that fail there is plenty to tell
    try:
        for part in parts:
            yield from importlib.import_module(f"benchmarks.daemon.{part}").run(quick=quick, seed=seed)
    finally:
        log.setLevel(level)
