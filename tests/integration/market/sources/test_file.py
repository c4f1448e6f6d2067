"""The file source and the export: formats of many vendors, invalid files, and the round trip."""

from __future__ import annotations

import gzip
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.clock import from_iso, to_iso
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market.candles import COLUMNS, HOUR, Candles, run_checks
from forecastd.market.sources import export
from forecastd.market.sources.csv_file import read_csv
from forecastd.market.sources.file import FileSource
from forecastd.market.sources.sample import SampleSource
from forecastd.market.sources.table import CandleTable

NOW = 1.7e9
START = int(from_iso("2019-10-17T09:00:00Z"))
ROWS = [(START - 2 * HOUR, 1, 4, 0.5, 2, 10), (START - HOUR, 2, 4, 0.5, 3, 11), (START, 3, 4, 0.5, 3.5, 12)]
HEADER = "time,open,high,low,close,volume"


def lines(time: Callable[[int], object] = to_iso, rows: list[tuple[float, ...]] | None = None) -> list[str]:
    return [",".join(map(str, (time(int(row[0])), *row[1:]))) for row in (ROWS if rows is None else rows)]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., Candles]:
    def read(content: str | bytes, name: str = "candles.csv", symbol: str = "btcusd") -> Candles:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return FileSource(path, symbol).fetch(0, 2**33, NOW)

    return read


def test_file_real_download_is_read_unchanged(real_candles: Path) -> None:
    candles = FileSource(real_candles, "btcusd").fetch(0, 2**33, NOW)
    assert len(candles) == 20_111
    assert (to_iso(candles.time[0]), to_iso(candles.time[-1])) == ("2017-07-01T11:00:00Z", "2019-10-17T09:00:00Z")
    assert (np.diff(candles.time) == HOUR).all()
    assert [column[-1] for column in candles.columns] == [8051, 8056.83, 8021.23, 8035.88, 61.25]
    assert not candles.provenance.synthetic


def test_check_real_candles_pass_except_frozen_feed(real_candles: Path) -> None:
    remaining = FileSource(real_candles, "btcusd").fetch(0, 2**33, 1.7e9)
    refused: dict[str, set[str]] = {}
    for end in range(408, len(remaining) + 1, 97):
        recent = remaining.take(slice(end - 408, end))
        for name, reason in run_checks(recent, now=recent.end, min_length=408, max_age=0).items():
            if reason:
                refused.setdefault(name, set()).add(reason)
    assert set(refused) == {"flat"}
    # The download repeats 6556.25 without volume for 15 hours of one day; nothing else is refused.
    assert all("6556.25" in reason for reason in refused["flat"])


@pytest.mark.parametrize(
    "content",
    [
        "\n".join([HEADER, *lines()]),
        "\n".join([HEADER, *lines()[::-1]]),
        "\n".join([HEADER, *[lines()[index] for index in (1, 2, 0, 1)]]),
        "\r\n".join(["﻿" + HEADER, *lines(), "", ""]),
        "\n".join(["# a note", "From somewhere,https://example.com", "", HEADER, *lines()]),
        "\n".join([HEADER.replace(",", ";"), *[line.replace(",", ";") for line in lines()]]),
        "\n".join([HEADER.replace(",", "\t"), *[line.replace(",", "\t") for line in lines()]]),
        "\n".join(["Unix,Open,High,Low,Close,Volume BTC", *lines(lambda t: t * 1000)]),
        "\n".join(lines(lambda t: t)),
        "\n".join(["timestamp,open,high,low,close,volume", *lines(lambda t: f"{t}.0")]),
        "\n".join([",Open,High,Low,Close,Volume", *lines()]),
        "\n".join([HEADER, *[line.replace("4,0.5", '"4","0.5"') for line in lines()]]),
    ],
    ids=[
        "plain",
        "newest-first",
        "unordered",
        "bom-crlf",
        "preamble",
        "semicolons",
        "tabs",
        "unix-ms",
        "headerless",
        "float-seconds",
        "index",
        "quoted",
    ],
)
def test_file_layouts_give_the_same_candles(read: Callable[..., Candles], content: str) -> None:
    candles = read(content)
    assert candles.time.tolist() == [row[0] for row in ROWS]
    np.testing.assert_array_equal(np.column_stack(candles.columns), [row[1:] for row in ROWS])


