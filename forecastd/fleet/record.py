"""One record of a feed, judged: what Python must look at value by value, and the words for what is wrong.

The one thing to know before changing it: it is the hot path of the intake, called for every record, so the usual record
passes a handful of checks in C and everything else is for the unusual one. It takes what the contract's model `FeedRecord`
takes; a test compares the two.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forecastd.fleet.contract import (
    DEFAULT_PROFILE,
    DEFAULT_STATUS,
    INDEX,
    METRICS,
    MOST_REASONS,
    NAMES,
    PROFILE,
    SERVER,
    STATUSES,
    M,
    clip,
)

MILLISECONDS = 1e11  # a time above this is no number of seconds before the year 5138
MOST_TEXT = 40  # characters of a time
NO_METRICS_NEEDED = frozenset({"down", "maintenance"})
_ALL = itemgetter(*NAMES)
_PLAIN = frozenset({float, type(None)})


class BadRecord(Exception):
    """The record is refused; `code` is the stable name that is counted, the message is for its sender."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def judge(record: object, unknown: Counter[str]) -> tuple[str, float, str, str, tuple[float | None, ...], int]:
    """Server, time, profile, status, values and how many of them are missing; bounds are looked at later, all at once."""
    if not isinstance(record, dict):
        raise BadRecord("not_a_record", f"the record is {clip(record)}; it is an object with server, time and metrics")
    server = record.get("server")
    if not isinstance(server, str) or SERVER.fullmatch(server) is None:
        told = "is missing" if server is None else f"is {clip(server)}"
        raise BadRecord(
            "server",
            f"server {told}; it is a name of up to 128 letters, digits and . _ : - that begins with a letter or digit",
        )
    time = _time(record.get("time"))
    profile = record.get("profile")
    if profile is None:
        profile = DEFAULT_PROFILE
    elif not isinstance(profile, str) or PROFILE.fullmatch(profile) is None:
        raise BadRecord(
            "profile", f"profile is {clip(profile)}; it is a name of up to 32 lower-case letters, digits, _ and -"
        )
    status = record.get("status")
    if status is None:
        status = DEFAULT_STATUS
    elif not isinstance(status, str) or status not in STATUSES:
        raise BadRecord("status", f"status is {clip(status)}; it is one of {', '.join(STATUSES)}")
    metrics = record.get("metrics")
    if metrics is None:
        metrics = {}
    elif not isinstance(metrics, dict):
        raise BadRecord("metrics", f"metrics is {clip(metrics)}; it is an object of metric names and numbers")
    values, empty = _values(metrics, unknown)
    if empty == M and status not in NO_METRICS_NEEDED:
        raise BadRecord("no_metrics", f"there is none of the contract's metrics in it; they are {', '.join(NAMES)}")
    return server, time, profile, status, values, empty


def _values(metrics: dict[str, Any], unknown: Counter[str]) -> tuple[tuple[float | None, ...], int]:
    try:
        values = _ALL(metrics)  # as quick as it can be, for the usual record
    except KeyError:
        values = tuple(map(metrics.get, NAMES))
    if not _PLAIN.issuperset(map(type, values)):
        for name, value in zip(NAMES, values, strict=True):
            if value is not None and type(value) not in {float, int}:
                raise BadRecord("not_a_number", f"{name} is {clip(value)}; send it as a JSON number, without quotes")
            if isinstance(value, int) and abs(value) > 10**18:
                raise BadRecord("range", f"{name} is {clip(value)}, more than any machine has")
    empty = values.count(None)
    if len(metrics) != M - empty:
        for name in metrics:
            if name not in INDEX and (name in unknown or len(unknown) < MOST_REASONS):
                unknown[name[:64]] += 1
    return values, empty


def _time(value: object) -> float:
    """Unix seconds of a record's time."""
    if isinstance(value, str):
        try:
            # Cut: what is longer is no time, and is not looked through.
            moment = datetime.fromisoformat(value[:MOST_TEXT])
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise BadRecord(
                "time",
                f"time is {clip(value)}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z",
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        told = "is missing" if value is None else f"is {clip(value)}"
        raise BadRecord("time", f"time {told}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z")
    if not -MILLISECONDS < value < MILLISECONDS:
        small = "milliseconds, microseconds or nanoseconds" if value > 0 else "no unix time"
        raise BadRecord("time", f"time is {clip(value)}, which looks like {small}; send seconds")
    return float(value)


def complaint(sent: tuple[float | None, ...], values: NDArray[np.float64], wrong: NDArray[np.bool_]) -> tuple[str, str]:
    """What is wrong with the numbers of a row, of the first metric that is."""
    for metric, raw, value, bad in zip(METRICS, sent, values.tolist(), wrong.tolist(), strict=True):
        if raw is not None and math.isnan(value):
            return f"{metric.name} is NaN; leave a metric out that has no value", "nan"
        if not bad:
            continue
        if abs(value) == float("inf"):
            return f"{metric.name} is infinite; leave a metric out that has no value", "nan"
        if value > metric.high:
            return _too_high(metric.name, value, metric.high, metric.unit)
        if value >= 0 and metric.low > 0:
            told = f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}"
            return (
                f'{told}, which no running machine has: sent as a ratio? Say so: "units": {{"{metric.name}": "ratio"}}',
                "unit",
            )
        return f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}", "range"
    raise AssertionError("a row is refused for a reason")


def _too_high(name: str, value: float, high: float, unit: str) -> tuple[str, str]:
    told = f"{name} {value:g} is above {high:g} {unit}"
    if unit == "%" and value <= 100 * high:
        return f"{told}: sent in hundredths of a percent, or as a count? Send percent", "unit"
    return f"{told}: sent in a smaller unit? The contract's is {unit}, `units` of a feed may name another", "unit"
