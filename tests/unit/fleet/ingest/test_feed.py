from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import MAX_REASONS, METRIC_COUNT, METRIC_INDEX, METRIC_NAMES, FeedError
from forecastd.fleet.ingest.feed import (
    JUMP_CHECK_TICKS,
    FleetRows,
    ParsedFeed,
    RowRefusals,
    check_records,
    filter_by_time,
    parse_feed,
)

NOW = 1_700_000_000.0
STEP = 5
GOOD = {"server": "web-01", "time": NOW, "metrics": {"cpu_percent": 12.5}}
NDJSON = "application/x-ndjson; charset=utf-8"


def record(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def with_metrics(**metrics: Any) -> dict[str, Any]:
    return record(metrics={"cpu_percent": 12.5, **metrics})


def parse(*records: Any, **options: Any) -> ParsedFeed:
    body = json.dumps({"version": 1, "records": records, **options}).encode()
    return parse_feed(body, "application/json", step=STEP)


def filter_rows(rows: FleetRows, *, now: float = NOW, keep: int = 720, **options: Any) -> tuple[FleetRows, RowRefusals]:
    refusals = RowRefusals()
    return filter_by_time(rows, refusals, now=now, step=STEP, retained_ticks=keep, max_skew=30.0, **options), refusals


def value(rows: FleetRows, metric: str, row: int = 0) -> float:
    return float(rows.values[row, METRIC_INDEX[metric]])


def test_parse_feed_missing_metric_becomes_nan() -> None:
    all_metrics = dict.fromkeys(METRIC_NAMES, 2.0)
    feed = parse(
        GOOD, record(server="db:1", profile="db", status="down", time="2023-11-14T22:13:20Z", metrics=all_metrics)
    )
    rows = feed.rows
    assert feed.refusals.total == 0
    assert rows.servers == ("web-01", "db:1")
    assert rows.profiles == ("generic", "db")
    assert rows.statuses == ("ok", "down")
    assert rows.times.tolist() == [NOW, NOW]
    assert rows.ticks.tolist() == [NOW // STEP] * 2
    assert rows.values.dtype == np.float32
    assert rows.values[0].tolist()[0] == 12.5
    assert np.isnan(rows.values[0, 1:]).all()
    assert (rows.values[1] == 2.0).all()


BAD: dict[str, tuple[Any, str, str]] = {
    "text": ("web-01", "not_a_record", "the record is 'web-01'"),
    "null": (None, "not_a_record", "an object with server, time and metrics"),
    "list": ([GOOD], "not_a_record", "the record is a list"),
    "no server": (record(server=None), "server", "server is missing"),
    "empty name": (record(server=""), "server", "letters, digits"),
    "name with a space": (record(server="web 01"), "server", "'web 01'"),
    "name with a newline": (record(server="web\n"), "server", r"'web\\n'"),
    "number as name": (record(server=7), "server", "server is 7"),
    "very long name": (record(server="a" * 10**6), "server", "128 letters"),
    "no time": (record(time=None), "time", "time is missing"),
    "time absent": ({"server": "a", "metrics": {}}, "time", "time is missing"),
    "milliseconds": (record(time=NOW * 1e3), "time", "milliseconds.*send seconds"),
    "nanoseconds": (record(time=int(NOW * 1e9)), "time", "nanoseconds"),
    "huge time": (record(time=10**400), "time", "too many digits"),
    "NaN as time": (record(time=math.nan), "time", "send seconds"),
    "text as time": (record(time="yesterday"), "time", "'yesterday'; send unix seconds"),
    "seconds as text": (record(time="1700000000.5"), "time", "as a number"),
    "true as time": (record(time=True), "time", "time is True"),
    "very long time": (record(time="9" * 10**6), "time", "send unix seconds"),
    "upper-case profile": (record(profile="Web"), "profile", "lower-case"),
    "number as profile": (record(profile=1), "profile", "profile is 1"),
    "unknown status": (record(status="fine"), "status", "one of ok, degraded, down, maintenance"),
    "list as status": (record(status=[]), "status", "status is a list"),
    "list as metrics": (record(metrics=[1]), "metrics", "metrics is a list"),
    "no metrics": (record(metrics={}), "no_metrics", "cpu_percent, "),
    "metrics null": (record(metrics=None), "no_metrics", "no metric of the contract"),
    "only unknown metrics": (record(metrics={"cpu": 3}), "no_metrics", "no metric of the contract"),
    "only null metrics": (record(metrics={"cpu_percent": None}), "no_metrics", "no metric of the contract"),
    "text as number": (with_metrics(latency_ms="12.5"), "not_a_number", "latency_ms is '12.5'; send it as a JSON number"),
    "true as number": (with_metrics(swap_percent=True), "not_a_number", "swap_percent is True"),
    "list as number": (with_metrics(swap_percent=[1.0]), "not_a_number", "swap_percent is a list"),
    "deeply nested": (with_metrics(swap_percent=[[[[[{}]]]]]), "not_a_number", "swap_percent is a list"),
    "NaN": (with_metrics(latency_ms=math.nan), "nan", "latency_ms is NaN; omit a metric"),
    "Infinity": (with_metrics(latency_ms=math.inf), "nan", "latency_ms is infinite"),
    "-Infinity": (with_metrics(latency_ms=-math.inf), "nan", "latency_ms is infinite"),
    "1e400": (with_metrics(latency_ms=10**400), "range", "too many digits"),
    "huge integer": (with_metrics(latency_ms=10**30), "range", "no machine has such a value"),
    "negative": (with_metrics(latency_ms=-0.5), "range", "-0.5 is below 0 ms"),
    "negative percent": (with_metrics(memory_percent=-3), "range", "-3 is below 1 %"),
    "hundredths": (with_metrics(disk_percent=8500), "unit", "8500 is above 100 %. Is it in hundredths"),
    "just above the bound": (with_metrics(disk_percent=100.5), "unit", "100.5 is above 100 %"),
    "bytes for megabytes": (with_metrics(network_in_mb_s=125_000_000), "unit", "smaller unit.*MB/s"),
    "memory as ratio": (with_metrics(memory_percent=0.63), "unit", 'If it is a ratio.*"memory_percent": "ratio"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_parse_feed_bad_record_is_refused_alone(kind: str) -> None:
    bad_record, code, words = BAD[kind]
    feed = parse(GOOD, bad_record, record(server="web-02"))
    assert feed.rows.servers == ("web-01", "web-02")
    assert feed.rows.positions.tolist() == [0, 2]
    (refusal,) = feed.refusals.first
    assert (refusal.row, refusal.code) == (1, code)
    assert dict(feed.refusals.counts) == {code: 1}
    assert len(refusal.reason) < 400
    assert re.search(words, refusal.reason), refusal.reason
    assert refusal.server is None or len(refusal.server) <= 128


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in {"huge time", "1e400"}])
def test_parse_feed_ndjson_refuses_like_json(kind: str) -> None:
    lines = [json.dumps(refusal) for refusal in (GOOD, BAD[kind][0], record(server="web-02"))]
    feed = parse_feed("\n".join(lines).encode(), NDJSON, step=STEP)
    assert feed.rows.servers == ("web-01", "web-02")
    assert [(refusal.row, refusal.code) for refusal in feed.refusals.first] == [(1, BAD[kind][1])]


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b'{"server": "a" "time": 1}', b"[" * 10_000, b'"\\ud800"', b"1" * 5_000]
)
def test_parse_feed_ndjson_invalid_line_is_refused_alone(line: bytes) -> None:
    valid_line = json.dumps(GOOD).encode()
    feed = parse_feed(b"\xef\xbb\xbf" + valid_line + b"\r\n\r\n" + line + b"\n" + valid_line + b"\n", NDJSON, step=STEP)
    assert len(feed.rows) == 2
    assert feed.rows.positions.tolist() == [0, 3]
    assert [(refusal.row, refusal.code) for refusal in feed.refusals.first] == [(2, "not_json")]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "the body is empty"),
        (b"  \n", "the body is empty"),
        (b"hello", "not JSON"),
        (b'{"version": 1, "records": [', "not JSON"),
        (b'{"version": 1, "records": ["\xff"]}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"version":1,"records":[' + b'{"a":' * 5_000 + b"}" * 5_000 + b"]}", "not JSON"),
        (b"null", "the body is None"),
        (b"[]", "the body is a list"),
        (b"17", "the body is 17"),
        (b'{"records": []}', "version is missing"),
        (b'{"version": 2, "records": []}', "version is 2; this forecastd takes version 1"),
        (b'{"version": "1", "records": []}', "version is '1'"),
        (b'{"version": true, "records": []}', "version is True"),
        (b'{"version": 1}', "records"),
        (b'{"version": 1, "records": {}}', "records"),
        (b'{"version": 1, "records": null}', "records"),
        (b'{"version": 1, "records": [], "units": []}', "units"),
        (b'{"version": 1, "records": [], "units": {"cpu_percent": 1}}', "units"),
        (b'{"version": 1, "records": [], "units": {"cpu_percent": "furlong"}}', "may be in %, percent"),
        (b'{"version": 1, "records": [], "units": {"cpu": "ratio"}}', "the metrics are"),
    ],
)
def test_parse_feed_invalid_body_raises(body: bytes, words: str) -> None:
    with pytest.raises(FeedError, match=words) as feed:
        parse_feed(body, None, step=STEP)
    assert len(str(feed.value)) < 600


