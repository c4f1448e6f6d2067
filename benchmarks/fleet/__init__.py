"""What the fleet is held to: a forecast of all servers within the tick, warm at once after a restart, nothing lost.

`python -m benchmarks.fleet PART...` runs some of it.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.figures import Figure, PremiseCount

SEED = 20260301
PARTS = ("forecast", "restart", "persistence", "ingest", "soak", "quality")


def run(
    *, quick: bool, parts: Sequence[str] = PARTS, seed: int = SEED, data: str | None = None, others: str | None = None
) -> Iterator[Figure | PremiseCount]:
    """Run the parts in turn; each one's results come as soon as it is through.

    `data`: a CSV of real metrics for the part on quality; `others`: the interpreter that has other libraries.
    """
    log = logging.getLogger("forecastd")
    level = log.level
    log.setLevel(logging.ERROR)
    part_options: Mapping[str, Mapping[str, str | None]] = {"forecast": {"others": others}, "quality": {"data": data}}
    try:
        for part in parts:
            load_before, cpu_before = os.getloadavg()[0], cpu_time()
            module = importlib.import_module(f"benchmarks.fleet.{part}")
            yield from module.run(quick=quick, seed=seed, **part_options.get(part, {}))
            stolen, total = (after - then for after, then in zip(cpu_time(), cpu_before, strict=True))
            yield PremiseCount(
                f"{part}: what it was measured under",
                {"processors": os.cpu_count() or 0, "load average before": round(load_before, 1),
                 "load average after": round(os.getloadavg()[0], 1),
                 "of the processors' time taken by other machines, %": round(100 * stolen / max(total, 1))},
                "stated, not asked for",
            )  # fmt: skip
    finally:
        log.setLevel(level)


def cpu_time() -> tuple[int, int]:
    """What the host took away from this machine, and all time there was, since it was started; proc_stat(5)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)
