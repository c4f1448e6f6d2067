from __future__ import annotations

import collections
import contextlib
import datetime
import decimal
import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cli.main import main
from forecastd.clock import SystemClock
from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_INDEX
from forecastd.fleet.history.chunks import HistoryChunk
from forecastd.fleet.history.pickle_reader import PickleRefused, find_records, read_pickle
from forecastd.fleet.history.window_import import ImportReport, import_pickle
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.window.store import LOCK_NAME, TickStore
from forecastd.runtime.locks import FileLock

STEP = 5
NOW = 1_700_000_000.0
UTC = datetime.UTC
BEGIN = datetime.datetime.fromtimestamp(NOW - 100, UTC)


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


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TickStore]:
    with TickStore(tmp_path / "state" / "fleet" / "window.sqlite", step=STEP) as tick_store:
        yield tick_store


def run_import(path: Path, store: TickStore, **options: Any) -> ImportReport:
    return import_pickle(path, store, now=NOW, max_skew=30.0, **options)


def stored_chunk(store: TickStore) -> HistoryChunk:
    (chunk,) = store.history(0, 2**40)
    return chunk


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
def test_pickle_of_plain_data_is_read_in_any_shape(shape: str, protocol: int, save: Callable[..., Path]) -> None:
    parsed = list(find_records(read_pickle(save(SHAPES[shape], protocol=protocol))))
    assert {record["server"] for record in parsed} == {"db-1", "db-2"}
    assert len(parsed) == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_import_renames_metrics_to_contract(shape: str, save: Callable[..., Path], store: TickStore) -> None:
    report = run_import(save(SHAPES[shape]), store)
    assert (report.rows, report.imported, report.duplicates, report.refusals.total) == (6, 6, 0, 0)
    assert report.servers == ("db-1", "db-2")
    assert (report.first, report.last) == (NOW - 100, NOW - 90)
    chunk = stored_chunk(store)
    assert chunk.servers == ("db-1", "db-2") * 3
    assert chunk.times.tolist() == [NOW - 100] * 2 + [NOW - 95] * 2 + [NOW - 90] * 2
    assert chunk.values[:, METRIC_INDEX["cpu_percent"]].tolist() == [10, 10, 11, 11, 12, 12]
    assert set(chunk.values[:, METRIC_INDEX["memory_percent"]].tolist()) == {50.0}
    assert np.isnan(chunk.values[:, METRIC_INDEX["latency_ms"]]).all()


def test_import_twice_changes_nothing(save: Callable[..., Path], store: TickStore) -> None:
    values = np.full((1, len(METRIC_INDEX)), 77.0)
    store.append(FleetRows.from_values(["db-1"], [NOW - 94], values, step=STEP), NOW)
    path = save(SHAPES["list of records"])
    first, second = run_import(path, store), run_import(path, store)
    assert (first.imported, first.duplicates) == (5, 1)
    assert (second.imported, second.duplicates) == (0, 6)
    chunk = stored_chunk(store)
    assert len(chunk) == 6
    assert chunk.values[list(chunk.times).index(NOW - 94)].tolist() == [77.0] * len(METRIC_INDEX)


