"""Validates one record of a feed by the contract's model `FeedRecord`, and describes what is wrong with it.

Invariant: this is the hot path of ingest, called for every record, so a usual record is validated in C. Bounds are
checked later, for all rows at once.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime
from operator import itemgetter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from forecastd.fleet.contract import (
    DEFAULT_PROFILE,
    DEFAULT_STATUS,
    MAX_REASONS,
    METRIC_COUNT,
    METRIC_INDEX,
    METRIC_NAMES,
    METRICS,
    STATUSES,
    FeedRecord,
    format_value,
)

MAX_SECONDS = 1e11  # a time in seconds reaches this in the year 5138; larger values are milliseconds
MAX_TIME_CHARACTERS = 40  # maximum length of a time
MAX_VALUE = 1e18  # of any metric
STATUSES_WITHOUT_METRICS = frozenset({"down", "maintenance"})
# What a field must be, for its sender. The code of a refusal is the name of the field.
REQUIREMENTS = {
    "server": "it must be a name of up to 128 letters, digits and . _ : - that begins with a letter or digit",
    "time": "send unix seconds as a number, or ISO 8601 such as 2025-01-31T12:00:00Z",
    "profile": "it must be a name of up to 32 lower-case letters, digits, _ and -",
    "status": f"it must be one of {', '.join(STATUSES)}",
    "metrics": "it must be an object of metric names and numbers",
}
# Server, time, profile, status, and the values in the contract's order, None where there is none.
ParsedRecord = tuple[str, float, str, str, tuple[float | None, ...]]
_validate = TypeAdapter(FeedRecord).validator.validate_python
_get_all_metrics = itemgetter(*METRIC_NAMES)


class InvalidRecord(Exception):
    """The record is refused; `code` is the stable name that is counted, the message is for its sender."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def parse_record(record: Any, unknown_metrics: Counter[str]) -> ParsedRecord:
    """The record, if it is one; bounds of values are not checked.

    Names of metrics that are not of the contract are counted in `unknown_metrics`.

    Raises:
        InvalidRecord: it is not a record of the contract.
    """
    try:
        valid: FeedRecord = _validate(record)
    except ValidationError as error:
        raise _invalid_record(record, error) from None
    metrics = cast("dict[str, float | None]", valid.get("metrics") or {})
    try:
        values = _get_all_metrics(metrics)  # the usual record has all
    except KeyError:
        values = tuple(map(metrics.get, METRIC_NAMES))
    status = valid.get("status") or DEFAULT_STATUS
    if status not in STATUSES_WITHOUT_METRICS and values.count(None) == METRIC_COUNT:
        raise InvalidRecord(
            "no_metrics", f"it has no metric of the contract; the metrics are {', '.join(METRIC_NAMES)}"
        )
    if metrics and len(record["metrics"]) > len(metrics):
        for name in record["metrics"]:
            if name not in METRIC_INDEX and (name in unknown_metrics or len(unknown_metrics) < MAX_REASONS):
                unknown_metrics[name[:64]] += 1
    return valid["server"], _parse_time(valid["time"]), valid.get("profile") or DEFAULT_PROFILE, status, values


def _invalid_record(record: Any, error: ValidationError) -> InvalidRecord:
    """The refusal for the first field that is invalid."""
    if not isinstance(record, dict):
        reason = f"the record is {format_value(record)}; it must be an object with server, time and metrics"
        return InvalidRecord("not_a_record", reason)
    field, *inner = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
    value = record.get(field)
    if field == "metrics" and isinstance(value, dict):
        return _invalid_metric(str(inner[0]), value[inner[0]])
    problem = "is missing" if value is None else f"is {format_value(value)}"
    return InvalidRecord(str(field), f"{field} {problem}; {REQUIREMENTS[str(field)]}")


def _invalid_metric(name: str, value: object) -> InvalidRecord:
    if isinstance(value, float):
        problem = "NaN" if math.isnan(value) else "infinite"
        return InvalidRecord("nan", f"{name} is {problem}; omit a metric without a value")
    if isinstance(value, int) and not isinstance(value, bool):
        return InvalidRecord("range", f"{name} is {format_value(value)}; no machine has such a value")
    return InvalidRecord("not_a_number", f"{name} is {format_value(value)}; send it as a JSON number, without quotes")


def _parse_time(value: float | str) -> float:
    """The time of a record in unix seconds."""
    if isinstance(value, str):
        try:
            # Truncated: a longer text is not a time and must not cost time to parse.
            parsed = datetime.fromisoformat(value[:MAX_TIME_CHARACTERS])
            return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
        except (ValueError, OverflowError):
            raise InvalidRecord("time", f"time is {format_value(value)}; {REQUIREMENTS['time']}") from None
    if not -MAX_SECONDS < value < MAX_SECONDS:
        guess = "milliseconds, microseconds or nanoseconds" if value > 0 else "no unix time in seconds"
        raise InvalidRecord("time", f"time is {format_value(value)}, which looks like {guess}; send seconds")
    return value


def describe_violation(values: NDArray[np.float64], out_of_bounds: NDArray[np.bool_]) -> tuple[str, str]:
    """Reason and code for the first metric of a row that is out of bounds."""
    column = int(np.argmax(out_of_bounds))
    metric, value = METRICS[column], float(values[column])
    name, unit = metric.name, metric.unit
    if abs(value) == math.inf:
        return f"{name} is infinite; omit a metric without a value", "nan"
    if value > MAX_VALUE:
        return f"{name} is {value:g}; no machine has such a value", "range"
    if value > metric.high:
        problem = f"{name} {value:g} is above {metric.high:g} {unit}"
        if unit == "%" and value <= 100 * metric.high:
            return f"{problem}. Is it in hundredths of a percent, or a count? Send percent", "unit"
        return f"{problem}. Is it in a smaller unit? Send {unit}, or declare the unit in the feed's `units`", "unit"
    problem = f"{name} {value:g} is below {metric.low:g} {unit}"
    if value >= 0 and metric.low > 0:
        fix = f'If it is a ratio, declare that: "units": {{"{name}": "ratio"}}'
        return f"{problem}, which no running machine has. {fix}", "unit"
    return problem, "range"
