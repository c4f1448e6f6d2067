"""Encodes rows as a feed: one record per row, each with its expected result, joined to one body; and deliberately bad
rows, as broken agents send them.

Invariant: each record is encoded once and on its own, so that a feed can be split when it is too large, and a bad
record can be placed among good ones. A bad row is sent in addition to the good ones, so the data of the fleet stay
complete; only the responses show its effect.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

import numpy as np
import orjson

from forecastd.fleet.contract import CONTRACT_VERSION, METRIC_NAMES, METRICS, NDJSON, PERCENT_COLUMNS
from forecastd.fleet.ingest.feed import FleetRows

FeedFormat = Literal["json", "ndjson"]
ACCEPTED, DUPLICATE = "accepted", "duplicate"
PlainRecord = dict[str, Any]
DIGITS = 4  # decimals: more than any agent measures
PERCENT_NAMES = [METRICS[column].name for column in PERCENT_COLUMNS]
NOT_JSON = "not_json"


@dataclass(frozen=True)
class EncodedRecord:
    """One record of a feed. `expected`: its expected result: `accepted`, `duplicate`, or the code of its refusal."""

    body: bytes
    expected: str = ACCEPTED


def to_plain_records(rows: FleetRows) -> list[PlainRecord]:
    """Rows as objects of the contract; metrics without a value are omitted."""
    table = np.round(rows.values.astype(np.float64), DIGITS).tolist()
    return [
        {
            "server": server,
            "time": time,
            "profile": profile,
            "status": status,
            "metrics": {name: value for name, value in zip(METRIC_NAMES, values, strict=True) if not isnan(value)},
        }
        for server, time, profile, status, values in zip(
            rows.servers, rows.times.tolist(), rows.profiles, rows.statuses, table, strict=True
        )
    ]


def encode_records(plain: Sequence[PlainRecord]) -> list[EncodedRecord]:
    """The records of good rows."""
    return [EncodedRecord(orjson.dumps(record)) for record in plain]


def encode_body(encoded: Sequence[EncodedRecord], kind: FeedFormat) -> tuple[bytes, str]:
    """The records as one body, and its content type."""
    if kind == "ndjson":
        return b"\n".join(record.body for record in encoded) + b"\n", NDJSON
    head = b'{"version":%d,"records":[' % CONTRACT_VERSION
    return head + b",".join(record.body for record in encoded) + b"]}", "application/json"


def count_expected(encoded: Sequence[EncodedRecord]) -> Counter[str]:
    """The number of records by expected result."""
    return Counter(record.expected for record in encoded)


def _with_metrics(row: PlainRecord, **changes: object) -> PlainRecord:
    return {**row, "metrics": {**row["metrics"], **changes}}


def _scale_percents(row: PlainRecord, factor: float) -> PlainRecord:
    """The row with all percentages multiplied by `factor`."""
    return _with_metrics(
        row, **{name: row["metrics"][name] * factor for name in PERCENT_NAMES if name in row["metrics"]}
    )


# Name -> the code of the refusal, and the function that makes the bad row from a good one.
BAD_ROW_KINDS: dict[str, tuple[str, Callable[[PlainRecord], object]]] = {
    "NaN": ("nan", lambda row: _with_metrics(row, latency_ms=float("nan"))),
    "infinity": ("nan", lambda row: _with_metrics(row, requests_per_s=float("inf"))),
    "number as text": ("not_a_number", lambda row: _with_metrics(row, cpu_percent="12.5")),
    "percent above 100": ("unit", lambda row: _with_metrics(row, memory_percent=4_250.0)),
    "ratios for percents": ("unit", lambda row: _scale_percents(row, 0.01)),
    "negative": ("range", lambda row: _with_metrics(row, disk_latency_ms=-1.0)),
    "an hour ahead": ("future", lambda row: {**row, "time": row["time"] + 3_600}),
    "a year old": ("old", lambda row: {**row, "time": row["time"] - 366 * 86_400}),
    "milliseconds": ("time", lambda row: {**row, "time": row["time"] * 1_000}),
    "no time": ("time", lambda row: {name: value for name, value in row.items() if name != "time"}),
    "bad name": ("server", lambda row: {**row, "server": f" {row['server']}\n"}),
    "no name": ("server", lambda row: {**row, "server": ""}),
    "bad status": ("status", lambda row: {**row, "status": "on fire"}),
    "bad profile": ("profile", lambda row: {**row, "profile": "Web Server"}),
    "not a record": ("not_a_record", lambda row: [row["server"]]),
    "no metrics": ("no_metrics", lambda row: {**row, "metrics": {}}),
    "truncated line": (NOT_JSON, lambda row: row),
    "repeated row": (DUPLICATE, lambda row: row),
}


def bad_records(
    plain: list[PlainRecord], share: float, kind: FeedFormat, seed: int
) -> list[tuple[int, str, EncodedRecord]]:
    """Bad records for about `share` of these rows: the index of the good row, the name of the kind, and the record."""
    rng = np.random.default_rng(seed % 2**64)
    names = [name for name, (code, _) in BAD_ROW_KINDS.items() if kind == "ndjson" or code != NOT_JSON]
    indices = np.flatnonzero(rng.random(len(plain)) < share).tolist()
    kinds = rng.integers(0, len(names), len(indices)).tolist()
    return [
        (index, names[kind_index], _make_bad_record(names[kind_index], plain[index]))
        for index, kind_index in zip(indices, kinds, strict=True)
    ]


def _make_bad_record(name: str, row: PlainRecord) -> EncodedRecord:
    code, corrupt = BAD_ROW_KINDS[name]
    body = json.dumps(corrupt(row)).encode()  # writes NaN and Infinity, which are not valid JSON
    return EncodedRecord(body[: len(body) // 2] if code == NOT_JSON else body, code)
