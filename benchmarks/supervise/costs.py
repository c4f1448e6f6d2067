"""What supervision costs: time a forecast, memory, the processor while it waits; and that nothing is loaded twice.

The peer is the same engine in the parent itself, which no deadline could be held against.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.figures import Figure, PremiseCount
from benchmarks.processes import measure, python

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as the children have it
NO_TARGET = "told, nothing is claimed"


def run(*, quick: bool, seed: int) -> Iterator[Figure | PremiseCount]:
    """400 forecasts in turns and 30 s of waiting; quick: 40 and 4 s. `seed` chooses nothing here."""
    del seed
    yield from _overhead(40 if quick else 400)
    forecasts, seconds = (10, 4) if quick else (50, 30)
    no_standby = _measure_parent("supervised", 0, forecasts, seconds)
    one_standby = _measure_parent("supervised", 1, forecasts, seconds)
    unsupervised = _measure_parent("alone", forecasts)["processes"][0]
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
    yield Figure(f"waiting, the parent, from {seconds} s", parent, 3600.0, "CPU s an hour", "a core", target)
    yield Figure(f"waiting, a child, from {seconds} s", max(children), 3600.0, "CPU s an hour", "a core", target)


def _measure_parent(*arguments: object) -> Any:
    command = python("-m", "benchmarks.supervise.parent", *map(str, arguments))
    return json.loads(measure(command, ONE_THREAD).stdout)


def _overhead(forecasts: int) -> Iterator[Figure]:
    times = _measure_parent("beside", forecasts)
    inside, ours = times["in process"], times["supervised"]
    extra = statistics.median(ours) - statistics.median(inside)
    minimum_extra = min(ours) - min(inside)  # what is left of it when nobody else wants the processor
    name = f"a forecast by a ready child, median of {forecasts}: {extra:.1f} ms more, {minimum_extra:.1f} ms between the fastest"
    yield Figure(name, statistics.median(ours), statistics.median(inside), "ms", "the same call in process", NO_TARGET)


def _count_loads(forecasts: int, *results: Any) -> PremiseCount:
    """A ready child reads no file, maps no library and is no new process; the parent has imported nothing heavy."""
    counts: dict[str, int | str] = {"forecasts": forecasts * len(results)}
    counts["processes started"] = sum(result["launches"] for result in results)
    counts["files read, by system calls of the children"] = sum(result["reads"] for result in results)
    counts["libraries mapped"] = sum(result["mapped"] for result in results)
    heavy_imports = sorted({name for result in results for name in result["heavy"]})
    violations = [f"{number} {what}" for what, number in counts.items() if what != "forecasts" and number]
    violations += [f"the parent has imported {name}" for name in heavy_imports]
    counts["imported by the parent, of torch, lightning, pytorch_forecasting, pandas"] = (
        ", ".join(heavy_imports) or "none"
    )
    return PremiseCount("forecasts by ready children", counts, "they import and load nothing", tuple(violations))
