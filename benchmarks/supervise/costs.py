"""The cost of supervision: time per forecast, memory, and CPU while idle; and that nothing is loaded twice.

The peer is the same engine in the parent's process, where no deadline could be enforced.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.figures import Figure, PremiseCount
from benchmarks.processes import measure, python

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as in the children
NO_TARGET = "no target"


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """400 forecasts in turns and 30 s of waiting; quick: 40 and 4 s. `seed` is not used."""
    del seed
    yield from _overhead(40 if quick else 400)
    forecasts, seconds = (10, 4) if quick else (50, 30)
    no_standby = _measure_parent("supervised", 0, forecasts, seconds)
    one_standby = _measure_parent("supervised", 1, forecasts, seconds)
    unsupervised = _measure_parent("unsupervised", forecasts)["processes"][0]
    yield _count_loads(forecasts, no_standby, one_standby)
    for name, key in (("peak memory", "peak"), ("share of memory", "share")):
        for standbys, result in ((0, no_standby), (1, one_standby)):
            parent, *children = (process[key] for process in result["processes"])
            title = (
                f"{name}, {standbys} standbys: parent {parent:.0f} and {' + '.join(f'{c:.0f}' for c in children)} MB"
            )
            yield Figure(title, parent + sum(children), unsupervised[key], "MB", "the engine in the parent", NO_TARGET)
    parent, *children = (process["idle"] for process in one_standby["processes"])
    target = "a thousandth of a core: ratio >= 1000"
    yield Figure(f"idle parent, over {seconds} s", parent, 3600.0, "CPU s per hour", "a core", target)
    yield Figure(f"idle child, over {seconds} s", max(children), 3600.0, "CPU s per hour", "a core", target)


def _measure_parent(*arguments: object) -> Any:
    command = python("-m", "benchmarks.supervise.fresh_parent", *map(str, arguments))
    return json.loads(measure(command, ONE_THREAD).stdout)


def _overhead(forecasts: int) -> Iterator[Figure]:
    times = _measure_parent("compare", forecasts)
    inside, ours = times["in process"], times["supervised"]
    extra = statistics.median(ours) - statistics.median(inside)
    minimum_extra = min(ours) - min(inside)  # without contention for the CPU
    name = (
        f"forecast by a ready child, median of {forecasts}: {extra:.1f} ms more, {minimum_extra:.1f} ms for the fastest"
    )
    yield Figure(name, statistics.median(ours), statistics.median(inside), "ms", "the same call in process", NO_TARGET)


def _count_loads(forecasts: int, *results: Any) -> PremiseCount:
    """Ready children start no process, read no file and map no library; the parent imports nothing heavy."""
    counts: dict[str, int | str] = {"forecasts": forecasts * len(results)}
    counts["processes started"] = sum(result["launches"] for result in results)
    counts["files read, by system calls of the children"] = sum(result["reads"] for result in results)
    counts["libraries mapped"] = sum(result["mapped"] for result in results)
    heavy_imports = sorted({name for result in results for name in result["heavy"]})
    violations = [f"{number} {name}" for name, number in counts.items() if name != "forecasts" and number]
    violations += [f"the parent has imported {name}" for name in heavy_imports]
    counts["imported by the parent, of torch, lightning, pytorch_forecasting, pandas"] = (
        ", ".join(heavy_imports) or "none"
    )
    return PremiseCount("forecasts by ready children", counts, "they import and load nothing", tuple(violations))