def test_parse_feed_without_records_is_valid() -> None:
    for feed in (parse(), parse_feed(b"", NDJSON, step=STEP), parse_feed(b"\n\n", NDJSON, step=STEP)):
        assert len(feed.rows) == feed.refusals.total == 0
        assert feed.rows.values.shape == (0, METRIC_COUNT)


def test_parse_feed_duplicate_key_uses_last() -> None:
    body = b'{"version":1,"records":[{"server":"a","time":1,"metrics":{"cpu_percent":1,"cpu_percent":2}}]}'
    assert value(parse_feed(body, None, step=STEP).rows, "cpu_percent") == 2.0


def test_parse_feed_unknown_metric_is_counted() -> None:
    feed = parse(
        with_metrics(gpu_percent=3), with_metrics(gpu_percent="x", **{"y" * 10**5: 1}), with_metrics(swap_percent=None)
    )
    assert len(feed.rows) == 3
    assert feed.unknown_metrics["gpu_percent"] == 2
    assert feed.unknown_metrics.total() == 3
    assert max(map(len, feed.unknown_metrics)) == 64


def test_parse_feed_unknown_metric_names_are_bounded() -> None:
    feed = check_records([with_metrics(**{f"m{i}": 1.0 for i in range(1_000)}) for _ in range(3)], step=STEP)
    assert len(feed.rows) == 3
    assert len(feed.unknown_metrics) <= MAX_REASONS


