"""Encodes rows as a feed: one record per row, each with its expected result, joined to one body.

Invariant: each record is encoded once and on its own, so that a feed can be split when it is too large, and a bad
record can be placed among good ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

import numpy as np
import orjson

from forecastd.fleet.contract import CONTRACT_VERSION, METRIC_NAMES, NDJSON
from forecastd.fleet.ingest.feed import FleetRows

FeedFormat = Literal["json", "ndjson"]
ACCEPTED, DUPLICATE = "accepted", "duplicate"
DIGITS = 4  # decimals: more than any agent measures


@dataclass(frozen=True)
class EncodedRecord:
    """One record of a feed. `expected`: its expected result: `accepted`, `duplicate`, or the code of its refusal."""

    body: bytes
    expected: str = ACCEPTED


def encode_records(rows: FleetRows) -> list[EncodedRecord]:
    """The records of good rows."""
    return [EncodedRecord(orjson.dumps(plain)) for plain in to_plain_records(rows)]


def to_plain_records(rows: FleetRows) -> list[dict[str, object]]:
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


def encode_body(encoded: Sequence[EncodedRecord], kind: FeedFormat) -> tuple[bytes, str]:
    """The records as one body, and its content type."""
    if kind == "ndjson":
        return b"\n".join(record.body for record in encoded) + b"\n", NDJSON
    head = b'{"version":%d,"records":[' % CONTRACT_VERSION
    return head + b",".join(record.body for record in encoded) + b"]}", "application/json"


def count_expected(encoded: Sequence[EncodedRecord]) -> Counter[str]:
    """The number of records by expected result."""
    return Counter(record.expected for record in encoded)