def test_file_repairs_are_reported(read: Callable[..., Candles]) -> None:
    candles = read(
        "\n".join([HEADER.removesuffix(",volume"), *[line.rpartition(",")[0] for line in reversed(lines())]])
    )
    assert candles.repairs == (
        "the file has no volume; it is taken as 0",
        "sorted 3 candles by time (newest first)",
    )


def test_file_gzip_is_detected_by_content(read: Callable[..., Candles]) -> None:
    assert len(read(gzip.compress("\n".join([HEADER, *lines()]).encode()), "candles.csv")) == 3


def test_file_several_symbols_selects_pair_and_reports(read: Callable[..., Candles]) -> None:
    both = [f"{line},{name}" for line in lines() for name in ("ETH/USD", "BTC/USD")]
    candles = read("\n".join([f"{HEADER},symbol", *both]))
    assert len(candles) == 3
    assert candles.repairs == ("took 3 rows of BTC/USD; the file has 2 symbols",)
    with pytest.raises(NeedsHuman, match=r"holds BTC/USD, ETH/USD, not solusd.*SYMBOL"):
        read("\n".join([f"{HEADER},symbol", *both]), symbol="solusd")


BAD: list[tuple[str, str | bytes, type[Exception], str]] = [
    ("empty", "", SkipEpoch, "is empty"),
    ("blank", "\n\n\n", SkipEpoch, "is empty"),
    ("only a header", HEADER + "\n", SkipEpoch, "is empty"),
    ("text for a number", "\n".join([HEADER, *lines(), f"{to_iso(START + HOUR)},1,2,1,soon,3"]), SkipEpoch,
     "line 5, column 'close': 'soon' is not a number"),
    ("text for a time", "\n".join([HEADER, *lines(), "soon,1,2,1,2,3"]), SkipEpoch, "line 5, column 'time': 'soon'"),
    ("truncated line", "\n".join([HEADER, *lines(), "2019-10-17T10:00:00Z,1,2"]), SkipEpoch, "line 5 has 3 fields"),
    ("latin-1", "\n".join([HEADER, *lines()]).encode() + b"\n2019\xe9,1,2,1,2,3", SkipEpoch, "line 5 is not UTF-8"),
    ("NUL bytes", "\n".join([HEADER, *lines()]).encode() + b"\n\0\0\0", SkipEpoch, "line 5 contains binary"),
    ("no newline at all", b"x" * 100_000, SkipEpoch, "the file is not CSV"),
    ("no candles", "name,age\nann,31\n", NeedsHuman, "begins with 'name,age'"),
    ("minutes", "\n".join([HEADER, *lines(rows=[(START + 60 * row, 1, 1, 1, 1, 1) for row in range(9)])]), NeedsHuman,
     "every 60 s"),
    ("days", "\n".join([HEADER, *lines(rows=[(START + 86400 * row, 1, 1, 1, 1, 1) for row in range(9)])]), NeedsHuman,
     "every 86400 s"),
    ("another pair", "\n".join([f"{HEADER},symbol", *[f"{line},ETHUSD" for line in lines()]]), NeedsHuman, "not btcusd"),
    ("day or month", "\n".join([HEADER, "01/02/2019 09:00,1,1,1,1,1"]), NeedsHuman, "ambiguous"),
    ("two prices for one hour", "\n".join([HEADER, *lines(), lines()[0].replace(",10", ",9")]), SkipEpoch, "differ"),
    ("pickle", pickle.dumps({"a": 1}), NeedsHuman, "pickle"),
    ("zip", b"PK\x03\x04" + b"\0" * 50, NeedsHuman, "zip archive"),
    ("web page", "<!doctype html><html></html>", NeedsHuman, "web page"),
    ("UTF-16", "\n".join([HEADER, *lines()]).encode("utf-16"), NeedsHuman, "UTF-16"),
    ("half a gzip", gzip.compress("\n".join([HEADER, *lines()]).encode())[:-9], SkipEpoch, "gzip archive is truncated"),
    ("half a Parquet", b"PAR1" + b"\0" * 99, SkipEpoch, "Parquet file is truncated"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "error", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_file_invalid_content_is_refused_with_reason(
    read: Callable[..., Candles], content: str | bytes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        read(content)


PRICES = {  # forms of 10500, 10900, 10100.25, 10700 and 5 in a file, and the error
    "1571302800;10500;10900;10100,25;10700;5": None,
    "1571302800;10.500,00;10.900,0;10.100,25;10.700,00;5": None,
    "1571302800\t10500\t10900\t10100,25\t10700\t5,0": None,
    "1571302800;10500.0;10900;10100.25;10700;5": None,
    "1571302800;10,500.0;10,900.0;10,100.25;10,700.0;5": None,
    '1571302800,"10,500.00","10,900.00","10,100.25","10,700.00",5': None,
    '1571302800,"10,500","10,900","10,100.25",10700,5': None,
    '1571302800,"10,500","10,900","10,100","10,700",5': "column 'open': '10,500' is ambiguous",
    '1571302800,"10500,5","10900,5","10100,25","10700,5",5': "is not a number.*Write decimals with a point",
    "1571302800;10.500;10.900;10100,25;10700;5": "line . has a point",
    "1571302800;10,500;10900.0;10100,25;10700;5": "column 'open': '10,500' has a comma as decimal mark",
    "1571302800;1,050,000;1,090,000;1,010,025;1,070,000;5": "is not a number",
}


@pytest.mark.parametrize(("line", "message"), PRICES.items(), ids=range(len(PRICES)))
@pytest.mark.parametrize("header", [True, False])
def test_file_ambiguous_comma_is_refused(
    read: Callable[..., Candles], line: str, message: str | None, header: bool
) -> None:
    mark = next(mark for mark in ";\t," if mark in line)
    content = HEADER.replace(",", mark) + "\n" + line if header else line
    if message is None:
        assert [column[0] for column in read(content).columns] == [10500, 10900, 10100.25, 10700, 5]
        return
    no_header = "no header line with columns"  # a first line without numbers counts as a header
    with pytest.raises((SkipEpoch, NeedsHuman), match=message if header else f"{message}|{no_header}"):
        read(content)


def test_file_decimal_comma_with_semicolon_is_kept(read: Callable[..., Candles]) -> None:
    for header in ("time;open;high;low;close;volume\n", ""):
        candles = read(header + "1571302800;10,500;10,900;10,100;10,700;5\n1571306400;10,5;10,9;10,1;10,7;5,25\n")
        assert candles.open.tolist() == [10.5, 10.5]
        assert candles.volume.tolist() == [5, 5.25]


def test_file_row_with_extra_fields_is_refused(read: Callable[..., Candles]) -> None:
    with pytest.raises(SkipEpoch, match=r"line 2 has 10 fields instead of 6.*in quotes"):
        read(f"{HEADER}\n1571302800,10,500,10,900,10,100,10,700,5")
    assert len(read("\n".join([HEADER, *[line + "," for line in lines()]]))) == 3


def test_file_unchanged_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "candles.csv", list[Path]()
    path.write_text("\n".join([HEADER, *lines()]))

    def count_call(path: Path, symbol: str, step: int) -> CandleTable:
        reads.append(path)
        return read_csv(path, symbol, step)

    monkeypatch.setattr("forecastd.market.sources.file.read_csv", count_call)
    for source in (FileSource(path, "btcusd"), FileSource(path, "btcusd")):
        assert not source.synthetic
        assert len(source.fetch(0, 2**33, NOW)) == 3
        assert len(source.fetch(START, 2**33, NOW)) == 1
    assert len(reads) == 1
    path.write_text("\n".join([HEADER, *lines()[:2]]))
    assert len(source.fetch(0, 2**33, NOW)) == 2
    assert len(reads) == 2


@pytest.mark.parametrize("change", ["deleted", "synthetic"])
def test_file_changed_after_read_keeps_provenance(tmp_path: Path, change: str) -> None:
    path = tmp_path / "candles.csv"
    path.write_text("\n".join([HEADER, *lines()]))
    source = FileSource(path, "btcusd")
    candles = source.fetch(0, 2**33, NOW)
    path.unlink()
    if change == "synthetic":
        export.export_candles(SampleSource("btcusd").fetch(START, START + HOUR, NOW), path)
    assert not source.synthetic
    assert not candles.provenance.synthetic
    if change == "synthetic":
        assert source.fetch(0, 2**33, NOW).provenance.synthetic
        assert source.synthetic
    else:
        with pytest.raises(NeedsHuman, match="no file"):
            source.fetch(0, 2**33, NOW)


@pytest.mark.parametrize("time", [float("nan"), float("inf"), -1e300])
def test_parquet_invalid_time_number_is_refused(tmp_path: Path, time: float) -> None:
    columns = {name: [1.0, 1.0] for name in COLUMNS}
    pq.write_table(pa.table({"time": [float(START), time], **columns}), tmp_path / "candles.parquet")
    with pytest.raises(SkipEpoch, match=r"row 2, column 'time'.*is not a time.*seconds since 1970"):
        FileSource(tmp_path / "candles.parquet", "btcusd").fetch(0, 2**33, NOW)


def test_file_pickle_is_refused_unopened(read: Callable[..., Candles], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    for protocol in range(2, 6):
        with pytest.raises(NeedsHuman, match="not opened"):
            read(pickle.dumps(Bomb(), protocol))
    assert not (tmp_path / "ran").exists()


def test_file_missing_or_special_is_refused(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path, "is a directory"),
        (tmp_path / "none.csv", "no file"),
        (Path("/dev/zero"), "regular"),
    ):
        with pytest.raises(NeedsHuman, match=message):
            FileSource(path, "btcusd").fetch(0, 2**33, NOW)


def test_file_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.csv"
    with path.open("wb") as stream:
        stream.truncate(2 * 2**30)
    with pytest.raises(NeedsHuman, match="2048 MB"):
        FileSource(path, "btcusd").fetch(0, 2**33, NOW)


def test_gzip_bomb_is_refused_within_memory_limit(tmp_path: Path) -> None:
    """A header, then many lines of another pair: 1 MB on disk, over the limit when unpacked."""
    path = tmp_path / "bomb.csv.gz"
    block = b"2019-10-17 09:00,ETHUSD,1,1,1,1,1\n" * 30_000
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"time,symbol,open,high,low,close,volume\n")
        for _ in range(8):
            stream.write(block)
    code = (
        "import sys, resource; from pathlib import Path; from forecastd.market.sources import csv_file; "
        "csv_file.MAX_BYTES = 4 * 2**20; from forecastd.market.sources.file import FileSource\n"
        "try: FileSource(Path(sys.argv[1]), 'btcusd').fetch(0, 2**33, 1.7e9)\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    limit = 600 * 2**20
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True,
        env={"OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    assert "NeedsHuman" in result.stdout, result.stderr
    assert "unpacks to more than 4 MB" in result.stdout


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_parquet_time_types_give_the_same_candles(tmp_path: Path, unit: str, zone: str | None) -> None:
    time = pa.array([row[0] for row in ROWS], pa.timestamp("s", tz=zone)).cast(pa.timestamp(unit, tz=zone))
    columns = {name: pa.array([float(row[column]) for row in ROWS]) for column, name in enumerate(COLUMNS, start=1)}
    pq.write_table(pa.table({**columns, "__index_level_0__": time}), tmp_path / "candles.parquet")
    candles = FileSource(tmp_path / "candles.parquet", "btcusd").fetch(0, 2**33, NOW)
    assert candles.time.tolist() == [row[0] for row in ROWS]
    np.testing.assert_array_equal(np.column_stack(candles.columns), [row[1:] for row in ROWS])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"close": ["1", "x", "2"]}, SkipEpoch, "row 2, column 'close': 'x' is not a number"),
        ({"close": [[1.0], [2.0], [3.0]]}, SkipEpoch, "column 'close'"),
        ({"time": ["2019-10-17", "soon", "x"]}, SkipEpoch, "row 2, column 'time'"),
        ({"time": [None, 1, 2]}, SkipEpoch, "no time in row 1"),
        ({"symbol": ["ETHUSD"] * 3}, NeedsHuman, "holds ETHUSD"),
        ({"time": None}, NeedsHuman, "no columns for time"),
    ],
)
def test_parquet_invalid_content_is_refused_with_reason(
    tmp_path: Path, change: dict[str, list[object] | None], error: type[Exception], message: str
) -> None:
    columns: dict[str, object] = {"time": [row[0] for row in ROWS]}
    columns.update({name: [float(row[column]) for row in ROWS] for column, name in enumerate(COLUMNS, start=1)})
    columns.update(change)
    table = pa.table({name: column for name, column in columns.items() if column is not None})
    pq.write_table(table, tmp_path / "candles.parquet")
    with pytest.raises(error, match=message):
        FileSource(tmp_path / "candles.parquet", "btcusd").fetch(0, 2**33, NOW)