def test_parse_feed_down_server_needs_no_metrics() -> None:
    feed = parse(record(status="down", metrics={}), record(status="maintenance", metrics=None))
    assert np.isnan(feed.rows.values).all()
    assert feed.rows.statuses == ("down", "maintenance")


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("2023-11-14T22:13:20Z", NOW),
        ("2023-11-14T22:13:20", NOW),
        ("2023-11-14 22:13:20.250000", NOW + 0.25),
        ("2023-11-15T00:13:20+02:00", NOW),
        ("20231114T221320Z", NOW),
        (1_700_000_000, NOW),
        (-5.5, -5.5),
    ],
)
def test_parse_feed_accepts_time_formats(written: object, seconds: float) -> None:
    rows = parse(record(time=written)).rows
    assert rows.times.tolist() == [seconds]
    assert rows.ticks.tolist() == [math.floor(seconds / STEP)]


def test_parse_feed_units_apply_to_all_records() -> None:
    metrics = {
        "cpu_percent": 0.5,
        "memory_percent": 0.63,
        "latency_ms": 0.2,
        "network_in_mb_s": 2.5e6,
        "swap_percent": 3.0,
    }
    units = {"cpu_percent": "ratio", "memory_percent": "fraction", "latency_ms": "s", "network_in_mb_s": "B/s"}
    rows = parse(record(metrics=metrics), units=units).rows
    feed = {name: value(rows, name) for name in metrics}
    assert feed == pytest.approx(
        {"cpu_percent": 50, "memory_percent": 63, "latency_ms": 200, "network_in_mb_s": 2.5, "swap_percent": 3}
    )
    assert parse(record(metrics={"cpu_percent": 1.5}), units=units).refusals.counts == {"unit": 1}
    assert parse(record(metrics={"latency_ms": 1e308}), units=units).refusals.counts == {"nan": 1}


def test_parse_feed_tolerates_rounding() -> None:
    rows = parse(with_metrics(cpu_percent=100.00000000000001, swap_percent=-1e-12, memory_percent=0.9999999999)).rows
    assert value(rows, "cpu_percent") == 100.0
    assert value(rows, "swap_percent") == 0.0
    assert value(rows, "memory_percent") == 1.0


