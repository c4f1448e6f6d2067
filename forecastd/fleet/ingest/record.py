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
    MAX_REASONS,
    METRIC_COUNT,
    METRIC_INDEX,
    METRIC_NAMES,
    METRICS,
    PROFILE_PATTERN,
    SERVER_PATTERN,
    STATUSES,
    format_value,
)

MAX_SECONDS = 1e11  # a time above this is no number of seconds before the year 5138
MAX_TIME_CHARACTERS = 40  # characters of a time
STATUSES_WITHOUT_METRICS = frozenset({"down", "maintenance"})
_GET_ALL_METRICS = itemgetter(*METRIC_NAMES)
_USUAL_TYPES = frozenset({float, type(None)})


class InvalidRecord(Exception):
    """The record is refused; `code` is the stable name that is counted, the message is for its sender."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def parse_record(
    record: object, unknown_metrics: Counter[str]
) -> tuple[str, float, str, str, tuple[float | None, ...], int]:
    """Server, time, profile, status, values and how many of them are missing; bounds are looked at later, all at once."""
    if not isinstance(record, dict):
        raise InvalidRecord(
            "not_a_record", f"the record is {format_value(record)}; it is an object with server, time and metrics"
        )
    server = record.get("server")
    if not isinstance(server, str) or SERVER_PATTERN.fullmatch(server) is None:
        problem = "is missing" if server is None else f"is {format_value(server)}"
        raise InvalidRecord(
            "server",
            f"server {problem}; it is a name of up to 128 letters, digits and . _ : - that begins with a letter or digit",
        )
    time = _parse_time(record.get("time"))
    profile = record.get("profile")
    if profile is None:
        profile = DEFAULT_PROFILE
    elif not isinstance(profile, str) or PROFILE_PATTERN.fullmatch(profile) is None:
        raise InvalidRecord(
            "profile",
            f"profile is {format_value(profile)}; it is a name of up to 32 lower-case letters, digits, _ and -",
        )
    status = record.get("status")
    if status is None:
        status = DEFAULT_STATUS
    elif not isinstance(status, str) or status not in STATUSES:
        raise InvalidRecord("status", f"status is {format_value(status)}; it is one of {', '.join(STATUSES)}")
    metrics = record.get("metrics")
    if metrics is None:
        metrics = {}
    elif not isinstance(metrics, dict):
        raise InvalidRecord(
            "metrics", f"metrics is {format_value(metrics)}; it is an object of metric names and numbers"
        )
    values, missing_count = _parse_values(metrics, unknown_metrics)
    if missing_count == METRIC_COUNT and status not in STATUSES_WITHOUT_METRICS:
        raise InvalidRecord(
            "no_metrics", f"there is none of the contract's metrics in it; they are {', '.join(METRIC_NAMES)}"
        )
    return server, time, profile, status, values, missing_count


def _parse_values(metrics: dict[str, Any], unknown_metrics: Counter[str]) -> tuple[tuple[float | None, ...], int]:
    try:
        values = _GET_ALL_METRICS(metrics)  # as quick as it can be, for the usual record
    except KeyError:
        values = tuple(map(metrics.get, METRIC_NAMES))
    if not _USUAL_TYPES.issuperset(map(type, values)):
        for name, value in zip(METRIC_NAMES, values, strict=True):
            if value is not None and type(value) not in {float, int}:
                raise InvalidRecord(
                    "not_a_number", f"{name} is {format_value(value)}; send it as a JSON number, without quotes"
                )
            if isinstance(value, int) and abs(value) > 10**18:
                raise InvalidRecord("range", f"{name} is {format_value(value)}, more than any machine has")
    missing_count = values.count(None)
    if len(metrics) != METRIC_COUNT - missing_count:
        for name in metrics:
            if name not in METRIC_INDEX and (name in unknown_metrics or len(unknown_metrics) < MAX_REASONS):
                unknown_metrics[name[:64]] += 1
    return values, missing_count


def _parse_time(value: object) -> float:
    """Unix seconds of a record's time."""
    if isinstance(value, str):
        try:
            # Cut: what is longer is no time, and is not looked through.
            parsed = datetime.fromisoformat(value[:MAX_TIME_CHARACTERS])
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise InvalidRecord(
                "time",
                f"time is {format_value(value)}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z",
            ) from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        problem = "is missing" if value is None else f"is {format_value(value)}"
        raise InvalidRecord(
            "time", f"time {problem}; send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z"
        )
    if not -MAX_SECONDS < value < MAX_SECONDS:
        guess = "milliseconds, microseconds or nanoseconds" if value > 0 else "no unix time"
        raise InvalidRecord("time", f"time is {format_value(value)}, which looks like {guess}; send seconds")
    return float(value)


def describe_violation(
    raw_values: tuple[float | None, ...], values: NDArray[np.float64], out_of_bounds: NDArray[np.bool_]
) -> tuple[str, str]:
    """What is wrong with the numbers of a row, of the first metric that is."""
    for metric, raw, value, is_out_of_bounds in zip(
        METRICS, raw_values, values.tolist(), out_of_bounds.tolist(), strict=True
    ):
        if raw is not None and math.isnan(value):
            return f"{metric.name} is NaN; leave a metric out that has no value", "nan"
        if not is_out_of_bounds:
            continue
        if abs(value) == float("inf"):
            return f"{metric.name} is infinite; leave a metric out that has no value", "nan"
        if value > metric.high:
            return _describe_too_high(metric.name, value, metric.high, metric.unit)
        if value >= 0 and metric.low > 0:
            problem = f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}"
            return (
                f'{problem}, which no running machine has: sent as a ratio? Say so: "units": {{"{metric.name}": "ratio"}}',
                "unit",
            )
        return f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}", "range"
    raise AssertionError("a row is refused for a reason")


def _describe_too_high(name: str, value: float, high: float, unit: str) -> tuple[str, str]:
    problem = f"{name} {value:g} is above {high:g} {unit}"
    if unit == "%" and value <= 100 * high:
        return f"{problem}: sent in hundredths of a percent, or as a count? Send percent", "unit"
    return f"{problem}: sent in a smaller unit? The contract's is {unit}, `units` of a feed may name another", "unit"
