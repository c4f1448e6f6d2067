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
from forecastd.fleet.contract import INDEX
from forecastd.fleet.hold import LOCK, Hold
from forecastd.fleet.intake import Rows
from forecastd.fleet.oldpickle import RefusedError, read, records
from forecastd.fleet.store import HistoryChunk, TickStore
from forecastd.fleet.takeover import TakenOver, take_over

STEP = 5
NOW = 1_700_000_000.0
UTC = datetime.UTC
BEGIN = datetime.datetime.fromtimestamp(NOW - 100, UTC)


def when(at: int) -> datetime.datetime:
    return BEGIN + datetime.timedelta(seconds=STEP * at)


def record(at: int = 0, server: str = "db-1", **more: Any) -> dict[str, Any]:
    return {"timestamp": when(at), "server_name": server, "cpu_pct": 10.0 + at, "mem_used_pct": 50, **more}


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def saved(content: object, *, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
        path = tmp_path / "old.pkl"
        path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
        return path

    return saved


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TickStore]:
    with TickStore(tmp_path / "state" / "fleet" / "window.sqlite", step=STEP) as one:
        yield one


def take(path: Path, store: TickStore, **more: Any) -> TakenOver:
    return take_over(path, store, now=NOW, max_skew=30.0, **more)


def kept(store: TickStore) -> HistoryChunk:
    (chunk,) = store.history(0, 2**40)
    return chunk


