"""A table of metrics as a history: what fits is taken as it is meant, what does not is refused by line or column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forecastd.errors import NeedsHuman
from forecastd.fleet.past import CONTRACT
from forecastd.fleet.table import from_table

START = 1_700_000_100


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_a_wide_table_has_a_column_a_metric(tmp_path: Path) -> None:
    rows = ["series,timestamp,profile,cpu_percent,latency_ms"]
    rows += [f"web-1,{START + 60 * k},web,{k},{2 * k}" for k in range(5)]
    rows += [f"db 2,{START + 60 * k},,{10 * k}," for k in (0, 2)]
    data = from_table(write(tmp_path, "\n".join(rows)), most=10)
    assert (data.servers, data.profiles) == (("db-2", "web-1"), ("generic", "web"))
    assert data.metrics == tuple(one for one in CONTRACT if one.name in {"cpu_percent", "latency_ms"})
    assert (data.step, data.first, data.ticks) == (60, START // 60, 5)
    assert np.array_equal(data.values[1, :, 0], np.arange(5, dtype=np.float32))
    assert np.array_equal(data.values[0, :, 0], np.array([0, np.nan, 20, np.nan, np.nan], np.float32), equal_nan=True)
    assert np.isnan(data.values[0, :, 1]).all()


def test_a_long_table_has_a_row_a_value_and_gives_the_same(tmp_path: Path) -> None:
    wide = ["series,timestamp,cpu_percent,swap_percent"] + [f"a,{START + 5 * k},{k},{k + 1}" for k in range(4)]
    long = ["series,timestamp,metric,value"]
    for k in range(4):
        long += [f"a,{START + 5 * k},swap_percent,{k + 1}", f"a,{START + 5 * k},cpu_percent,{k}"]
    first = from_table(write(tmp_path, "\n".join(wide)), most=10)
    second = from_table(write(tmp_path, "\n".join(long)), most=10)
    assert np.array_equal(first.values, second.values)
    assert (first.metrics, first.data_sha256) == (second.metrics, second.data_sha256)


@pytest.mark.parametrize(
    ("times", "first"),
    [
        (("1700000100", "1700000400"), 1_700_000_100),
        (("1700000100000", "1700000400000"), 1_700_000_100),
        (("2023-11-14T22:15:00Z", "2023-11-14T22:20:00Z"), 1_700_000_100),
        (("2023-11-14 22:15:00", "2023-11-14 22:20:00"), 1_700_000_100),
        (("2023-11-15T00:15:00+02:00", "2023-11-15T00:20:00+02:00"), 1_700_000_100),
    ],
)
def test_times_are_seconds_milliseconds_or_iso(times: tuple[str, str], first: int, tmp_path: Path) -> None:
    data = from_table(write(tmp_path, f"series,timestamp,value\na,{times[0]},1\na,{times[1]},2\n"), most=1)
    assert (data.step, data.first * data.step) == (300, first)


def test_a_metric_that_is_not_known_is_taken_as_it_comes(tmp_path: Path) -> None:
    rows = [f"a,{START + 5 * k},{k % 7},{-k},{1000 if k == 50 else 1}" for k in range(100)]
    data = from_table(write(tmp_path, "\n".join(["series,timestamp,even,below,spiky", *rows])), most=1)
    even, below, spiky = data.metrics
    assert (even.low, even.transform) == (0.0, "none")
    assert even.high > 6
    assert below.low < -99
    assert (spiky.low, spiky.transform) == (0.0, "log1p")


def test_series_of_different_times_are_laid_over_each_other_by_whole_days(tmp_path: Path) -> None:
    rows = [
        f"{name},{START + 3600 * k + days * 86_400},{k % 24}" for name, days in (("a", 0), ("b", 30)) for k in range(72)
    ]
    data = from_table(write(tmp_path, "\n".join(["series,timestamp,value", *rows])), most=2)
    assert data.ticks == 72
    assert np.array_equal(data.values[0], data.values[1])
    assert "by whole days" in data.source


def test_those_with_the_most_rows_are_taken(tmp_path: Path) -> None:
    rows = [f"s{name},{START + 5 * k},1" for name in range(4) for k in range(10 + name)]
    assert from_table(write(tmp_path, "\n".join(["series,timestamp,value", *rows])), most=2).servers == ("s2", "s3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "cannot be read"),
        ("a,b\n1,2\n", "has the columns a, b"),
        ("series,timestamp\na,1\n", "has the columns"),
        ("series,timestamp,value\na,soon,1\n", "line 2: 'soon' is no time"),
        ("series,timestamp,value\na,1700000000,1\na,1700000005,high\n", "line 3: 'high' is no number of value"),
        ("series,timestamp,value\n,1700000000,1\n", "line 2: the series is missing"),
        ("series,timestamp,profile,value\na,1700000000,WEB,1\n", "no name of a profile"),
        ("series,timestamp,c p u\na,1700000000,1\na,1700000005,1\n", "no name of a metric"),
        ("series,timestamp,value\na,1700000000,1\n", "two rows"),
        ("series,timestamp,value\na/b,1700000000,1\na b,1700000005,1\na b,1700000010,1\n", "differ only in"),
        ("series,timestamp,value\na,1700000000,\na,1700000005,\n", "no number in it"),
    ],
)
def test_what_is_no_table_of_metrics_is_told(text: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match=told):
        from_table(write(tmp_path, text), most=5)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match="No such file"):
        from_table(tmp_path / "none.csv", most=5)
