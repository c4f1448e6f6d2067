"""Benchmarks of the fleet: a forecast of all servers within a tick, a warm restart, and no lost rows.

`python -m benchmarks.fleet PART...` runs some parts.
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
    """Run the parts in turn and yield the results of each as soon as it is finished.

    `data`: a CSV of real metrics for the part `quality`; `others`: the interpreter that has the other libraries.
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
                f"{part}: conditions",
                {"processors": os.cpu_count() or 0, "load average before": round(load_before, 1),
                 "load average after": round(os.getloadavg()[0], 1),
                 "CPU time stolen by other machines, %": round(100 * stolen / max(total, 1))},
                "information only",
            )  # fmt: skip
    finally:
        log.setLevel(level)


def cpu_time() -> tuple[int, int]:
    """CPU time stolen by the hypervisor, and total CPU time, since boot; proc_stat(5)."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return fields[7], sum(fields)