def test_parse_feed_reasons_are_bounded_and_counted() -> None:
    feed = parse(*[{"server": "!"}] * 5_000, GOOD, *[record(time=0)] * 5_000)
    rows, refusals = filter_rows(feed.rows)
    assert len(feed.refusals.first) == MAX_REASONS
    assert feed.refusals.counts == {"server": 5_000}
    assert len(rows) == 1
    assert refusals.counts == {"old": 5_000}
    assert len(refusals.first) == MAX_REASONS


@pytest.mark.parametrize(
    ("seconds", "code"),
    [
        (0, None),
        (30, None),
        (30.5, "future"),
        (3_600, "future"),
        (9e10, "future"),
        (-3_500, None),
        (-3_601, "old"),
        (-NOW, "old"),
        (-9e10, "old"),
    ],
)
def test_filter_by_time_accepts_window(seconds: float, code: str | None) -> None:
    rows, refusals = filter_rows(parse(record(time=NOW + seconds)).rows)
    assert len(rows) == (code is None)
    assert dict(refusals.counts) == ({} if code is None else {code: 1})
    if code == "future":
        assert "set the server's clock" in refusals.first[0].reason
    if code == "old":
        assert "which begins at 2023-11-14T21:13:20Z" in refusals.first[0].reason


PREVIOUS = {"cpu_percent": 40.0, "disk_percent": 70.0, "swap_percent": 3.0, "latency_ms": 100.0}


@pytest.mark.parametrize(
    ("metrics", "refused"),
    [
        ({"cpu_percent": 0.45, "disk_percent": 0.7, "swap_percent": 0.031}, True),
        ({"cpu_percent": 0.45, "disk_percent": 0.7, "swap_percent": 0.031, "latency_ms": 100.0}, True),
        ({"cpu_percent": 0.45, "disk_percent": 70.0, "swap_percent": 0.031}, False),
        ({"cpu_percent": 0.45, "disk_percent": 0.7}, False),
        ({"cpu_percent": 4.0, "disk_percent": 7.0, "swap_percent": 0.3}, False),
        ({"cpu_percent": 80.0, "disk_percent": 71.0, "swap_percent": 3.0}, False),
        ({"cpu_percent": 0.0, "disk_percent": 0.0, "swap_percent": 0.0}, False),
        ({"latency_ms": 1.0}, False),
    ],
)
@pytest.mark.parametrize("upwards", [False, True])
def test_filter_by_time_refuses_unit_jump(metrics: dict[str, float], refused: bool, upwards: bool) -> None:
    single, other = (
        check_records([record(metrics=PREVIOUS)], step=STEP).rows,
        check_records([record(metrics=metrics)], step=STEP).rows,
    )
    new, old = (single, other) if upwards else (other, single)
    rows, refusals = filter_rows(new, previous=old.values, previous_ticks=old.ticks)
    assert len(rows) == (not refused)
    assert dict(refusals.counts) == ({"unit": 1} if refused else {})
    rows, _ = filter_rows(new, previous=old.values, previous_ticks=old.ticks - JUMP_CHECK_TICKS - 1)
    assert len(rows) == 1, "an old row is no longer compared"


KEYS = st.sampled_from(["server", "time", "metrics", "cpu_percent", "x"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6) | st.just("web-01"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(ANYTHING, max_size=6))
def test_parse_feed_any_records_are_accepted_or_refused(records: list[Any]) -> None:
    feed = check_records([*records, GOOD], step=STEP)
    assert len(feed.rows) + feed.refusals.total == len(records) + 1
    assert feed.rows.servers[-1] == "web-01"
    assert sorted([*feed.rows.positions.tolist(), *(refusal.row for refusal in feed.refusals.first)]) == list(
        range(len(records) + 1)
    )
    with np.errstate(all="raise"):
        filter_rows(feed.rows)
    json.dumps([vars(refusal) for refusal in feed.refusals.first]).encode()


@given(st.binary(max_size=60), st.sampled_from([None, "application/json", NDJSON]))
def test_parse_feed_any_bytes_give_clear_result(body: bytes, content_type: str | None) -> None:
    message, rows = "", 0
    try:
        rows = len(parse_feed(body, content_type, step=STEP).rows)
    except FeedError as error:
        message = str(error)
    assert rows == 0
    assert message.isprintable()
