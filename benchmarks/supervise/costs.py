"""What supervision costs: time a forecast, memory, the processor while it waits; and that nothing is loaded twice.

The peer is the same engine in the parent itself, which no deadline could be held against.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from typing import Any

from benchmarks.figures import Count, Figure
from benchmarks.processes import measure, python

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # as the children have it
UNCLAIMED = "told, nothing is claimed"


def run(*, quick: bool, seed: int) -> Iterator[Figure | Count]:
    """400 forecasts in turns and 30 s of waiting; quick: 40 and 4 s. `seed` chooses nothing here."""
    del seed
    yield from _overhead(40 if quick else 400)
    forecasts, seconds = (10, 4) if quick else (50, 30)
    without = _parent("supervised", 0, forecasts, seconds)
    with_one = _parent("supervised", 1, forecasts, seconds)
    alone = _parent("alone", forecasts)["processes"][0]
    yield _nothing_loaded(forecasts, without, with_one)
    for name, key in (("peak memory", "peak"), ("share of memory", "share")):
        for standbys, found in ((0, without), (1, with_one)):
            parent, *children = (process[key] for process in found["processes"])
            told = f"{name}, {standbys} standbys: parent {parent:.0f} and {' + '.join(f'{c:.0f}' for c in children)} MB"
            yield Figure(told, parent + sum(children), alone[key], "MB", "the engine in the parent", UNCLAIMED)
    parent, *children = (process["idle"] for process in with_one["processes"])
    wanted = "a thousandth of a core: ratio >= 1000"
    yield Figure(f"waiting, the parent, from {seconds} s", parent, 3600.0, "CPU s an hour", "a core", wanted)
    yield Figure(f"waiting, a child, from {seconds} s", max(children), 3600.0, "CPU s an hour", "a core", wanted)


def _parent(*arguments: object) -> Any:
    command = python("-m", "benchmarks.supervise.parent", *map(str, arguments))
    return json.loads(measure(command, ONE_THREAD).stdout)


def _overhead(forecasts: int) -> Iterator[Figure]:
    times = _parent("beside", forecasts)
    inside, ours = times["in process"], times["supervised"]
    more = statistics.median(ours) - statistics.median(inside)
    least = min(ours) - min(inside)  # what is left of it when nobody else wants the processor
    name = f"a forecast by a ready child, median of {forecasts}: {more:.1f} ms more, {least:.1f} ms between the fastest"
    yield Figure(name, statistics.median(ours), statistics.median(inside), "ms", "the same call in process", UNCLAIMED)


def _nothing_loaded(forecasts: int, *found: Any) -> Count:
    """A ready child reads no file, maps no library and is no new process; the parent has imported nothing heavy."""
    counts: dict[str, int | str] = {"forecasts": forecasts * len(found)}
    counts["processes started"] = sum(one["launches"] for one in found)
    counts["files read, by system calls of the children"] = sum(one["reads"] for one in found)
    counts["libraries mapped"] = sum(one["mapped"] for one in found)
    heavy = sorted({name for one in found for name in one["heavy"]})
    broken = [f"{number} {what}" for what, number in counts.items() if what != "forecasts" and number]
    broken += [f"the parent has imported {name}" for name in heavy]
    counts["imported by the parent, of torch, lightning, pytorch_forecasting, pandas"] = ", ".join(heavy) or "none"
    return Count("forecasts by ready children", counts, "they import and load nothing", tuple(broken))
