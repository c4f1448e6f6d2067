"""The script that converts another program's pickle: what it reads, what it prints, and what it refuses to run."""

from __future__ import annotations

import collections
import csv
import datetime
import decimal
import importlib.util
import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from forecastd.fleet.contract import METRIC_INDEX, METRIC_NAMES, NDJSON, PROFILE_PATTERN, STATUSES
from forecastd.fleet.ingest.feed import ParsedFeed, filter_by_time, parse_feed

SCRIPT = Path(__file__).resolve().parents[3] / "contrib" / "window_to_ndjson.py"
STEP = 5
NOW = 1_700_000_000.0
UTC = datetime.UTC
BEGIN = datetime.datetime.fromtimestamp(NOW - 100, UTC)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("window_to_ndjson", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def convert(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a user does, but without site-packages and without the repository on its path."""
    line = [sys.executable, "-I", "-S", str(SCRIPT), str(path), *options]
    return subprocess.run(line, capture_output=True, text=True, check=False, cwd="/", timeout=120)


def convert_to_feed(path: Path, *options: str) -> ParsedFeed:
    """The rows and refusals of the feed that the script prints."""
    process = convert(path, *options)
    assert process.returncode == 0, process.stderr
    return parse_feed(process.stdout.encode(), NDJSON, step=STEP)


def time_at(index: int) -> datetime.datetime:
    return BEGIN + datetime.timedelta(seconds=STEP * index)


def record(index: int = 0, server: str = "db-1", **options: Any) -> dict[str, Any]:
    return {"timestamp": time_at(index), "server_name": server, "cpu_pct": 10.0 + index, "mem_used_pct": 50, **options}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def saved(content: object, *, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
        path = tmp_path / "old.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return saved


TWO_SERVERS = ("db-1", "db-2")
SHAPES: dict[str, object] = {
    "list of records": [record(index, server) for index in range(3) for server in TWO_SERVERS],
    "deque of records": collections.deque(record(index, server) for index in range(3) for server in TWO_SERVERS),
    "table of columns": {
        "timestamp": [time_at(index) for index in range(3) for _ in range(2)],
        "instance": list(TWO_SERVERS) * 3,
        "cpu_percent": [10.0 + index for index in range(3) for _ in range(2)],
        "memory_percent": (50,) * 6,
    },
    "records per server": {
        server: [{"time": time_at(index).timestamp(), "cpu": 10.0 + index, "mem": 50} for index in range(3)]
        for server in TWO_SERVERS
    },
    "table per server": collections.OrderedDict(
        (
            server,
            {
                "ts": [time_at(index).isoformat() for index in range(3)],
                "cpu": [10.0, 11, decimal.Decimal(12)],
                "mem": 50,
            },
        )
        for server in TWO_SERVERS
    ),
    "daemon state": {
        "rolling_window": [record(index, server) for index in range(3) for server in TWO_SERVERS],
        "name": "a fleet",
        "tick_count": 3,
        "history": [1, 2],
        "server_timesteps": dict.fromkeys(TWO_SERVERS, 3),
        "timestamp": "2025-10-13T16:00:00",
    },
    "nested metrics": [
        {"date": time_at(index), "host": server, "metrics": {"cpu_pct": 10.0 + index, "mem_pct": 50}}
        for index in range(3)
        for server in TWO_SERVERS
    ],
    "idle CPU": [
        {"timestamp": time_at(index), "server": server, "cpu_idle_pct": 90.0 - index, "mem_pct": 50}
        for index in range(3)
        for server in TWO_SERVERS
    ],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_pickle_of_plain_data_is_read_in_any_shape(
    shape: str, protocol: int, save: Callable[..., Path], script: ModuleType
) -> None:
    rows = list(script.find_rows(script.read_pickle(save(SHAPES[shape], protocol=protocol))))
    records = [
        script.make_record(row, container, script.METRIC_BY_NAME, {}, collections.Counter()) for container, row in rows
    ]
    assert {record["server"] for record in records} == {"db-1", "db-2"}
    assert len(records) == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_script_prints_rows_that_a_feed_accepts(shape: str, save: Callable[..., Path]) -> None:
    feed = convert_to_feed(save(SHAPES[shape]))
    assert not feed.refusals.total
    assert not feed.unknown_metrics
    rows = feed.rows
    order = np.lexsort((np.array(rows.servers), rows.times))
    rows = rows.select(order)
    assert rows.servers == TWO_SERVERS * 3
    assert rows.times.tolist() == [NOW - 100] * 2 + [NOW - 95] * 2 + [NOW - 90] * 2
    assert rows.values[:, METRIC_INDEX["cpu_percent"]].tolist() == [10, 10, 11, 11, 12, 12]
    assert set(rows.values[:, METRIC_INDEX["memory_percent"]].tolist()) == {50.0}
    assert np.isnan(rows.values[:, METRIC_INDEX["latency_ms"]]).all()


def test_server_of_the_row_counts_before_its_container(save: Callable[..., Path]) -> None:
    feed = convert_to_feed(save({"group": [{"time": NOW, "instance": "db-7", "cpu": 1}, {"time": NOW, "cpu": 1}]}))
    assert feed.rows.servers == ("db-7", "group")


def test_script_knows_the_names_of_the_contract(script: ModuleType) -> None:
    assert tuple(script.ALIASES) == METRIC_NAMES
    assert set(script.STATUSES.values()) == set(STATUSES)
    profile = script.make_record({"role": "Data Base"}, "a", {}, {}, collections.Counter())["profile"]
    assert PROFILE_PATTERN.fullmatch(profile)


def test_each_row_is_checked_by_the_feed(save: Callable[..., Path]) -> None:
    rows = [
        record(),
        record(1, cpu_pct=float("nan")),
        record(2, cpu_pct="high"),
        record(3, cpu_pct=8500),
        record(4, mem_used_pct=0.5),
        record(5, server="no name"),
        record(0, timestamp="yesterday"),
        record(0, timestamp=time_at(100_000)),
        record(0, timestamp=time_at(-100_000)),
        record(6, cpu_pct=True),
        record(7, cpu_pct=10**2000),
        record(8, cpu_pct=[1]),
        {"timestamp": time_at(9), "server": "db-3"},
        record(10, gpu_pct=3.0, note="x", load_average=2),
        record(11, profile="Data Base", state="offline"),
        record(12, state="healthy"),
        {"timestamp": time_at(13).replace(tzinfo=None), "server": "db-4", "cpu": 1},
        record(14, cpu_pct=decimal.Decimal("sNaN")),
    ]
    path = save(rows)
    feed = convert_to_feed(path)
    accepted = filter_by_time(feed.rows, feed.refusals, now=NOW, step=STEP, retained_ticks=34_560, max_skew=30.0)
    assert feed.refusals.counts == {
        "not_a_number": 4, "unit": 2, "server": 1, "time": 1, "future": 1, "old": 1, "no_metrics": 1,
    }  # fmt: skip
    assert {refusal.row for refusal in feed.refusals.first} == {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
    by_time = dict(zip(accepted.times.tolist(), zip(accepted.profiles, accepted.statuses, strict=True), strict=True))
    assert by_time[NOW - 45] == ("data_base", "down")
    assert accepted.times.tolist()[-2] == NOW - 35
    errors = convert(path).stderr
    assert "18 rows" in errors
    assert "gpu_pct (1), load_average (1)" in errors


def test_names_and_factors_of_metrics_can_be_given(save: Callable[..., Path]) -> None:
    path = save([{"time": NOW - 50, "server": "a", "cpu_pct": 0.9, "user": 0.25, "reqs": 7}])
    rows = convert_to_feed(
        path, "--map", "user=cpu_percent", "--map", "reqs=requests_per_s", "--scale", "cpu_percent=100"
    ).rows
    assert [rows.values[0, METRIC_INDEX[name]] for name in ("cpu_percent", "requests_per_s")] == [25.0, 7.0]


def test_table_for_training_has_contract_columns(save: Callable[..., Path]) -> None:
    process = convert(save(SHAPES["list of records"]), "--csv")
    table = list(csv.DictReader(io.StringIO(process.stdout)))
    assert list(table[0]) == ["series", "timestamp", "profile", *METRIC_NAMES]
    assert [(row["series"], row["cpu_percent"], row["swap_percent"]) for row in table[:2]] == [
        ("db-1", "10.0", ""),
        ("db-2", "10.0", ""),
    ]
    assert datetime.datetime.fromisoformat(table[-1]["timestamp"]).timestamp() == NOW - 90


@pytest.mark.parametrize("content", [[], {}, 7, "text", None, {"a": {"b": {"c": 1}}}])
def test_pickle_without_rows_is_refused(content: object, save: Callable[..., Path]) -> None:
    process = convert(save(content))
    assert (process.returncode, process.stdout) == (5, "")
    assert "0 rows" in process.stderr


class Reducer:
    """An object that pickles as a call."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.how = (call, arguments)

    def __reduce__(self) -> Any:
        return self.how


class Stranger:
    """A class of another program."""


def handmade_pickle(*parts: bytes) -> bytes:
    return b"".join(parts) + b"."


def names(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


MALICIOUS: dict[str, tuple[object, str]] = {
    "os.system": (Reducer(os.system, "touch {marker}"), "posix.system"),
    "eval": (Reducer(eval, "open({marker!r}, 'w')"), "builtins.eval|__builtin__.eval"),
    "getattr": (Reducer(getattr, "text", "upper"), "builtins.getattr|__builtin__.getattr"),
    "open": (Reducer(open, "{marker}", "w"), "io.open"),
    "object": ([record(), Stranger()], "Stranger|copy_reg._reconstructor"),
    "numpy number": ([record(cpu_pct=np.float64(3))], "numpy"),
    "numpy array": (np.arange(3), "numpy"),
    "call in a row": ([record(), record(1, cpu_pct=Reducer(os.system, "touch {marker}"))], "posix.system"),
    "call in a date": (Reducer(datetime.datetime, Reducer(os.system, "touch {marker}")), "posix.system"),
    "defaultdict of int": (collections.defaultdict(int), "builtins.int|__builtin__.int|__builtin__.long"),
    "chain of calls": (handmade_pickle(names("builtins", "list"), names("os", "system"), b"\x85R"), "os.system"),
    "dotted name": (
        handmade_pickle(b"\x80\x04\x8c\x08builtins\x8c\x0elist.__class__\x93"), "builtins.list.__class__",
    ),
    "dotted module": (handmade_pickle(names("os.path", "join"), b")R"), "os.path.join"),
    "instance": (handmade_pickle(b"(", b"ios\nsystem\n"), "os.system"),
    "obj opcode": (handmade_pickle(b"(", names("subprocess", "Popen"), b"o"), "subprocess.Popen"),
    "newobj": (handmade_pickle(names("types", "CodeType"), b")\x81"), "types.CodeType"),
    "newobj of a function": (handmade_pickle(names("collections", "defaultdict"), b")\x81"), "not a pickle of plain data"),
    "state of a function": (
        handmade_pickle(names("collections", "defaultdict"), b"N}X\x08\x00\x00\x00__code__K\x01s\x86b"),
        "not a pickle of plain data",
    ),
    "persistent id": (handmade_pickle(b"Pevil\n"), "outside of the file"),
    "extension": (handmade_pickle(b"\x82\x01"), "not a pickle of plain data"),
    "invalid bytes encoding": (
        handmade_pickle(names("_codecs", "encode"), b"X\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R"), "bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", MALICIOUS)
def test_pickle_with_foreign_name_is_refused_and_not_run(
    kind: str, protocol: int, save: Callable[..., Path], script: ModuleType, tmp_path: Path
) -> None:
    content, report = MALICIOUS[kind]
    marker = str(tmp_path / "marker")
    written = (
        content if isinstance(content, bytes) else pickle.dumps(content, protocol).replace(b"{marker}", marker.encode())
    )
    if not isinstance(content, bytes) and protocol > 0 and "marker" in repr(getattr(content, "how", "")):
        written = pickle.dumps(_with_marker(content, marker), protocol)
    path = save(written)
    with pytest.raises(script.PickleRefused) as refused:
        script.read_pickle(path)
    assert any(name in str(refused.value) for name in report.split("|")), refused.value
    assert not Path(marker).exists()


@pytest.mark.parametrize("options", [(), ("--csv",)])
def test_refused_pickle_prints_nothing_and_exits_with_5(
    options: tuple[str, ...], save: Callable[..., Path], tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    process = convert(save([record(), record(1, cpu_pct=Reducer(os.system, f"touch {marker}"))]), *options)
    assert (process.returncode, process.stdout) == (5, "")
    assert "posix.system" in process.stderr
    assert "Traceback" not in process.stderr
    assert not marker.exists()


def _with_marker(content: object, marker: str) -> object:
    assert isinstance(content, Reducer)
    call, arguments = content.how
    return Reducer(
        call,
        *(argument.replace("{marker}", marker) if isinstance(argument, str) else argument for argument in arguments),
    )


def deep_key(depth: int) -> bytes:
    """Nested tuples as the key of a dictionary: computing their hash would recurse as deeply in C."""
    return handmade_pickle(b"}", b")", b"\x85" * depth, b"K\x01s")


BOMBS: dict[str, bytes] = {
    "terabyte of bytes": handmade_pickle(b"\x8e" + struct.pack("<Q", 2**40) + b"abc"),
    "terabyte array": handmade_pickle(
        names("builtins", "bytearray"), b"\x8a\x06" + (2**40).to_bytes(6, "little"), b"\x85R"
    ),
    "huge memo": handmade_pickle(b"]r" + struct.pack("<I", 2**32 - 1)),
    "deep key": deep_key(2_000_000),
    "deep list": handmade_pickle(b"]" * 2_000_000, b"a" * 1_999_999),
    "huge number": handmade_pickle(b"I" + b"9" * 100_000 + b"\n"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_pickle_bomb_ends_only_the_script(kind: str, save: Callable[..., Path]) -> None:
    process = convert(save(BOMBS[kind]))
    assert process.returncode == 5 or process.returncode < 0
    assert process.stdout == ""
    assert "Traceback" not in process.stderr


def test_pickle_with_shared_lists_is_read_once(save: Callable[..., Path]) -> None:
    lists: list[Any] = [[] for _ in range(200)]
    for nested in lists:
        nested.extend(lists)
    lists[0].append(record())
    assert len(convert_to_feed(save(lists)).rows) == 1


@pytest.mark.parametrize("kind", ["not a pickle", "truncated", "empty", "directory", "pipe", "absent"])
def test_unreadable_pickle_is_refused_with_reason(kind: str, tmp_path: Path, save: Callable[..., Path]) -> None:
    path = save({"not a pickle": b"hello there\n", "truncated": pickle.dumps([record()])[:-20]}.get(kind, b""))
    if kind == "directory":
        path = tmp_path
    elif kind == "absent":
        path = tmp_path / "else"
    elif kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
        handle = os.open(path, os.O_RDWR)
    process = convert(path)
    assert (process.returncode, process.stdout) == (5, "")
    assert process.stderr.startswith(f"Refused {path}: it ")
    if kind == "pipe":
        os.close(handle)


def test_too_large_pickle_is_refused(
    save: Callable[..., Path], script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "MAX_FILE_BYTES", 10)
    with pytest.raises(script.PickleRefused, match="limit is"):
        script.read_pickle(save([record()]))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--map", "nonsense"], "not OLD=METRIC"),
        (["--map", "a=b"], "cpu_percent"),
        (["--scale", "cpu_percent=furlong"], "not METRIC=NUMBER"),
        (["--scale", "cpu=100"], "cpu_percent"),
        (["--scale", "cpu_percent=inf"], "not METRIC=NUMBER"),
    ],
)
def test_invalid_option_is_refused_by_name(options: list[str], reason: str, save: Callable[..., Path]) -> None:
    process = convert(save([record()]), *options)
    assert (process.returncode, process.stdout) == (2, "")
    assert reason in process.stderr
