from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.contract import INDEX, MOST_REASONS, NAMES, FeedError, M
from forecastd.fleet.intake import JUDGED, Parsed, Refusals, Rows, admit, check, parse_feed

NOW = 1_700_000_000.0
STEP = 5
GOOD = {"server": "web-01", "time": NOW, "metrics": {"cpu_percent": 12.5}}
NDJSON = "application/x-ndjson; charset=utf-8"


def record(**changes: Any) -> dict[str, Any]:
    return {**GOOD, **changes}


def with_metrics(**metrics: Any) -> dict[str, Any]:
    return record(metrics={"cpu_percent": 12.5, **metrics})


def parsed(*records: Any, **more: Any) -> Parsed:
    body = json.dumps({"version": 1, "records": records, **more}).encode()
    return parse_feed(body, "application/json", step=STEP)


def admitted(rows: Rows, *, now: float = NOW, keep: int = 720, **more: Any) -> tuple[Rows, Refusals]:
    refusals = Refusals()
    return admit(rows, refusals, now=now, step=STEP, keep=keep, max_skew=30.0, **more), refusals


def value(rows: Rows, metric: str, row: int = 0) -> float:
    return float(rows.values[row, INDEX[metric]])


def test_a_good_record_becomes_a_row_with_nan_for_what_it_does_not_have() -> None:
    every = dict.fromkeys(NAMES, 2.0)
    found = parsed(GOOD, record(server="db:1", profile="db", status="down", time="2023-11-14T22:13:20Z", metrics=every))
    rows = found.rows
    assert found.refusals.total == 0
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
    "a text": ("web-01", "not_a_record", "the record is 'web-01'"),
    "null": (None, "not_a_record", "an object with server, time and metrics"),
    "a list": ([GOOD], "not_a_record", "the record is a list"),
    "no server": (record(server=None), "server", "server is missing"),
    "an empty name": (record(server=""), "server", "letters, digits"),
    "a name with a blank": (record(server="web 01"), "server", "'web 01'"),
    "a name with a newline": (record(server="web\n"), "server", r"'web\\n'"),
    "a number as name": (record(server=7), "server", "server is 7"),
    "a name of a million": (record(server="a" * 10**6), "server", "128 letters"),
    "no time": (record(time=None), "time", "time is missing"),
    "no time at all": ({"server": "a", "metrics": {}}, "time", "time is missing"),
    "milliseconds": (record(time=NOW * 1e3), "time", "milliseconds.*send seconds"),
    "nanoseconds": (record(time=int(NOW * 1e9)), "time", "nanoseconds"),
    "a time without end": (record(time=10**400), "time", "very many digits"),
    "NaN as time": (record(time=math.nan), "time", "send seconds"),
    "a text as time": (record(time="yesterday"), "time", "'yesterday'; send unix seconds"),
    "seconds as text": (record(time="1700000000.5"), "time", "as a number"),
    "true as time": (record(time=True), "time", "time is True"),
    "a time of a million letters": (record(time="9" * 10**6), "time", "send unix seconds"),
    "a profile with capitals": (record(profile="Web"), "profile", "lower-case"),
    "a profile that is a number": (record(profile=1), "profile", "profile is 1"),
    "a status of its own": (record(status="fine"), "status", "one of ok, degraded, down, maintenance"),
    "a status that is a list": (record(status=[]), "status", "status is a list"),
    "metrics that are a list": (record(metrics=[1]), "metrics", "metrics is a list"),
    "no metrics": (record(metrics={}), "no_metrics", "cpu_percent, "),
    "metrics null": (record(metrics=None), "no_metrics", "none of the contract's"),
    "only unknown metrics": (record(metrics={"cpu": 3}), "no_metrics", "none of the contract's"),
    "only null metrics": (record(metrics={"cpu_percent": None}), "no_metrics", "none of the contract's"),
    "a number as text": (with_metrics(latency_ms="12.5"), "not_a_number", "latency_ms is '12.5'; send it as a JSON number"),
    "true as number": (with_metrics(swap_percent=True), "not_a_number", "swap_percent is True"),
    "a list as number": (with_metrics(swap_percent=[1.0]), "not_a_number", "swap_percent is a list"),
    "nested deep": (with_metrics(swap_percent=[[[[[{}]]]]]), "not_a_number", "swap_percent is a list"),
    "NaN": (with_metrics(latency_ms=math.nan), "nan", "latency_ms is NaN; leave a metric out"),
    "Infinity": (with_metrics(latency_ms=math.inf), "nan", "latency_ms is infinite"),
    "-Infinity": (with_metrics(latency_ms=-math.inf), "nan", "latency_ms is infinite"),
    "1e400": (with_metrics(latency_ms=10**400), "range", "very many digits"),
    "a huge integer": (with_metrics(latency_ms=10**30), "range", "more than any machine has"),
    "negative": (with_metrics(latency_ms=-0.5), "range", "-0.5 is below 0 ms"),
    "negative percent": (with_metrics(memory_percent=-3), "range", "-3 is below 1 %"),
    "hundredths": (with_metrics(disk_percent=8500), "unit", "8500 is above 100 %: sent in hundredths"),
    "just too much": (with_metrics(disk_percent=100.5), "unit", "100.5 is above 100 %"),
    "bytes for megabytes": (with_metrics(network_in_mb_s=125_000_000), "unit", "smaller unit.*MB/s"),
    "a ratio of memory": (with_metrics(memory_percent=0.63), "unit", 'sent as a ratio.*"memory_percent": "ratio"'),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_refused_with_cause_and_fix_and_costs_no_other(kind: str) -> None:
    bad, code, words = BAD[kind]
    found = parsed(GOOD, bad, record(server="web-02"))
    assert found.rows.servers == ("web-01", "web-02")
    assert found.rows.places.tolist() == [0, 2]
    (refusal,) = found.refusals.first
    assert (refusal.row, refusal.code) == (1, code)
    assert dict(found.refusals.counts) == {code: 1}
    assert len(refusal.reason) < 400
    assert re.search(words, refusal.reason), refusal.reason
    assert refusal.server is None or len(refusal.server) <= 128


