from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from forecastd.fleet.contract import (
    METRIC_COUNT,
    METRIC_INDEX,
    METRIC_NAMES,
    METRICS,
    PERCENT_COLUMNS,
    UNIT_FACTORS,
    Feed,
    FeedError,
    FeedRecord,
    FeedResponse,
    format_value,
    unit_factor,
)
from forecastd.fleet.ingest.record import InvalidRecord, parse_record


def test_contract_metric_order_is_fixed() -> None:
    assert METRIC_NAMES == (
        "cpu_percent", "cpu_iowait_percent", "load_per_core", "memory_percent", "swap_percent", "disk_percent",
        "disk_busy_percent", "disk_latency_ms", "network_in_mb_s", "network_out_mb_s", "network_errors_per_s",
        "latency_ms", "requests_per_s", "error_percent",
    )  # fmt: skip
    assert len(METRICS) == METRIC_COUNT == 14
    assert [METRIC_INDEX[name] for name in METRIC_NAMES] == list(range(METRIC_COUNT))
    assert [METRIC_NAMES[index] for index in PERCENT_COLUMNS] == [
        name for name in METRIC_NAMES if name.endswith("_percent")
    ]


@pytest.mark.parametrize("metric", METRICS, ids=METRIC_NAMES)
def test_contract_metric_has_bounds_and_unit(metric: Any) -> None:
    assert metric.low == (1.0 if metric.name == "memory_percent" else 0.0)
    assert metric.low < metric.high
    assert (metric.unit == "%") == (metric.high == 100.0) == (metric.transform == "none")
    assert UNIT_FACTORS[metric.unit][metric.unit] == 1.0


@pytest.mark.parametrize(
    ("metric", "unit", "expected"),
    [
        ("cpu_percent", "ratio", 100.0),
        ("error_percent", "fraction", 100.0),
        ("latency_ms", "s", 1000.0),
        ("disk_latency_ms", "us", 0.001),
        ("network_in_mb_s", "B/s", 1e-6),
        ("network_in_mb_s", "kB/s", 1e-3),
        ("network_out_mb_s", "Mbit/s", 0.125),
        ("network_out_mb_s", "MiB/s", 1.048576),
        ("requests_per_s", "1/min", 1 / 60),
    ],
)
def test_unit_factor_converts_to_contract_unit(metric: str, unit: str, expected: float) -> None:
    assert unit_factor(metric, unit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "unit", "message"),
    [
        ("cpu_percent", "kelvin", "percent, pct, ratio"),
        ("latency_ms", "MB/s", "ms, s, us"),
        ("cpu", "ratio", "the metrics are cpu_percent"),
        ("x" * 10**6, "ratio", "not a metric of this contract"),
    ],
)
def test_unit_factor_unknown_unit_is_refused(metric: str, unit: str, message: str) -> None:
    with pytest.raises(FeedError, match=message) as error:
        unit_factor(metric, unit)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**4000, -(10**400), [1] * 10**6, {"a": 1}, "\x00\n\u202e", True, None, 1e400]
)
def test_format_value_is_short_and_printable(value: object) -> None:
    text = format_value(value)
    assert len(text) <= 64
    assert text.isascii()
    assert text.isprintable()


RECORD = TypeAdapter(FeedRecord)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), st.text(max_size=8),
    st.sampled_from(["web-01", "ok", "down", "generic", "WEB", "2024-05-01T00:00:00Z", "", "-x", "a" * 129]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "server": st.sampled_from(["web-01", "db:2.x_y", "-no", "é"]) | VALUES,
        "time": st.sampled_from([1.7e9, 1_700_000_000, "2024-05-01T00:00:00Z"]) | VALUES,
        "profile": st.sampled_from(["web", "no way"]) | VALUES,
        "status": st.sampled_from(["ok", "down", "no way"]) | VALUES,
        "metrics": st.dictionaries(st.sampled_from([*METRIC_NAMES, "else"]), st.floats(0, 100) | VALUES, max_size=3)
        | VALUES,
        "more": VALUES,
    },
)


@given(RECORDS)
def test_parse_record_accepts_only_valid_schema(record: dict[str, Any]) -> None:
    try:
        parse_record(record, Counter())
    except InvalidRecord:
        return
    is_known = {name: value for name, value in (record.get("metrics") or {}).items() if name in METRIC_INDEX}
    RECORD.validate_python({**record, **({"metrics": is_known} if record.get("metrics") else {})})


@given(RECORDS)
def test_parse_record_refuses_schema_valid_record_only_by_value(record: dict[str, Any]) -> None:
    try:
        RECORD.validate_python(record)
    except ValidationError:
        return
    code = None
    try:
        parse_record(record, Counter())
    except InvalidRecord as bad:
        code = bad.code
    assert code in {None, "time", "no_metrics", "range"}


def test_feed_has_json_schema() -> None:
    schema = json.dumps(Feed.model_json_schema())
    assert all(word in schema for word in ("records", "units", "server", "cpu_percent"))
    response = FeedResponse(accepted=1, refused=0, duplicates=0, reasons=[], counts={})
    assert list(response.model_dump()) == ["version", "accepted", "refused", "duplicates", "reasons", "counts"]