TWO = ("db-1", "db-2")
SHAPES: dict[str, object] = {
    "a list of records": [record(at, server) for at in range(3) for server in TWO],
    "a deque of records": collections.deque(record(at, server) for at in range(3) for server in TWO),
    "a table of columns": {
        "timestamp": [when(at) for at in range(3) for _ in range(2)],
        "instance": list(TWO) * 3,
        "cpu_percent": [10.0 + at for at in range(3) for _ in range(2)],
        "memory_percent": (50,) * 6,
    },
    "records per server": {
        server: [{"time": when(at).timestamp(), "cpu": 10.0 + at, "mem": 50} for at in range(3)] for server in TWO
    },
    "a table per server": collections.OrderedDict(
        (server, {"ts": [when(at).isoformat() for at in range(3)], "cpu": [10.0, 11, decimal.Decimal(12)], "mem": 50})
        for server in TWO
    ),
    "a daemon's state": {
        "rolling_window": [record(at, server) for at in range(3) for server in TWO],
        "name": "a fleet",
        "tick_count": 3,
        "history": [1, 2],
        "server_timesteps": dict.fromkeys(TWO, 3),
        "timestamp": "2025-10-13T16:00:00",
    },
    "records with metrics inside": [
        {"date": when(at), "host": server, "metrics": {"cpu_pct": 10.0 + at, "mem_pct": 50}}
        for at in range(3)
        for server in TWO
    ],
    "idle instead of used": [
        {"timestamp": when(at), "server": server, "cpu_idle_pct": 90.0 - at, "mem_pct": 50}
        for at in range(3)
        for server in TWO
    ],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("shape", SHAPES)
def test_a_window_of_plain_data_is_read_in_whatever_shape(shape: str, protocol: int, save: Callable[..., Path]) -> None:
    found = list(records(read(save(SHAPES[shape], protocol=protocol))))
    assert {one["server"] for one in found} == {"db-1", "db-2"}
    assert len(found) == 6


@pytest.mark.parametrize("shape", SHAPES)
def test_its_rows_are_taken_over_under_our_names(shape: str, save: Callable[..., Path], store: TickStore) -> None:
    report = take(save(SHAPES[shape]), store)
    assert (report.found, report.taken, report.known, report.refusals.total) == (6, 6, 0, 0)
    assert report.servers == ("db-1", "db-2")
    assert (report.first, report.last) == (NOW - 100, NOW - 90)
    chunk = kept(store)
    assert chunk.servers == ("db-1", "db-2") * 3
    assert chunk.times.tolist() == [NOW - 100] * 2 + [NOW - 95] * 2 + [NOW - 90] * 2
    assert chunk.values[:, INDEX["cpu_percent"]].tolist() == [10, 10, 11, 11, 12, 12]
    assert set(chunk.values[:, INDEX["memory_percent"]].tolist()) == {50.0}
    assert np.isnan(chunk.values[:, INDEX["latency_ms"]]).all()


def test_taking_over_twice_is_the_same_as_once_and_leaves_what_was_there(
    save: Callable[..., Path], store: TickStore
) -> None:
    values = np.full((1, len(INDEX)), 77.0)
    store.append(Rows.of(["db-1"], [NOW - 94], values, step=STEP), NOW)
    path = save(SHAPES["a list of records"])
    first, second = take(path, store), take(path, store)
    assert (first.taken, first.known) == (5, 1)
    assert (second.taken, second.known) == (0, 6)
    chunk = kept(store)
    assert len(chunk) == 6
    assert chunk.values[list(chunk.times).index(NOW - 94)].tolist() == [77.0] * len(INDEX)


def test_every_row_is_judged_as_one_that_is_sent(save: Callable[..., Path], store: TickStore) -> None:
    rows = [
        record(),
        record(1, cpu_pct=float("nan")),
        record(2, cpu_pct="high"),
        record(3, cpu_pct=8500),
        record(4, mem_used_pct=0.5),
        record(5, server="no name"),
        record(0, timestamp="yesterday"),
        record(0, timestamp=when(100_000)),
        record(0, timestamp=when(-100_000)),
        record(6, cpu_pct=True),
        record(7, cpu_pct=10**2000),
        record(8, cpu_pct=[1]),
        {"timestamp": when(9), "server": "db-3"},
        record(10, gpu_pct=3.0, note="x", load_average=2),
        record(11, profile="Data Base", state="offline"),
        record(12, state="healthy"),
        {"timestamp": when(13).replace(tzinfo=None), "server": "db-4", "cpu": 1},
    ]
    report = take(save(rows), store)
    assert report.found == len(rows)
    assert report.refusals.counts == {
        "not_a_number": 4, "unit": 2, "server": 1, "time": 1, "future": 1, "old": 1, "no_metrics": 1,
    }  # fmt: skip
    assert {one.row for one in report.refusals.first} == {2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
    assert report.other_names == {"gpu_pct": 1, "load_average": 1}
    assert report.naive == 1 + 1  # yesterday has no offset either
    chunk = kept(store)
    assert dict(zip(chunk.times.tolist(), zip(chunk.profiles, chunk.statuses, strict=True), strict=True))[NOW - 45] == (
        "data_base",
        "down",
    )
    assert chunk.times.tolist()[-1] == NOW - 35


def test_names_and_units_may_be_given(save: Callable[..., Path], store: TickStore) -> None:
    path = save([{"time": NOW - 50, "server": "a", "cpu_pct": 0.9, "user": 0.25, "reqs": 7}])
    report = take(path, store, names={"user": "cpu_percent", "reqs": "requests_per_s"}, units={"cpu_percent": "ratio"})
    assert not report.refusals.total
    chunk = kept(store)
    assert [chunk.values[0, INDEX[name]] for name in ("cpu_percent", "requests_per_s")] == [25.0, 7.0]


def test_a_dry_run_changes_nothing(save: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "state" / "fleet" / "window.sqlite"
    with TickStore(path, step=STEP, read_only=True) as store:
        assert take(save(SHAPES["a list of records"]), store, dry_run=True).taken == 6
    assert not path.parent.parent.exists()


def test_of_several_rows_of_a_tick_the_newest_is_taken(save: Callable[..., Path], store: TickStore) -> None:
    rows = [{"time": NOW - 50 + second, "server": "a", "cpu": float(second)} for second in (3, 4, 1)]
    assert (take(save(rows), store).taken, kept(store).values[0, 0]) == (1, 4.0)


@pytest.mark.parametrize("content", [[], {}, 7, "text", None, [record(server="?")], {"a": {"b": {"c": 1}}}])
def test_a_file_without_a_usable_row_is_told(content: object, save: Callable[..., Path], store: TickStore) -> None:
    with pytest.raises(NeedsHuman, match="has no row that can be used"):
        take(save(content), store)


class Reducer:
    """Pickles as a call of something."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.how = (call, arguments)

    def __reduce__(self) -> Any:
        return self.how


class Stranger:
    """A class of another program."""


def hand_made(*parts: bytes) -> bytes:
    return b"".join(parts) + b"."


def names(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


MALICIOUS: dict[str, tuple[object, str]] = {
    "os.system": (Reducer(os.system, "touch {marker}"), "posix.system"),
    "eval": (Reducer(eval, "open({marker!r}, 'w')"), "builtins.eval|__builtin__.eval"),
    "getattr": (Reducer(getattr, "text", "upper"), "builtins.getattr|__builtin__.getattr"),
    "open": (Reducer(open, "{marker}", "w"), "io.open"),
    "an object": ([record(), Stranger()], "Stranger|copy_reg._reconstructor"),
    "a numpy number": ([record(cpu_pct=np.float64(3))], "numpy"),
    "a numpy array": (np.arange(3), "numpy"),
    "inside a row": ([record(), record(1, cpu_pct=Reducer(os.system, "touch {marker}"))], "posix.system"),
    "as a key of a date": (Reducer(datetime.datetime, Reducer(os.system, "touch {marker}")), "posix.system"),
    "a factory of numbers": (collections.defaultdict(int), "builtins.int|__builtin__.int|__builtin__.long"),
    "a chain of calls": (hand_made(names("builtins", "list"), names("os", "system"), b"\x85R"), "os.system"),
    "a name with dots": (
        hand_made(b"\x80\x04\x8c\x08builtins\x8c\x0elist.__class__\x93"), "builtins.list.__class__",
    ),
    "a module with dots": (hand_made(names("os.path", "join"), b")R"), "os.path.join"),
    "an instance": (hand_made(b"(", b"ios\nsystem\n"), "os.system"),
    "an object of a class": (hand_made(b"(", names("subprocess", "Popen"), b"o"), "subprocess.Popen"),
    "a new object": (hand_made(names("types", "CodeType"), b")\x81"), "types.CodeType"),
    "a new object of a function": (hand_made(names("collections", "defaultdict"), b")\x81"), "no pickle of plain data"),
    "a state of a function": (
        hand_made(names("collections", "defaultdict"), b"N}X\x08\x00\x00\x00__code__K\x01s\x86b"), "no pickle of plain data",
    ),
    "a persistent name": (hand_made(b"Pevil\n"), "outside of the file"),
    "an extension": (hand_made(b"\x82\x01"), "no pickle of plain data"),
    "a wrong way to write bytes": (
        hand_made(names("_codecs", "encode"), b"X\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R"), "bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("kind", MALICIOUS)
def test_anything_else_is_refused_by_name_and_not_run(
    kind: str, protocol: int, save: Callable[..., Path], store: TickStore, tmp_path: Path
) -> None:
    content, told = MALICIOUS[kind]
    marker = str(tmp_path / "marker")
    written = (
        content if isinstance(content, bytes) else pickle.dumps(content, protocol).replace(b"{marker}", marker.encode())
    )
    if not isinstance(content, bytes) and protocol > 0 and "marker" in repr(getattr(content, "how", "")):
        written = pickle.dumps(_filled(content, marker), protocol)
    path = save(written)
    with pytest.raises(RefusedError) as refused:
        read(path)
    assert any(name in str(refused.value) for name in told.split("|")), refused.value
    with pytest.raises(NeedsHuman, match="is refused"):
        take(path, store)
    assert not Path(marker).exists()
    assert not store.path.exists()


def _filled(content: object, marker: str) -> object:
    assert isinstance(content, Reducer)
    call, arguments = content.how
    return Reducer(call, *(one.replace("{marker}", marker) if isinstance(one, str) else one for one in arguments))


def deep_key(depth: int) -> bytes:
    """A tuple in a tuple in a tuple, as the key of a dictionary: its hash would go down as deep in C."""
    return hand_made(b"}", b")", b"\x85" * depth, b"K\x01s")


BOMBS: dict[str, bytes] = {
    "bytes of a terabyte": hand_made(b"\x8e" + struct.pack("<Q", 2**40) + b"abc"),
    "an array of a terabyte": hand_made(
        names("builtins", "bytearray"), b"\x8a\x06" + (2**40).to_bytes(6, "little"), b"\x85R"
    ),
    "a memo of gigabytes": hand_made(b"]r" + struct.pack("<I", 2**32 - 1)),
    "a deep key": deep_key(2_000_000),
    "a deep list": hand_made(b"]" * 2_000_000, b"a" * 1_999_999),
    "a number without end": hand_made(b"I" + b"9" * 100_000 + b"\n"),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_ends_nothing_but_its_own_process(kind: str, save: Callable[..., Path], store: TickStore) -> None:
    with pytest.raises(NeedsHuman, match=r"is refused|no row"):
        take(save(BOMBS[kind]), store)


def test_lists_that_hold_each_other_are_looked_through_once(save: Callable[..., Path], store: TickStore) -> None:
    lists: list[Any] = [[] for _ in range(200)]
    for one in lists:
        one.extend(lists)
    lists[0].append(record())
    assert take(save(lists), store).taken == 1


@pytest.mark.parametrize(
    "kind", ["no pickle", "half a pickle", "empty", "a directory", "a pipe", "absent", "too large"]
)
def test_what_is_no_readable_pickle_is_told(
    kind: str, tmp_path: Path, save: Callable[..., Path], store: TickStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save({"no pickle": b"hello there\n", "half a pickle": pickle.dumps([record()])[:-20]}.get(kind, b""))
    if kind == "a directory":
        path = tmp_path
    elif kind == "absent":
        path = tmp_path / "else"
    elif kind == "a pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
        handle = os.open(path, os.O_RDWR)
    elif kind == "too large":
        monkeypatch.setattr("forecastd.fleet.oldpickle.MOST_BYTES", 10)
        path = save([record()])
        with pytest.raises(RefusedError, match="at most"):
            read(path)
        return
    with pytest.raises(NeedsHuman, match="is refused"):
        take(path, store)
    if kind == "a pipe":
        os.close(handle)


def run(*arguments: str) -> Result:
    """The command as a user types it, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["fleet", "import", *arguments])
    return Result(CliRunner(), out.getvalue().encode(), err.getvalue().encode(), b"", None, code, None)


def recent() -> list[dict[str, Any]]:
    now = datetime.datetime.now(UTC)
    return [
        {"timestamp": now - datetime.timedelta(seconds=STEP * at), "server": "a", "cpu": 5.0, "gpu": 1}
        for at in range(4)
    ]


def test_the_command_tells_what_it_took(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save([*recent(), record(server="b")])
    state = ["--state-dir", str(tmp_path / "state")]
    dry = run(str(path), *state, "--dry-run", "--json")
    assert dry.exit_code == 0
    told = json.loads(dry.stdout)
    assert (told["found"], told["taken"], told["dry_run"], told["counts"]) == (5, 4, True, {"old": 1})
    assert not (tmp_path / "state").exists()
    done = run(str(path), *state, "--map", "gpu=load_per_core")
    assert done.exit_code == 0, done.stderr
    assert "taken" in done.stdout
    assert "4 rows of 1 servers (a)" in " ".join(done.stdout.split())
    assert "before the window" in " ".join(done.stdout.split())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    again = json.loads(run(str(path), *state, "--json").stdout)
    assert (again["taken"], again["known"], again["left_out"]) == (0, 4, {"gpu": 4})


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["{absent}"], 2, "does not exist"),
        (["{file}", "--map", "nonsense"], 2, "OLD=NEW"),
        (["{file}", "--map", "a=b"], 2, "b is no metric"),
        (["{file}", "--unit", "cpu_percent=furlong"], 2, "may be in"),
        (["{file}", "--unit", "cpu=ratio"], 2, "no metric"),
        (["{evil}"], 5, "posix.system"),
        (["{evil}", "--json"], 5, "posix.system"),
    ],
)
def test_the_command_ends_with_what_went_wrong(
    arguments: list[str], code: int, told: str, save: Callable[..., Path], tmp_path: Path
) -> None:
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps([Reducer(os.system, "true")]))
    places = {"{absent}": str(tmp_path / "else"), "{file}": str(save(recent())), "{evil}": str(evil)}
    done = run(*[places.get(one, one) for one in arguments], "--state-dir", str(tmp_path / "state"))
    assert done.exit_code == code
    assert told in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    if "--json" in arguments:
        assert told in json.loads(done.stdout)["reason"]


def test_the_command_does_not_write_below_a_running_fleet(save: Callable[..., Path], tmp_path: Path) -> None:
    path = save(recent())
    with Hold(tmp_path / "state" / "fleet" / LOCK, SystemClock()):
        done = run(str(path), "--state-dir", str(tmp_path / "state"))
        assert done.exit_code == 6
        assert "stop the other first" in done.stderr
        assert run(str(path), "--state-dir", str(tmp_path / "state"), "--dry-run").exit_code == 0