@pytest.mark.parametrize("kind", [kind for kind in BAD if kind not in {"a time without end", "1e400"}])
def test_a_bad_line_is_refused_as_a_bad_record_is(kind: str) -> None:
    lines = [json.dumps(one) for one in (GOOD, BAD[kind][0], record(server="web-02"))]
    found = parse_feed("\n".join(lines).encode(), NDJSON, step=STEP)
    assert found.rows.servers == ("web-01", "web-02")
    assert [(one.row, one.code) for one in found.refusals.first] == [(1, BAD[kind][1])]


@pytest.mark.parametrize(
    "line", [b"{", b"\xff\xfe", b'{"server": "a" "time": 1}', b"[" * 10_000, b'"\\ud800"', b"1" * 5_000]
)
def test_a_line_that_is_not_json_costs_that_line(line: bytes) -> None:
    good = json.dumps(GOOD).encode()
    found = parse_feed(b"\xef\xbb\xbf" + good + b"\r\n\r\n" + line + b"\n" + good + b"\n", NDJSON, step=STEP)
    assert len(found.rows) == 2
    assert found.rows.places.tolist() == [0, 3]
    assert [(one.row, one.code) for one in found.refusals.first] == [(2, "not_json")]


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
        (b'{"version": 1, "records": [], "units": {"cpu": "ratio"}}', "its metrics are"),
    ],
)
def test_what_is_no_feed_is_told_as_a_whole(body: bytes, words: str) -> None:
    with pytest.raises(FeedError, match=words) as found:
        parse_feed(body, None, step=STEP)
    assert len(str(found.value)) < 600


def test_an_empty_feed_is_a_feed() -> None:
    for found in (parsed(), parse_feed(b"", NDJSON, step=STEP), parse_feed(b"\n\n", NDJSON, step=STEP)):
        assert len(found.rows) == found.refusals.total == 0
        assert found.rows.values.shape == (0, M)


def test_of_a_key_that_is_there_twice_the_last_counts() -> None:
    body = b'{"version":1,"records":[{"server":"a","time":1,"metrics":{"cpu_percent":1,"cpu_percent":2}}]}'
    assert value(parse_feed(body, None, step=STEP).rows, "cpu_percent") == 2.0


def test_a_metric_of_another_name_is_counted_and_the_row_taken() -> None:
    found = parsed(
        with_metrics(gpu_percent=3), with_metrics(gpu_percent="x", **{"y" * 10**5: 1}), with_metrics(swap_percent=None)
    )
    assert len(found.rows) == 3
    assert found.unknown["gpu_percent"] == 2
    assert found.notes() == {"unknown_metric": 3}
    assert max(map(len, found.unknown)) == 64


def test_metrics_of_a_million_names_are_not_all_remembered() -> None:
    found = check([with_metrics(**{f"m{i}": 1.0 for i in range(1_000)}) for _ in range(3)], step=STEP)
    assert len(found.rows) == 3
    assert len(found.unknown) <= MOST_REASONS