def test_import_checks_each_row_like_a_feed(save: Callable[..., Path], store: TickStore) -> None:
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
    ]
    report = run_import(save(rows), store)
    assert report.rows == len(rows)
    assert report.refusals.counts == {
        "not_a_number": 4, "unit": 2, "server": 1, "time": 1, "future": 1, "old": 1, "no_metrics": 1,
    }  # fmt: skip
    assert {refusal.row for refusal in report.refusals.first} == {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
    assert report.unknown_metrics == {"gpu_pct": 1, "load_average": 1}
    assert report.times_without_offset == 1 + 1  # yesterday has no offset either
    chunk = stored_chunk(store)
    assert dict(zip(chunk.times.tolist(), zip(chunk.profiles, chunk.statuses, strict=True), strict=True))[NOW - 45] == (
        "data_base",
        "down",
    )
    assert chunk.times.tolist()[-1] == NOW - 35


def test_import_accepts_names_and_units(save: Callable[..., Path], store: TickStore) -> None:
    path = save([{"time": NOW - 50, "server": "a", "cpu_pct": 0.9, "user": 0.25, "reqs": 7}])
    report = run_import(
        path, store, names={"user": "cpu_percent", "reqs": "requests_per_s"}, units={"cpu_percent": "ratio"}
    )
    assert not report.refusals.total
    chunk = stored_chunk(store)
    assert [chunk.values[0, METRIC_INDEX[name]] for name in ("cpu_percent", "requests_per_s")] == [25.0, 7.0]


def test_import_dry_run_changes_nothing(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "state" / "fleet" / "window.sqlite"
    with TickStore(path, step=STEP, read_only=True) as store:
        assert run_import(save(SHAPES["list of records"]), store, dry_run=True).imported == 6
    assert not path.parent.parent.exists()


def test_import_takes_newest_row_of_a_tick(save: Callable[..., Path], store: TickStore) -> None:
    rows = [{"time": NOW - 50 + second, "server": "a", "cpu": float(second)} for second in (3, 4, 1)]
    assert (run_import(save(rows), store).imported, stored_chunk(store).values[0, 0]) == (1, 4.0)


@pytest.mark.parametrize("content", [[], {}, 7, "text", None, [record(server="?")], {"a": {"b": {"c": 1}}}])
def test_import_without_usable_row_is_refused(content: object, save: Callable[..., Path], store: TickStore) -> None:
    with pytest.raises(NeedsHuman, match="can be used"):
        run_import(save(content), store)


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
    kind: str, protocol: int, save: Callable[..., Path], store: TickStore, tmp_path: Path
) -> None:
    content, report = MALICIOUS[kind]
    marker = str(tmp_path / "marker")
    written = (
        content if isinstance(content, bytes) else pickle.dumps(content, protocol).replace(b"{marker}", marker.encode())
    )
    if not isinstance(content, bytes) and protocol > 0 and "marker" in repr(getattr(content, "how", "")):
        written = pickle.dumps(_with_marker(content, marker), protocol)
    path = save(written)
    with pytest.raises(PickleRefused) as refused:
        read_pickle(path)
    assert any(name in str(refused.value) for name in report.split("|")), refused.value
    with pytest.raises(NeedsHuman, match="Refused"):
        run_import(path, store)
    assert not Path(marker).exists()
    assert not store.path.exists()


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
def test_pickle_bomb_ends_only_the_child(kind: str, save: Callable[..., Path], store: TickStore) -> None:
    with pytest.raises(NeedsHuman, match=r"Refused|can be used"):
        run_import(save(BOMBS[kind]), store)


def test_pickle_with_shared_lists_is_read_once(save: Callable[..., Path], store: TickStore) -> None:
    lists: list[Any] = [[] for _ in range(200)]
    for nested in lists:
        nested.extend(lists)
    lists[0].append(record())
    assert run_import(save(lists), store).imported == 1


@pytest.mark.parametrize("kind", ["not a pickle", "truncated", "empty", "directory", "pipe", "absent", "too large"])
def test_unreadable_pickle_is_refused_with_reason(
    kind: str, tmp_path: Path, save: Callable[..., Path], store: TickStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"not a pickle": b"hello there\n", "truncated": pickle.dumps([record()])[:-20]}.get(kind, b""))
    if kind == "directory":
        path = tmp_path
    elif kind == "absent":
        path = tmp_path / "else"
    elif kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
        handle = os.open(path, os.O_RDWR)
    elif kind == "too large":
        monkeypatch.setattr("forecastd.fleet.history.pickle_reader.MAX_FILE_BYTES", 10)
        path = save([record()])
        with pytest.raises(PickleRefused, match="limit is"):
            read_pickle(path)
        return
    with pytest.raises(NeedsHuman, match="Refused"):
        run_import(path, store)
    if kind == "pipe":
        os.close(handle)


def run(*arguments: str) -> Result:
    """Run the command as a user types it, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["fleet", "import", *arguments])
    return Result(CliRunner(), out.getvalue().encode(), err.getvalue().encode(), b"", None, code, None)


def recent() -> list[dict[str, Any]]:
    now = datetime.datetime.now(UTC)
    return [
        {"timestamp": now - datetime.timedelta(seconds=STEP * index), "server": "a", "cpu": 5.0, "gpu": 1}
        for index in range(4)
    ]


def test_import_command_reports_result(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save([*recent(), record(server="b")])
    state = ["--state-dir", str(tmp_path / "state")]
    dry = run(str(path), *state, "--dry-run", "--json")
    assert dry.exit_code == 0
    report = json.loads(dry.stdout)
    assert (report["rows"], report["imported"], report["dry_run"], report["counts"]) == (5, 4, True, {"old": 1})
    assert not (tmp_path / "state").exists()
    process = run(str(path), *state, "--map", "gpu=load_per_core")
    assert process.exit_code == 0, process.stderr
    assert "imported" in process.stdout
    assert "4 rows of 1 server (a)" in " ".join(process.stdout.split())
    assert "before the window" in " ".join(process.stdout.split())
    assert all(len(line) <= 80 for line in process.stdout.splitlines())
    again = json.loads(run(str(path), *state, "--json").stdout)
    assert (again["imported"], again["duplicates"], again["unknown_metrics"]) == (0, 4, {"gpu": 4})


@pytest.mark.parametrize(
    ("arguments", "code", "report"),
    [
        (["{absent}"], 2, "does not exist"),
        (["{file}", "--map", "nonsense"], 2, "OLD=NEW"),
        (["{file}", "--map", "a=b"], 2, "b is not a metric"),
        (["{file}", "--unit", "cpu_percent=furlong"], 2, "may be in"),
        (["{file}", "--unit", "cpu=ratio"], 2, "not a metric"),
        (["{evil}"], 5, "posix.system"),
        (["{evil}", "--json"], 5, "posix.system"),
    ],
)
def test_import_command_reports_errors(
    arguments: list[str], code: int, report: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps([Reducer(os.system, "true")]))
    paths = {"{absent}": str(tmp_path / "else"), "{file}": str(save(recent())), "{evil}": str(evil)}
    process = run(*[paths.get(argument, argument) for argument in arguments], "--state-dir", str(tmp_path / "state"))
    assert process.exit_code == code
    assert report in " ".join(process.stderr.split())
    assert "Traceback" not in process.stderr
    if "--json" in arguments:
        assert report in json.loads(process.stdout)["reason"]


def test_import_command_refuses_while_fleet_runs(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(recent())
    with FileLock(tmp_path / "state" / "fleet" / LOCK_NAME, SystemClock()):
        process = run(str(path), "--state-dir", str(tmp_path / "state"))
        assert process.exit_code == 6
        assert "Stop it first" in process.stderr
        assert run(str(path), "--state-dir", str(tmp_path / "state"), "--dry-run").exit_code == 0