def test_parquet_selects_pair_and_refuses_too_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns: dict[str, object] = {
        name: [float(row[column]) for row in ROWS] * 2 for column, name in enumerate(COLUMNS, start=1)
    }
    symbols = pa.array(["ETH-USD"] * 3 + ["BTC-USD"] * 3).dictionary_encode()
    pq.write_table(
        pa.table({"time": [row[0] for row in ROWS] * 2, "symbol": symbols, **columns}), tmp_path / "two.parquet"
    )
    source = FileSource(tmp_path / "two.parquet", "btcusd")
    candles = source.fetch(0, 2**33, NOW)
    assert candles.repairs == ("took 3 rows of BTC-USD; the file has 2 symbols",)
    assert candles.time.tolist() == [row[0] for row in ROWS]
    monkeypatch.setattr("forecastd.market.sources.parquet_file.MAX_FILE_ROWS", 5)
    with pytest.raises(NeedsHuman, match="holds 6 rows"):
        FileSource(tmp_path / "two.parquet", "ethusd").fetch(0, 2**33, NOW)


def test_parquet_truncated_is_refused(tmp_path: Path) -> None:
    whole = export.to_parquet(SampleSource("btcusd").fetch(START, START + 50 * HOUR, NOW))
    path = tmp_path / "candles.parquet"
    for size in range(5, len(whole), 97):
        path.write_bytes(whole[:size])
        with pytest.raises(SkipEpoch, match="truncated or damaged"):
            FileSource(path, "btcusd").fetch(0, 2**33, NOW)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
