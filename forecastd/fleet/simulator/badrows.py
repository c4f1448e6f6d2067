"""Bad rows on purpose: what broken agents send, each with the code that a fleet refuses it with.

A bad row is one more beside the good ones, so the fleet's own data stay whole; what it costs is seen in the answers alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from forecastd.fleet.contract import METRICS, PERCENTS
from forecastd.fleet.simulator.feeds import DUPLICATE, Format, Record

Plain = dict[str, Any]
_PERCENTS = [METRICS[place].name for place in PERCENTS]
_NOT_JSON = "not_json"


def _with_metrics(row: Plain, **changed: object) -> Plain:
    return {**row, "metrics": {**row["metrics"], **changed}}


def _scaled(row: Plain, factor: float) -> Plain:
    """All percents in another unit."""
    return _with_metrics(row, **{name: row["metrics"][name] * factor for name in _PERCENTS if name in row["metrics"]})


# What is sent -> the code of its refusal, and how it is made of a good row.
KINDS: dict[str, tuple[str, Callable[[Plain], object]]] = {
    "NaN": ("nan", lambda row: _with_metrics(row, latency_ms=float("nan"))),
    "infinity": ("nan", lambda row: _with_metrics(row, requests_per_s=float("inf"))),
    "number as text": ("not_a_number", lambda row: _with_metrics(row, cpu_percent="12.5")),
    "percent above 100": ("unit", lambda row: _with_metrics(row, memory_percent=4_250.0)),
    "ratios for percents": ("unit", lambda row: _scaled(row, 0.01)),
    "negative": ("range", lambda row: _with_metrics(row, disk_latency_ms=-1.0)),
    "an hour ahead": ("future", lambda row: {**row, "time": row["time"] + 3_600}),
    "a year old": ("old", lambda row: {**row, "time": row["time"] - 366 * 86_400}),
    "milliseconds": ("time", lambda row: {**row, "time": row["time"] * 1_000}),
    "no time": ("time", lambda row: {name: value for name, value in row.items() if name != "time"}),
    "bad name": ("server", lambda row: {**row, "server": f" {row['server']}\n"}),
    "no name": ("server", lambda row: {**row, "server": ""}),
    "bad status": ("status", lambda row: {**row, "status": "on fire"}),
    "bad profile": ("profile", lambda row: {**row, "profile": "Web Server"}),
    "no record": ("not_a_record", lambda row: [row["server"]]),
    "no metrics": ("no_metrics", lambda row: {**row, "metrics": {}}),
    "half a line": (_NOT_JSON, lambda row: row),
    "the row again": (DUPLICATE, lambda row: row),
}


def bad_records(plain: list[Plain], share: float, kind: Format, seed: int) -> list[tuple[int, str, Record]]:
    """For about `share` of these rows a bad one: the place of its row, what it is, and the record."""
    chance = np.random.default_rng(seed % 2**64)
    names = [name for name, (code, _) in KINDS.items() if kind == "ndjson" or code != _NOT_JSON]
    places = np.flatnonzero(chance.random(len(plain)) < share).tolist()
    picked = chance.integers(0, len(names), len(places)).tolist()
    return [
        (place, names[number], _spoilt(names[number], plain[place]))
        for place, number in zip(places, picked, strict=True)
    ]


def _spoilt(name: str, row: Plain) -> Record:
    code, spoil = KINDS[name]
    body = json.dumps(spoil(row)).encode()  # with NaN and Infinity as JavaScript has them, which JSON has not
    return Record(body[: len(body) // 2] if code == _NOT_JSON else body, code)
