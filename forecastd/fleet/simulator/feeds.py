"""Rows as a sender writes them: records in bytes, each with what the service should say of it, put together as one body.

The one thing to know before changing it: a record is encoded once and by itself, so that a feed can be cut in two when it is
too large, and a bad one can stand among good ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal

import numpy as np
import orjson

from forecastd.fleet.contract import CONTRACT_VERSION, NAMES, NDJSON
from forecastd.fleet.intake import Rows

Format = Literal["json", "ndjson"]
TAKEN, DUPLICATE = "taken", "duplicate"
DIGITS = 4  # after the point: more than any agent measures


@dataclass(frozen=True)
class Record:
    """One record of a feed. `due` is what should become of it: `taken`, `duplicate`, or the code that it is refused with."""

    body: bytes
    due: str = TAKEN


def records(rows: Rows) -> list[Record]:
    """Good rows as records."""
    return [Record(orjson.dumps(plain)) for plain in plain_records(rows)]


def plain_records(rows: Rows) -> list[dict[str, object]]:
    """Rows as the contract's objects; a metric without a value is left out."""
    table = np.round(rows.values.astype(np.float64), DIGITS).tolist()
    return [
        {
            "server": server,
            "time": moment,
            "profile": profile,
            "status": status,
            "metrics": {name: value for name, value in zip(NAMES, values, strict=True) if not isnan(value)},
        }
        for server, moment, profile, status, values in zip(
            rows.servers, rows.times.tolist(), rows.profiles, rows.statuses, table, strict=True
        )
    ]


def body(found: Sequence[Record], kind: Format) -> tuple[bytes, str]:
    """The records as one body, and its content type."""
    if kind == "ndjson":
        return b"\n".join(record.body for record in found) + b"\n", NDJSON
    head = b'{"version":%d,"records":[' % CONTRACT_VERSION
    return head + b",".join(record.body for record in found) + b"]}", "application/json"


def dues(found: Sequence[Record]) -> Counter[str]:
    """How many records should come to what."""
    return Counter(record.due for record in found)
