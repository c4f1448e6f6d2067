from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from forecastd.fleet.contract import (
    INDEX,
    METRICS,
    NAMES,
    PERCENTS,
    UNITS,
    Feed,
    FeedAnswer,
    FeedError,
    FeedRecord,
    M,
    clip,
    factor,
)
from forecastd.fleet.record import BadRecord, judge


def test_the_order_of_the_metrics_is_the_contract() -> None:
    assert NAMES == (
        "cpu_percent", "cpu_iowait_percent", "load_per_core", "memory_percent", "swap_percent", "disk_percent",
        "disk_busy_percent", "disk_latency_ms", "network_in_mb_s", "network_out_mb_s", "network_errors_per_s",
        "latency_ms", "requests_per_s", "error_percent",
    )  # fmt: skip
    assert len(METRICS) == M == 14
    assert [INDEX[name] for name in NAMES] == list(range(M))
    assert [NAMES[place] for place in PERCENTS] == [name for name in NAMES if name.endswith("_percent")]


@pytest.mark.parametrize("metric", METRICS, ids=NAMES)
def test_a_metric_has_bounds_and_a_unit_that_can_be_spelt(metric: Any) -> None:
    assert metric.low == (1.0 if metric.name == "memory_percent" else 0.0)
    assert metric.low < metric.high
    assert (metric.unit == "%") == (metric.high == 100.0) == (metric.transform == "none")
    assert UNITS[metric.unit][metric.unit] == 1.0


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
def test_a_unit_is_converted_into_the_contracts(metric: str, unit: str, expected: float) -> None:
    assert factor(metric, unit) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("metric", "unit", "told"),
    [
        ("cpu_percent", "kelvin", "percent, pct, ratio"),
        ("latency_ms", "MB/s", "ms, s, us"),
        ("cpu", "ratio", "its metrics are cpu_percent"),
        ("x" * 10**6, "ratio", "no metric of this contract"),
    ],
)
def test_a_unit_that_does_not_fit_is_refused_with_those_that_do(metric: str, unit: str, told: str) -> None:
    with pytest.raises(FeedError, match=told) as found:
        factor(metric, unit)
    assert len(str(found.value)) < 500


@pytest.mark.parametrize(
    "value", ["x" * 10**6, 10**4000, -(10**400), [1] * 10**6, {"a": 1}, "\x00\n\u202e", True, None, 1e400]
)
def test_what_a_sender_wrote_is_told_short_and_printable(value: object) -> None:
    told = clip(value)
    assert len(told) <= 64
    assert told.isascii()
    assert told.isprintable()


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
        "metrics": st.dictionaries(st.sampled_from([*NAMES, "else"]), st.floats(0, 100) | VALUES, max_size=3) | VALUES,
        "more": VALUES,
    },
)


@given(RECORDS)
def test_the_quick_check_takes_only_what_the_documented_model_takes(record: dict[str, Any]) -> None:
    try:
        judge(record, Counter())
    except BadRecord:
        return
    known = {name: value for name, value in (record.get("metrics") or {}).items() if name in INDEX}
    FeedRecord.model_validate({**record, **({"metrics": known} if record.get("metrics") else {})})


@given(RECORDS)
def test_what_the_documented_model_takes_is_refused_only_for_what_no_schema_can_say(record: dict[str, Any]) -> None:
    try:
        FeedRecord.model_validate(record)
    except ValidationError:
        return
    code = None
    try:
        judge(record, Counter())
    except BadRecord as bad:
        code = bad.code
    assert code in {None, "time", "no_metrics", "range"}


def test_the_shape_of_a_feed_can_be_documented() -> None:
    schema = json.dumps(Feed.model_json_schema())
    assert all(word in schema for word in ("records", "units", "server", "cpu_percent"))
    answer = FeedAnswer(accepted=1, refused=0, duplicates=0, reasons=[], counts={})
    assert list(answer.model_dump()) == ["version", "accepted", "refused", "duplicates", "reasons", "counts"]