def test_a_server_that_is_down_needs_no_metrics() -> None:
    found = parsed(record(status="down", metrics={}), record(status="maintenance", metrics=None))
    assert np.isnan(found.rows.values).all()
    assert found.rows.statuses == ("down", "maintenance")


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
def test_a_time_may_be_written_in_several_ways(written: object, seconds: float) -> None:
    rows = parsed(record(time=written)).rows
    assert rows.times.tolist() == [seconds]
    assert rows.ticks.tolist() == [math.floor(seconds / STEP)]


def test_a_unit_holds_for_the_whole_feed() -> None:
    metrics = {
        "cpu_percent": 0.5,
        "memory_percent": 0.63,
        "latency_ms": 0.2,
        "network_in_mb_s": 2.5e6,
        "swap_percent": 3.0,
    }
    units = {"cpu_percent": "ratio", "memory_percent": "fraction", "latency_ms": "s", "network_in_mb_s": "B/s"}
    rows = parsed(record(metrics=metrics), units=units).rows
    found = {name: value(rows, name) for name in metrics}
    assert found == pytest.approx(
        {"cpu_percent": 50, "memory_percent": 63, "latency_ms": 200, "network_in_mb_s": 2.5, "swap_percent": 3}
    )
    assert parsed(record(metrics={"cpu_percent": 1.5}), units=units).refusals.counts == {"unit": 1}
    assert parsed(record(metrics={"latency_ms": 1e308}), units=units).refusals.counts == {"nan": 1}


def test_what_a_senders_arithmetic_is_off_by_is_no_reason() -> None:
    rows = parsed(with_metrics(cpu_percent=100.00000000000001, swap_percent=-1e-12, memory_percent=0.9999999999)).rows
    assert value(rows, "cpu_percent") == 100.0
    assert value(rows, "swap_percent") == 0.0
    assert value(rows, "memory_percent") == 1.0


def test_a_hundred_reasons_are_told_and_all_are_counted() -> None:
    found = parsed(*[{"server": "!"}] * 5_000, GOOD, *[record(time=0)] * 5_000)
    rows, refusals = admitted(found.rows)
    assert len(found.refusals.first) == MOST_REASONS
    assert found.refusals.counts == {"server": 5_000}
    assert len(rows) == 1
    assert refusals.counts == {"old": 5_000}
    assert len(refusals.first) == MOST_REASONS


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
def test_a_row_is_admitted_by_its_time(seconds: float, code: str | None) -> None:
    rows, refusals = admitted(parsed(record(time=NOW + seconds)).rows)
    assert len(rows) == (code is None)
    assert dict(refusals.counts) == ({} if code is None else {code: 1})
    if code == "future":
        assert "set the server's clock" in refusals.first[0].reason
    if code == "old":
        assert "which begins at 2023-11-14T21:13:20Z" in refusals.first[0].reason


BEFORE = {"cpu_percent": 40.0, "disk_percent": 70.0, "swap_percent": 3.0, "latency_ms": 100.0}


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
def test_percents_that_all_jump_a_hundredfold_are_another_unit(
    metrics: dict[str, float], refused: bool, upwards: bool
) -> None:
    one, other = check([record(metrics=BEFORE)], step=STEP).rows, check([record(metrics=metrics)], step=STEP).rows
    new, old = (one, other) if upwards else (other, one)
    rows, refusals = admitted(new, previous=old.values, previous_ticks=old.ticks)
    assert len(rows) == (not refused)
    assert dict(refusals.counts) == ({"unit": 1} if refused else {})
    rows, _ = admitted(new, previous=old.values, previous_ticks=old.ticks - JUDGED - 1)
    assert len(rows) == 1, "what a server said long ago does not speak against it for ever"


KEYS = st.sampled_from(["server", "time", "metrics", "cpu_percent", "x"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=6) | st.just("web-01"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(st.lists(ANYTHING, max_size=6))
def test_whatever_is_sent_is_taken_or_refused_row_by_row(records: list[Any]) -> None:
    found = check([*records, GOOD], step=STEP)
    assert len(found.rows) + found.refusals.total == len(records) + 1
    assert found.rows.servers[-1] == "web-01"
    assert sorted([*found.rows.places.tolist(), *(one.row for one in found.refusals.first)]) == list(
        range(len(records) + 1)
    )
    with np.errstate(all="raise"):
        admitted(found.rows)
    json.dumps([vars(one) for one in found.refusals.first]).encode()


@given(st.binary(max_size=60), st.sampled_from([None, "application/json", NDJSON]))
def test_whatever_bytes_come_the_answer_is_clear(body: bytes, content_type: str | None) -> None:
    told, rows = "", 0
    try:
        rows = len(parse_feed(body, content_type, step=STEP).rows)
    except FeedError as error:
        told = str(error)
    assert rows == 0
    assert told.isprintable()
