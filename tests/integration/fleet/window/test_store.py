from __future__ import annotations

import logging
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forecastd.fleet.contract import METRIC_COUNT, METRIC_NAMES
from forecastd.fleet.ingest.feed import FleetRows
from forecastd.fleet.window.store import MAX_PENDING_BATCHES, TickStore
from forecastd.fleet.window.window import FleetWindow

STEP = 5
START = 340_000_002  # a tick, also for a step of 15 s
RETAINED_TICKS = 50
Cells = dict[tuple[str, int], tuple[float, ...]]


def time_of(tick: int) -> float:
    return float((START + tick) * STEP)


def expected_values(server: int, tick: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """What server `server` reports in a tick; one metric is always missing."""
    values = (np.arange(METRIC_COUNT) * 7 + server * 13 + tick * 0.25).astype(np.float32)
    values[server % METRIC_COUNT] = np.nan
    return values


def rows(tick: int, servers: range | list[int] = range(3), *, profile: str = "web", step: int = STEP) -> FleetRows:
    names, values = (
        [f"s{server}" for server in servers],
        np.array([expected_values(server, tick) for server in servers]),
    )
    times = [time_of(tick) + 0.5 * (server % 9) for server in servers]
    return FleetRows.from_values(
        names, times, values, step=step, profiles=[profile] * len(names), statuses=["degraded"] * len(names)
    )


def empty_window(retained_ticks: int = RETAINED_TICKS, step: int = STEP, max_servers: int = 100) -> FleetWindow:
    return FleetWindow(step, retained_ticks, max_servers)


def cells(window: FleetWindow, tick: int, length: int = RETAINED_TICKS) -> Cells:
    """The non-empty rows of the window up to a tick."""
    block = window.block(START + tick, length)
    return {
        (server, tick - length + 1 + offset): tuple(row.tolist())
        for server, values in zip(block.servers, block.values, strict=True)
        for offset, row in enumerate(values)
        if not np.isnan(row).all()
    }


def equal_cells(left: Cells, right: Cells) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[key], right[key], equal_nan=True) for key in left)


def expected(ticks: range, servers: range = range(3)) -> Cells:
    return {(f"s{server}", tick): tuple(expected_values(server, tick).tolist()) for tick in ticks for server in servers}


def fill(path: Path, ticks: range = range(20), servers: range = range(3)) -> None:
    """Create a file with these ticks, as a fleet would."""
    batches = [rows(tick, servers) for tick in ticks]
    names = [name for batch in batches for name in batch.servers]
    values, times = (
        np.concatenate([batch.values for batch in batches]),
        np.concatenate([batch.times for batch in batches]),
    )
    profiles, statuses = ["web"] * len(names), ["degraded"] * len(names)
    with TickStore(path, step=STEP, hours=1000) as store:
        together = FleetRows.from_values(names, times, values, step=STEP, profiles=profiles, statuses=statuses)
        assert store.append(together, time_of(ticks[0]))


def load(path: Path, tick: int = 20, retained_ticks: int = RETAINED_TICKS) -> Cells:
    """What a fresh process loads at the beginning of a tick."""
    window = empty_window(retained_ticks)
    with TickStore(path, step=STEP) as store:
        store.load(window, time_of(tick))
    return cells(window, tick - 1, retained_ticks)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fleet" / "window.sqlite"


def test_store_load_restores_window(path: Path) -> None:
    window = empty_window()
    window.advance(START - 1)
    with TickStore(path, step=STEP) as store:
        for tick in range(20):
            window.put(rows(tick))
            window.advance(START + tick)
            assert store.append(window.unsaved(), time_of(tick + 1))
    after = empty_window()
    with TickStore(path, step=STEP) as store:
        report = store.load(after, time_of(20) + 2)
    assert (report.ticks, report.rows, report.servers, report.damaged_ticks) == (20, 60, 3, 0)
    assert report.newest == time_of(19)
    assert report.age_seconds == STEP + 2
    assert after.newest == window.newest == START + 19
    assert equal_cells(cells(after, 19), cells(window, 19))
    assert len(after.unsaved()) == 0
    for server in window.servers():
        assert after.profile(server) == "web"
        assert after.status(server) == "degraded"
        assert after.last_seen(server) == window.last_seen(server)
    again = after.put(rows(19))
    assert (again.accepted, again.duplicates) == (0, 3), "rows from before the restart are known"


