"""Validates one record of a feed, and describes what is wrong with it.

Invariant: this is the hot path of ingest, called for every record, so a usual record passes a few checks in C. It
accepts what the contract's model `FeedRecord` accepts; a test compares the two.
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

MAX_SECONDS = 1e11  # a time in seconds reaches this in the year 5138; larger values are milliseconds
MAX_TIME_CHARACTERS = 40  # maximum length of a time
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
    """Server, time, profile, status, values and the number of missing values; bounds are checked later, for all rows
    at once.
    """
    if not isinstance(record, dict):
        raise InvalidRecord(
            "not_a_record", f"the record is {format_value(record)}; it must be an object with server, time and metrics"
        )
    server = record.get("server")
    if not isinstance(server, str) or SERVER_PATTERN.fullmatch(server) is None:
        problem = "is missing" if server is None else f"is {format_value(server)}"
        raise InvalidRecord(
            "server",
            f"server {problem}; it must be a name of up to 128 letters, digits and . _ : - "
            "that begins with a letter or digit",
        )
    time = _parse_time(record.get("time"))
    profile = record.get("profile")
    if profile is None:
        profile = DEFAULT_PROFILE
    elif not isinstance(profile, str) or PROFILE_PATTERN.fullmatch(profile) is None:
        raise InvalidRecord(
            "profile",
            f"profile is {format_value(profile)}; it must be a name of up to 32 lower-case letters, digits, _ and -",
        )
    status = record.get("status")
    if status is None:
        status = DEFAULT_STATUS
    elif not isinstance(status, str) or status not in STATUSES:
        raise InvalidRecord("status", f"status is {format_value(status)}; it must be one of {', '.join(STATUSES)}")
    metrics = record.get("metrics")
    if metrics is None:
        metrics = {}
    elif not isinstance(metrics, dict):
        raise InvalidRecord(
            "metrics", f"metrics is {format_value(metrics)}; it must be an object of metric names and numbers"
        )
    values, missing_count = _parse_values(metrics, unknown_metrics)
    if missing_count == METRIC_COUNT and status not in STATUSES_WITHOUT_METRICS:
        raise InvalidRecord(
            "no_metrics", f"it has no metric of the contract; the metrics are {', '.join(METRIC_NAMES)}"
        )
    return server, time, profile, status, values, missing_count


def _parse_values(metrics: dict[str, Any], unknown_metrics: Counter[str]) -> tuple[tuple[float | None, ...], int]:
    try:
        values = _GET_ALL_METRICS(metrics)  # the fast path, for the usual record
    except KeyError:
        values = tuple(map(metrics.get, METRIC_NAMES))
    if not _USUAL_TYPES.issuperset(map(type, values)):
        for name, value in zip(METRIC_NAMES, values, strict=True):
            if value is not None and type(value) not in {float, int}:
                raise InvalidRecord(
                    "not_a_number", f"{name} is {format_value(value)}; send it as a JSON number, without quotes"
                )
            if isinstance(value, int) and abs(value) > 10**18:
                raise InvalidRecord("range", f"{name} is {format_value(value)}; no machine has such a value")
    missing_count = values.count(None)
    if len(metrics) != METRIC_COUNT - missing_count:
        for name in metrics:
            if name not in METRIC_INDEX and (name in unknown_metrics or len(unknown_metrics) < MAX_REASONS):
                unknown_metrics[name[:64]] += 1
    return values, missing_count


def _parse_time(value: object) -> float:
    """The time of a record in unix seconds."""
    if isinstance(value, str):
        try:
            # Truncated: a longer text is not a time and must not cost time to parse.
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
        guess = "milliseconds, microseconds or nanoseconds" if value > 0 else "no unix time in seconds"
        raise InvalidRecord("time", f"time is {format_value(value)}, which looks like {guess}; send seconds")
    return float(value)


def describe_violation(
    raw_values: tuple[float | None, ...], values: NDArray[np.float64], out_of_bounds: NDArray[np.bool_]
) -> tuple[str, str]:
    """Reason and code for the first metric of a row that is out of bounds."""
    for metric, raw, value, is_out_of_bounds in zip(
        METRICS, raw_values, values.tolist(), out_of_bounds.tolist(), strict=True
    ):
        if raw is not None and math.isnan(value):
            return f"{metric.name} is NaN; omit a metric without a value", "nan"
        if not is_out_of_bounds:
            continue
        if abs(value) == float("inf"):
            return f"{metric.name} is infinite; omit a metric without a value", "nan"
        if value > metric.high:
            return _describe_too_high(metric.name, value, metric.high, metric.unit)
        if value >= 0 and metric.low > 0:
            problem = f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}"
            return (
                f"{problem}, which no running machine has. If it is a ratio, declare that: "
                f'"units": {{"{metric.name}": "ratio"}}',
                "unit",
            )
        return f"{metric.name} {value:g} is below {metric.low:g} {metric.unit}", "range"
    raise AssertionError("a refused row has a violation")


def _describe_too_high(name: str, value: float, high: float, unit: str) -> tuple[str, str]:
    problem = f"{name} {value:g} is above {high:g} {unit}"
    if unit == "%" and value <= 100 * high:
        return f"{problem}. Is it in hundredths of a percent, or a count? Send percent", "unit"
    return f"{problem}. Is it in a smaller unit? Send {unit}, or declare the unit in the feed's `units`", "unit"
