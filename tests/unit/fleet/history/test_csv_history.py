"""A CSV table as a history: valid tables are read, and the message of a refusal names column or line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forecastd.errors import NeedsHuman
from forecastd.fleet.history.csv_history import data_from_csv
from forecastd.fleet.history.training_data import CONTRACT_METRICS

START = 1_700_000_100


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "table.csv"
    path.write_text(text)
    return path


def test_csv_wide_table_has_column_per_metric(tmp_path: Path) -> None:
    rows = ["series,timestamp,profile,cpu_percent,latency_ms"]
    rows += [f"web-1,{START + 60 * k},web,{k},{2 * k}" for k in range(5)]
    rows += [f"db 2,{START + 60 * k},,{10 * k}," for k in (0, 2)]
    data = data_from_csv(write(tmp_path, "\n".join(rows)), max_series=10)
    assert (data.servers, data.profiles) == (("db-2", "web-1"), ("generic", "web"))
    assert data.metrics == tuple(metric for metric in CONTRACT_METRICS if metric.name in {"cpu_percent", "latency_ms"})
    assert (data.step, data.first, data.ticks) == (60, START // 60, 5)
    assert np.array_equal(data.values[1, :, 0], np.arange(5, dtype=np.float32))
    assert np.array_equal(data.values[0, :, 0], np.array([0, np.nan, 20, np.nan, np.nan], np.float32), equal_nan=True)
    assert np.isnan(data.values[0, :, 1]).all()


def test_csv_long_table_equals_wide_table(tmp_path: Path) -> None:
    wide = ["series,timestamp,cpu_percent,swap_percent"] + [f"a,{START + 5 * k},{k},{k + 1}" for k in range(4)]
    long = ["series,timestamp,metric,value"]
    for k in range(4):
        long += [f"a,{START + 5 * k},swap_percent,{k + 1}", f"a,{START + 5 * k},cpu_percent,{k}"]
    first = data_from_csv(write(tmp_path, "\n".join(wide)), max_series=10)
    second = data_from_csv(write(tmp_path, "\n".join(long)), max_series=10)
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
def test_csv_accepts_time_formats(times: tuple[str, str], first: int, tmp_path: Path) -> None:
    data = data_from_csv(write(tmp_path, f"series,timestamp,value\na,{times[0]},1\na,{times[1]},2\n"), max_series=1)
    assert (data.step, data.first * data.step) == (300, first)


def test_csv_unknown_metric_gets_bounds_from_data(tmp_path: Path) -> None:
    rows = [f"a,{START + 5 * k},{k % 7},{-k},{1000 if k == 50 else 1}" for k in range(100)]
    data = data_from_csv(write(tmp_path, "\n".join(["series,timestamp,even,below,spiky", *rows])), max_series=1)
    even, below, spiky = data.metrics
    assert (even.low, even.transform) == (0.0, "none")
    assert even.high > 6
    assert below.low < -99
    assert (spiky.low, spiky.transform) == (0.0, "log1p")


def test_csv_distant_series_are_aligned_by_days(tmp_path: Path) -> None:
    rows = [
        f"{name},{START + 3600 * k + days * 86_400},{k % 24}" for name, days in (("a", 0), ("b", 30)) for k in range(72)
    ]
    data = data_from_csv(write(tmp_path, "\n".join(["series,timestamp,value", *rows])), max_series=2)
    assert data.ticks == 72
    assert np.array_equal(data.values[0], data.values[1])
    assert "by whole days" in data.source


def test_csv_keeps_series_with_most_rows(tmp_path: Path) -> None:
    rows = [f"s{name},{START + 5 * k},1" for name in range(4) for k in range(10 + name)]
    assert data_from_csv(write(tmp_path, "\n".join(["series,timestamp,value", *rows])), max_series=2).servers == (
        "s2",
        "s3",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Cannot read"),
        ("a,b\n1,2\n", "has the columns a, b"),
        ("series,timestamp\na,1\n", "has the columns"),
        ("series,timestamp,value\na,soon,1\n", "line 2: 'soon' is not a time"),
        ("series,timestamp,value\na,1700000000,1\na,1700000005,high\n", "line 3: 'high' is not a number for value"),
        ("series,timestamp,value\n,1700000000,1\n", "line 2: the series is missing"),
        ("series,timestamp,profile,value\na,1700000000,WEB,1\n", "not a profile name"),
        ("series,timestamp,c p u\na,1700000000,1\na,1700000005,1\n", "not a metric name"),
        ("series,timestamp,value\na,1700000000,1\n", "two rows"),
        ("series,timestamp,value\na/b,1700000000,1\na b,1700000005,1\na b,1700000010,1\n", "differ only in"),
        ("series,timestamp,value\na,1700000000,\na,1700000005,\n", "has no numbers"),
    ],
)
def test_csv_invalid_table_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match=message):
        data_from_csv(write(tmp_path, text), max_series=5)


def test_csv_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NeedsHuman, match="No such file"):
        data_from_csv(tmp_path / "none.csv", max_series=5)