def test_file_random_bytes_raise_a_clear_error(read: Callable[..., Candles], content: bytes) -> None:
    with pytest.raises((SkipEpoch, NeedsHuman)):
        read(content)


@pytest.mark.parametrize("name", ["out.csv", "out.csv.gz", "out.parquet"])
def test_export_round_trip_is_exact_and_keeps_synthetic(tmp_path: Path, name: str) -> None:
    candles = SampleSource("btcusd").fetch(START, START + 500 * HOUR, NOW)
    export.export_candles(candles, tmp_path / name)
    source = FileSource(tmp_path / name, "btcusd")
    restored = source.fetch(0, 2**33, NOW)
    for column in ("time", *COLUMNS):
        np.testing.assert_array_equal(getattr(restored, column), getattr(candles, column))
    assert restored.provenance.synthetic
    assert source.synthetic
    with pytest.raises(NeedsHuman, match="--force"):
        export.export_candles(candles, tmp_path / name)


def test_export_failure_leaves_no_file(tmp_path: Path) -> None:
    candles = SampleSource("btcusd").fetch(START, START + HOUR, NOW)
    with pytest.raises(NeedsHuman, match="format"):
        export.export_candles(candles, tmp_path / "out.xlsx")
    (tmp_path / "file").touch()
    with pytest.raises(NeedsHuman, match="Cannot write"):
        export.export_candles(candles, tmp_path / "file" / "out.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