def test_store_late_rows_add_a_part(path: Path) -> None:
    fill(path)
    db = sqlite3.connect(path)
    before = db.execute("SELECT * FROM tick ORDER BY id").fetchall()
    with TickStore(path, step=STEP) as store:
        store.append(rows(7, [5]), time_of(20))
        store.append(rows(7, [6]), time_of(20))
    after = db.execute("SELECT * FROM tick ORDER BY id").fetchall()
    db.close()
    assert len(after) == len(before) + 2
    assert set(before) < set(after)
    history = load(path)
    assert {server for server, tick in history if tick == 7} == {"s0", "s1", "s2", "s5", "s6"}


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), data=st.data())
def test_store_load_restores_any_saved_window(
    tmp_path_factory: pytest.TempPathFactory, seed: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.mktemp("any") / "window.sqlite"
    window, now = empty_window(retained_ticks=8, max_servers=4), 0
    window.advance(START - 1)
    store = TickStore(path, step=STEP)
    for _ in range(data.draw(st.integers(1, 12))):
        for _ in range(int(rng.integers(0, 4))):
            ticks = START + now + rng.integers(-8, 2, 5)
            values = np.where(rng.random((5, METRIC_COUNT)) < 0.3, np.nan, rng.uniform(1, 90, (5, METRIC_COUNT)))
            names = [f"s{name}" for name in rng.integers(0, 6, 5)]
            window.put(FleetRows.from_values(names, ticks * STEP + rng.integers(0, 50, 5) / 10, values, step=STEP))
        if rng.random() < 0.8:
            window.advance(START + now)
            store.append(window.unsaved(), time_of(now))
        if rng.random() < 0.3:
            window.advance(START + now)
            store.append(window.unsaved(), time_of(now))
            store.close()
            store, after = TickStore(path, step=STEP), empty_window(retained_ticks=8, max_servers=4)
            store.load(after, time_of(now + 1))
            assert equal_cells(cells(after, now, 8), cells(window, now, 8))
            window = after
        now += int(rng.integers(0, 3))
    store.close()


def test_store_load_reads_only_window_ticks(path: Path) -> None:
    fill(path, range(100))
    window = empty_window(retained_ticks=10)
    with TickStore(path, step=STEP) as store:
        report = store.load(window, time_of(100))
    assert (report.ticks, report.rows) == (10, 30)
    assert equal_cells(cells(window, 99, 10), expected(range(90, 100)))


@pytest.mark.parametrize(
    ("minutes", "messages", "rows_left"),
    [(1, None, True), (29, None, True), (31, "31 min old: only its last 1 h are used", True),
     (61, "1 h 1 min old: too old to use", False)],
)  # fmt: skip
def test_store_load_reports_window_age(
    path: Path, minutes: int, messages: str | None, rows_left: bool, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path)
    window = empty_window(retained_ticks=720)
    with TickStore(path, step=STEP) as store, caplog.at_level(logging.WARNING):
        report = store.load(window, time_of(19) + 60 * minutes)
    assert report.age_seconds == 60 * minutes
    assert bool(report.rows) == rows_left
    assert (messages or " old: ") in caplog.text or messages is None
    assert bool(caplog.text) == (messages is not None)


def test_store_load_of_empty_file_succeeds(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    window = empty_window()
    with TickStore(path, step=STEP) as store, caplog.at_level(logging.WARNING):
        report = store.load(window, time_of(3))
        assert list(store.history(0, 2**40)) == []
        state = store.state()
    assert (report.rows, report.newest, report.age_seconds) == (0, None, None)
    assert (state.ticks, state.oldest, state.newest, state.last_error) == (0, None, None, None)
    assert window.newest == START + 2
    assert not caplog.text


def test_store_with_other_step_or_metrics_is_usable(path: Path) -> None:
    fill(path, range(12))
    window = empty_window(step=15, retained_ticks=4)
    with TickStore(path, step=15) as store:
        report = store.load(window, time_of(12))
        assert report.damaged_ticks == 0
        store.append(rows(12, [9], step=15), time_of(13))
    block = window.block(window.newest, 4)
    assert block.tick == time_of(12) // 15 - 1
    for server, values in zip(block.servers, block.values, strict=True):
        for row in range(4):  # the last of three old ticks is the newest row of the new tick
            assert np.array_equal(values[row], expected_values(int(server[1]), 3 * row + 2), equal_nan=True)
    few = ("memory_percent", "of_another_time", "cpu_percent")
    with TickStore(path, few, step=STEP) as store:
        chunks = list(store.history(time_of(0), time_of(1)))
    assert chunks[0].metrics == few
    assert np.isnan(chunks[0].values[:, 1]).all()
    assert np.array_equal(
        chunks[0].values[:, 2], [np.nan, expected_values(1, 0)[0], expected_values(2, 0)[0]], equal_nan=True
    )


def read_history(store: TickStore, **filters: list[str]) -> Cells:
    history: Cells = {}
    for chunk in store.history(0, 2**40, **filters):
        assert chunk.times.tolist() == sorted(chunk.times.tolist(), key=lambda time: time // STEP)
        ticks = (chunk.times // STEP).astype(int) - START
        for server, tick, values in zip(chunk.servers, ticks.tolist(), chunk.values, strict=True):
            assert (server, tick) not in history
            history[server, tick] = tuple(values.tolist())
    return history


def test_store_history_filters_rows(path: Path) -> None:
    fill(path, range(150))
    fill(path, range(100_000, 100_010))
    with TickStore(path, step=STEP, hours=10_000) as store:
        assert len(list(store.history(0, 2**40))) > 2
        assert equal_cells(read_history(store), expected(range(150)) | expected(range(100_000, 100_010)))
        assert set(read_history(store, servers=["s1"])) == {
            ("s1", tick) for tick in [*range(150), *range(100_000, 100_010)]
        }
        (only,) = store.history(time_of(3) + 0.5, time_of(5) + 0.5, metrics=["latency_ms", "cpu_percent"])
        assert only.metrics == ("latency_ms", "cpu_percent")
        assert list(zip(only.servers, only.times.tolist(), strict=True)) == [
            ("s1", time_of(3) + 0.5), ("s2", time_of(3) + 1), ("s0", time_of(4)), ("s1", time_of(4) + 0.5),
            ("s2", time_of(4) + 1), ("s0", time_of(5)),
        ]  # fmt: skip
        assert only.values[0].tolist() == [
            expected_values(1, 3)[METRIC_NAMES.index("latency_ms")],
            expected_values(1, 3)[0],
        ]
        assert only.profiles[0] == "web"
        assert only.statuses[0] == "degraded"
        with pytest.raises(ValueError, match="no metric else"):
            list(store.history(0, 2**40, metrics=["else"]))


def test_store_history_uses_last_part_of_tick(path: Path) -> None:
    fill(path, range(3))
    with TickStore(path, step=STEP) as store:
        corrected = rows(1, [1])
        values = corrected.values.copy()
        values[0, 1] = 99.0
        store.append(FleetRows(**{**vars(corrected), "values": values, "profiles": ("db",)}), time_of(3))
        history = read_history(store)
    assert len(history) == 9
    assert history["s1", 1] == tuple(values[0].tolist())
    assert equal_cells({key: value for key, value in history.items() if key != ("s1", 1)},
                {key: value for key, value in expected(range(3)).items() if key != ("s1", 1)})  # fmt: skip


def test_store_trims_old_ticks_gradually(path: Path) -> None:
    with TickStore(path, step=STEP, hours=0.5) as store:
        for tick in range(400):
            store.append(rows(tick), time_of(0))
        assert store.state().ticks == 400
        counts = []
        for tick in range(400, 410):
            store.append(rows(tick), time_of(tick))
            counts.append(store.state().ticks)
    # half an hour is 360 ticks
    assert counts[0] == 401 - 40
    assert counts[-1] == 361
    with TickStore(path, step=STEP, hours=0.001) as store:
        store.append(rows(410), time_of(410))
        assert store.state().ticks == 362 - 64
        for tick in range(411, 420):
            store.append(rows(tick), time_of(tick))
        assert store.state().ticks <= 2


def test_store_trims_to_size_limit(path: Path) -> None:
    servers = range(300)
    with TickStore(path, step=STEP, megabytes=1.0) as store:
        for tick in range(300):  # about 6 MB
            store.append(rows(tick, servers), time_of(tick))
        state = store.state()
        assert 0.7 < state.megabytes <= 1.1
        assert state.newest == time_of(299)
        assert state.ticks > 20
    assert path.stat().st_size < 1_500_000
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*) FROM tick").fetchone()[0] == state.ticks
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()


def test_store_deletes_unused_server_names(path: Path) -> None:
    day = 86_400 // STEP
    with TickStore(path, step=STEP, hours=24) as store:
        for number in range(6):
            store.append(rows(number * day, [number, 99]), time_of(number * day))
    db = sqlite3.connect(path)
    for table in ("server", "server_again"):
        assert {row[0] for row in db.execute(f"SELECT name FROM {table}")} == {"s2", "s3", "s4", "s5", "s99"}  # noqa: S608
    db.close()


def test_store_tick_count_is_correct(path: Path) -> None:
    with TickStore(path, step=STEP, hours=0.05) as store:
        for tick in range(60):
            store.append(rows(tick), time_of(tick))
        counted = store.state().ticks
    with TickStore(path, step=STEP, read_only=True) as reader:
        assert reader.state().ticks == counted == 37


def checkpoint(path: Path) -> None:
    """Move everything into the one file that the test damages."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")
    db.close()


def zero_page(data: bytearray, *pages: int) -> None:
    for page in pages:
        data[page * 4096 : (page + 1) * 4096] = bytes(4096)


DAMAGE: dict[str, tuple[Callable[[bytearray], object], int]] = {  # how, and the maximum number of lost ticks of 200
    "zeroed": (lambda data: data.__setitem__(slice(None), bytes(len(data))), 200),
    "text": (lambda data: data.__setitem__(slice(None), b"no database\n" * 100), 200),
    "half": (lambda data: data.__delitem__(slice(len(data) // 2, None)), 200),
    "header zeroed": (lambda data: data.__setitem__(slice(0, 100), bytes(100)), 200),
    "one page zeroed": (lambda data: zero_page(data, 20), 10),
    "three pages zeroed": (lambda data: zero_page(data, 15, 30, 45), 30),
    "empty": (lambda data: data.__delitem__(slice(None)), 200),
    "other application id": (lambda data: data.__setitem__(slice(68, 72), b"abcd"), 0),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_store_damaged_file_is_salvaged(path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, range(200), range(8))
    checkpoint(path)
    content = bytearray(path.read_bytes())
    spoil, lost = DAMAGE[kind]
    spoil(content)
    path.write_bytes(content)
    original = expected(range(200), range(8))
    with caplog.at_level(logging.WARNING):
        recovered = load(path, 200, 200)
    assert all(np.array_equal(recovered[key], original[key], equal_nan=True) for key in recovered), (
        "a read returned a wrong value"
    )
    ticks = {tick for _, tick in recovered}
    assert len(recovered) == 8 * len(ticks), "a tick must be restored completely or not at all"
    assert len(ticks) >= 200 - lost
    if kind != "empty":  # SQLite treats an empty file as a new database
        assert "set aside" in caplog.text or "damaged" in caplog.text
    fill(path, range(200, 203), range(8))
    assert equal_cells(load(path, 203, 203), recovered | expected(range(200, 203), range(8)))
    assert len(list(path.parent.glob("*.damaged-*"))) <= 1


def test_store_flipped_bits_never_change_a_value(path: Path) -> None:
    fill(path, range(120), range(5))
    checkpoint(path)
    original, rng = path.read_bytes(), random.Random(11)
    intact = expected(range(120), range(5))
    lost = []
    for _ in range(40):
        for part in path.parent.iterdir():
            part.unlink()
        content = bytearray(original)
        for _ in range(rng.choice([1, 1, 1, 5])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        for _ in range(2):  # as it is, and after the repair
            recovered = load(path, 120, 120)
            assert all(np.array_equal(recovered[key], intact[key], equal_nan=True) for key in recovered)
        lost.append(120 - len({tick for _, tick in recovered}))
    assert sorted(lost)[len(lost) // 2] <= 1, "a flipped bit must lose only its tick"


def test_store_flipped_bit_loses_one_tick(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, range(30))
    checkpoint(path)
    db = sqlite3.connect(path)
    data = db.execute("SELECT data FROM tick ORDER BY id LIMIT 1 OFFSET 7").fetchone()[0]
    db.close()
    content = bytearray(path.read_bytes())
    content[content.index(data) + 40] ^= 4
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        recovered = load(path, 30)
    assert {tick for _, tick in recovered} == set(range(30)) - {7}
    assert ": 1 skipped" in caplog.text


def test_store_lost_name_is_read_from_second_table(path: Path) -> None:
    fill(path)
    for table in ("server", "server_again"):
        db = sqlite3.connect(path)
        db.execute(f"UPDATE {table} SET name = 's1' WHERE name = 's2'")  # noqa: S608
        db.commit()
        db.close()
        recovered = load(path)
        assert equal_cells({key: value for key, value in recovered.items() if key[0] != "s2"},
                    {key: value for key, value in expected(range(20)).items() if key[0] != "s2"})  # fmt: skip
        assert (("s2", 3) in recovered) == (table == "server"), "a server without a name must not get ticks of another"


def test_store_reader_skips_damage_without_repair(path: Path) -> None:
    fill(path, range(200), range(8))
    checkpoint(path)
    content = bytearray(path.read_bytes())
    content[20 * 4096 : 21 * 4096] = bytes(4096)
    path.write_bytes(content)
    with TickStore(path, step=STEP, read_only=True) as reader:
        readable = read_history(reader)
    intact = expected(range(200), range(8))
    assert all(np.array_equal(readable[key], intact[key], equal_nan=True) for key in readable)
    assert len({tick for _, tick in readable}) >= 190
    assert path.read_bytes() == content
    assert sorted(part.name for part in path.parent.iterdir() if "damaged" in part.name) == []


def test_store_syncs_once_a_minute(path: Path, tmp_path: Path) -> None:
    with TickStore(path, step=STEP) as store:
        for tick in range(20):
            store.append(rows(tick), time_of(tick))
            copy = tmp_path / f"copy-{tick}" / path.name
            copy.parent.mkdir()
            copy.write_bytes(path.read_bytes())  # without the WAL, as if that had not reached the disk
    on_disk = []
    for tick in range(20):
        with TickStore(tmp_path / f"copy-{tick}" / path.name, step=STEP, read_only=True) as reader:
            on_disk.append(len({one for _, one in read_history(reader)}))
    assert on_disk == [1] * 12 + [13] * 8


def test_store_reader_creates_no_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TickStore(path, step=STEP, read_only=True) as reader, caplog.at_level(logging.WARNING):
        assert reader.state().last_error is not None
        assert list(reader.history(0, 2**40)) == []
    assert not path.parent.exists()


def test_store_is_readable_during_writes(path: Path) -> None:
    fill(path, range(50))
    code = (
        "import sys; from pathlib import Path; from forecastd.fleet.window.store import TickStore\n"
        "with TickStore(Path(sys.argv[1]), step=5, read_only=True) as store:\n"
        "    for line in sys.stdin:\n"
        "        print(sum(len(chunk) for chunk in store.history(0, 2**40)), store.state().ticks, flush=True)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None
    assert child.stdout is not None
    with TickStore(path, step=STEP) as store:
        for tick in range(50, 56):
            store.append(rows(tick), time_of(tick))
            child.stdin.write("\n")
            child.stdin.flush()
            assert child.stdout.readline().split() == [str(3 * (tick + 1)), str(tick + 1)]
    child.stdin.close()
    assert child.wait(60) == 0
    child.stdout.close()


def test_store_full_disk_is_logged_once_and_recovered(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TickStore(path, step=STEP) as store, caplog.at_level(logging.INFO):
        store.append(rows(0), time_of(0))
        real, full = store._file._connect, True

        def connect() -> sqlite3.Connection:
            db = real()
            if full:  # SQLite then raises SQLITE_FULL
                db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
            return db

        store._file._connect = connect  # type: ignore[method-assign]
        store._file.close()
        is_stored = [store.append(rows(tick, range(200)), time_of(tick)) for tick in range(1, 40)]
        assert not any(is_stored[-30:])
        assert "full" in (store.last_error or "")
        assert "full" in (store.state().last_error or "")
        full = False
        store._file.close()
        for tick in range(40, 45):
            assert store.append(rows(tick, range(200)), time_of(tick))
        assert store.last_error is None
        assert {tick for _, tick in read_history(store)} == set(range(45))
    messages = [record.getMessage() for record in caplog.records]
    assert [("Cannot write" in line, "is writable again" in line) for line in messages] == [
        (True, False),
        (False, True),
    ]


def test_store_pending_batches_are_bounded(path: Path) -> None:
    path.parent.mkdir()
    path.mkdir()  # no file can be created there
    with TickStore(path, step=STEP) as store:
        for tick in range(MAX_PENDING_BATCHES + 10):
            assert not store.append(rows(tick, [1]), time_of(tick))
        assert store.dropped_batches == 10
        path.rmdir()
        for tick in range(MAX_PENDING_BATCHES + 10, MAX_PENDING_BATCHES + 100):
            assert store.append(rows(tick, [1]), time_of(tick))
        assert {tick for _, tick in read_history(store)} == set(range(10, MAX_PENDING_BATCHES + 100))


def test_store_busy_file_keeps_rows_pending(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(path, range(3))
    monkeypatch.setattr("forecastd.fleet.window.store.BUSY_TIMEOUT_SECONDS", 0.05)
    with TickStore(path, step=STEP) as store:
        other = sqlite3.connect(path)
        other.execute("BEGIN EXCLUSIVE")
        assert not store.append(rows(3), time_of(3))
        assert not store.append(rows(4), time_of(4))
        other.close()
        assert store.append(rows(5), time_of(5))
    assert equal_cells(load(path, 6), expected(range(6)))


@pytest.mark.parametrize("replaced", [False, True])
def test_store_deleted_file_is_recreated(path: Path, replaced: bool) -> None:
    with TickStore(path, step=STEP) as store:
        store.append(rows(0), time_of(0))
        if replaced:
            path.replace(path.with_name("elsewhere"))
            fill(path, range(7, 8))
        else:
            for part in path.parent.iterdir():
                part.unlink()
        store.append(rows(1), time_of(1))
        store.append(rows(2), time_of(2))
    assert {tick for _, tick in load(path, 9)} == ({1, 2, 7} if replaced else {1, 2})


@pytest.fixture
def start_appender(path: Path) -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    """Start a process that appends ticks from a number on, as fast as possible, and prints each stored tick."""
    directory = Path(__file__)
    code = (
        "import importlib.util, sys; from pathlib import Path\n"
        f"spec = importlib.util.spec_from_file_location('store_test', {str(directory)!r})\n"
        "test = importlib.util.module_from_spec(spec); spec.loader.exec_module(test)\n"
        "store = test.TickStore(Path(sys.argv[1]), step=5, hours=1000)\n"
        "for tick in range(int(sys.argv[2]), 10**6):\n"
        "    assert store.append(test.rows(tick, range(40)), test.time_of(tick)); print(tick, flush=True)\n"
    )
    started: list[subprocess.Popen[str]] = []

    def start(first: int) -> subprocess.Popen[str]:
        child = subprocess.Popen([sys.executable, "-c", code, str(path), str(first)], stdout=subprocess.PIPE, text=True)
        started.append(child)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_store_kill_loses_at_most_current_tick(
    path: Path, start_appender: Callable[[int], subprocess.Popen[str]]
) -> None:
    rng, first = random.Random(5), 0
    for _ in range(5):
        child = start_appender(first)
        assert child.stdout is not None
        messages = [int(child.stdout.readline()) for _ in range(rng.randrange(2, 60))]
        child.send_signal(signal.SIGKILL)
        messages += [int(line) for line in child.stdout.read().splitlines()]
        child.wait(60)
        with TickStore(path, step=STEP, hours=1000, read_only=True) as reader:
            history = read_history(reader)
        ticks = {tick for _, tick in history}
        assert ticks in (set(range(messages[-1] + 1)), set(range(messages[-1] + 2))), (
            "at most the tick in progress may be stored in addition"
        )
        assert equal_cells(history, expected(range(max(ticks) + 1), range(40)))
        first = max(ticks) + 1
    assert not list(path.parent.glob("*.damaged-*"))
