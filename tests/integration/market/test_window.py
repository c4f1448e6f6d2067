"""The rolling window: what it fetches again, and how it survives damage, faults of the file and other processes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from forecastd.clock import to_iso
from forecastd.errors import RetryLater
from forecastd.market.candles import COLUMNS, HOUR, MAX_STALE_STEPS, Candles, check_candles
from forecastd.market.inspect import TimeRange, load_candles
from forecastd.market.sources.fake_tiingo import FakeTiingo
from forecastd.market.sources.sample import SampleSource
from forecastd.market.sources.tiingo import TiingoSource
from forecastd.market.window import RollingWindow, refresh
from forecastd.testing import ManualClock

NOW = 1_700_000_000 // HOUR * HOUR
SAMPLE = SampleSource("btcusd")


class RemoteSource:
    """A source that records its requests, lacks some hours, and can be down or wrong."""

    name, symbol, step, synthetic, local = "remote:btcusd", "btcusd", HOUR, False, False

    def __init__(self) -> None:
        self.requests: list[tuple[int, int]] = []
        self.missing_times: set[int] = set()
        self.down = False
        self.factor: dict[int, float] = {}

    def fetch(self, start: int, end: int, now: float) -> Candles:
        self.requests.append(((start - NOW) // HOUR, (end - NOW) // HOUR))
        if self.down:
            raise RetryLater
        candles = SAMPLE.fetch(start, end, now)
        candles = candles.take(~np.isin(candles.time, list(self.missing_times)))
        scale = np.array([self.factor.get(time, 1.0) for time in candles.time.tolist()])
        origin = replace(candles.provenance, source=self.name, synthetic=False)
        prices = {name: getattr(candles, name) * scale for name in COLUMNS[:4]}
        return replace(candles, provenance=origin, **prices)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "window.sqlite"


@pytest.fixture
def remote() -> RemoteSource:
    return RemoteSource()


def refresh_in_new_process(path: Path, remote: RemoteSource, hours: float = 0, length: int = 408) -> Candles:
    """The candles that a new process gets, `hours` after NOW."""
    with RollingWindow.open(path) as window:
        return refresh(window, remote, now=NOW + hours * HOUR, length=length)


def is_same(left: Candles, right: Candles) -> bool:
    return all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("time", *COLUMNS))


def test_window_restart_fetches_only_missing_candles(path: Path, remote: RemoteSource) -> None:
    first = refresh_in_new_process(path, remote)
    second = refresh_in_new_process(path, remote, 0.9)
    later = refresh_in_new_process(path, remote, 3)
    assert remote.requests == [(-408, 0), (-1, 3)], (
        "no request while nothing is missing, then the last candle and the new ones"
    )
    assert is_same(first, second)
    assert first.provenance == second.provenance
    assert is_same(later, SAMPLE.fetch(NOW - 405 * HOUR, NOW + 3 * HOUR, NOW + 3 * HOUR))
    assert later.provenance.sha256 != first.provenance.sha256
    assert later.provenance.fetched_at == NOW + 3 * HOUR


@pytest.mark.parametrize("length", [408, 5_000])
def test_window_second_run_downloads_under_two_percent(path: Path, length: int) -> None:
    clock = ManualClock(NOW)
    with FakeTiingo(SAMPLE, clock, key="k") as server:
        sent = []
        for hours in (0, 0.5, 1, 3):
            clock.wall = NOW + hours * HOUR
            before = server.bytes_sent
            source = TiingoSource("btcusd", "k", server.url)
            with RollingWindow.open(path) as window:
                candles = refresh(window, source, now=clock.now(), length=length)
            check_candles(candles, now=clock.now(), min_length=length, max_age=HOUR)
            sent.append(server.bytes_sent - before)
    assert sent[1] == 0
    assert max(sent[2:]) <= 0.02 * sent[0]


def test_window_gap_is_filled_later_at_growing_intervals(path: Path, remote: RemoteSource) -> None:
    gap = NOW - 100 * HOUR
    remote.missing_times = {gap}
    assert len(refresh_in_new_process(path, remote)) == 407
    remote.requests.clear()
    for hours in (0.2, 1, 2, 3):
        refresh_in_new_process(path, remote, hours)
    assert remote.requests == [(-1, 1), (0, 2), (1, 3)], "only the new candles"
    remote.missing_times.clear()
    remote.requests.clear()
    assert len(refresh_in_new_process(path, remote, 100)) == 408
    assert (-101, -99) in remote.requests, "requested again at twice the age"


def test_window_late_newest_candle_is_requested_again_soon(path: Path, remote: RemoteSource) -> None:
    remote.missing_times = {NOW}
    for seconds in (5, 10, 29, 31, 50, 61, 63):
        refresh_in_new_process(path, remote, 1 + seconds / HOUR)
    assert len(remote.requests) == 3, "at 5 s, after 30 s, and when that age has doubled"


def test_window_corrected_candle_is_replaced(path: Path, remote: RemoteSource) -> None:
    remote.factor = {NOW - HOUR: 1.001}
    refresh_in_new_process(path, remote)
    remote.factor.clear()
    assert is_same(refresh_in_new_process(path, remote, 1), SAMPLE.fetch(NOW - 407 * HOUR, NOW + HOUR, NOW + HOUR))


def test_window_implausible_candle_is_fetched_again(path: Path, remote: RemoteSource) -> None:
    remote.factor = {NOW - 50 * HOUR: 100.0}
    refresh_in_new_process(path, remote)
    remote.factor.clear()
    candles = refresh_in_new_process(path, remote, 1)
    check_candles(candles, now=NOW + HOUR, min_length=408, max_age=HOUR)


def test_window_source_down_raises_unless_only_an_old_gap(path: Path, remote: RemoteSource) -> None:
    remote.missing_times = {NOW - 3 * HOUR}
    refresh_in_new_process(path, remote)
    remote.down = True
    assert len(refresh_in_new_process(path, remote, 0.99)) == 407
    with pytest.raises(RetryLater):
        refresh_in_new_process(path, remote, 1)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_window_outage_uses_fresh_cached_candles(
    path: Path, remote: RemoteSource, late: int, caplog: pytest.LogCaptureFixture
) -> None:
    refresh_in_new_process(path, remote, length=420)
    remote.down = True
    with caplog.at_level(logging.WARNING):
        candles = refresh_in_new_process(path, remote, late)
    now = NOW + late * HOUR
    candles, repairs = check_candles(candles, now=now, min_length=408, max_age=MAX_STALE_STEPS * HOUR)
    assert is_same(candles, SAMPLE.fetch(NOW - 408 * HOUR, NOW, NOW))
    assert repairs == (f"used cached candles up to {to_iso(NOW)}, because the source returned no newer ones",)
    assert "Cannot fetch newer candles" in caplog.text


@pytest.mark.parametrize(("hours", "length"), [(4, 408), (1, 421)], ids=["too old", "too few"])
def test_window_outage_with_unusable_cache_raises(path: Path, remote: RemoteSource, hours: int, length: int) -> None:
    refresh_in_new_process(path, remote, length=420)
    remote.down = True
    with pytest.raises(RetryLater):
        refresh_in_new_process(path, remote, hours, length=length)


def test_window_late_newest_candle_keeps_length(path: Path, remote: RemoteSource) -> None:
    refresh_in_new_process(path, remote)
    remote.missing_times = {NOW}
    assert is_same(refresh_in_new_process(path, remote, 1.001), SAMPLE.fetch(NOW - 408 * HOUR, NOW, NOW))


@pytest.mark.parametrize("minutes", [0, 1, 30, 59])
@pytest.mark.parametrize("hours", [1, 24])
def test_window_refresh_returns_length_at_any_minute(
    path: Path, remote: RemoteSource, minutes: int, hours: int
) -> None:
    now = NOW + 60 * minutes
    with RollingWindow.open(path) as window:
        for source in (remote, SAMPLE):
            assert len(load_candles(source, window, TimeRange(hours=hours), now=now)) == hours
            assert len(load_candles(source, window, TimeRange(hours=hours, end=now - HOUR), now=now)) == hours
            assert len(load_candles(source, window, TimeRange(start=now - 90 * HOUR, hours=hours), now=now)) == hours


def test_window_many_gaps_are_fetched_as_one_range(path: Path, remote: RemoteSource) -> None:
    remote.missing_times = {NOW - hour * HOUR for hour in range(4, 80, 4)}
    refresh_in_new_process(path, remote)
    remote.requests.clear()
    remote.missing_times.clear()
    assert len(refresh_in_new_process(path, remote, 80)) == 408
    assert len(remote.requests) == 1


def test_window_longer_length_fetches_the_older_part(path: Path, remote: RemoteSource) -> None:
    refresh_in_new_process(path, remote, length=100)
    refresh_in_new_process(path, remote, length=300)
    assert remote.requests == [(-100, 0), (-300, -100)]


def test_window_local_source_is_not_cached(path: Path) -> None:
    with RollingWindow.open(path) as window:
        candles = refresh(window, SAMPLE, now=NOW, length=24)
        assert len(candles) == 24
        assert window.load("sample", "btcusd", HOUR, 0, 2**40) is None


def test_window_series_do_not_mix(path: Path, remote: RemoteSource) -> None:
    real = remote.fetch(NOW - 10 * HOUR, NOW, NOW)
    with RollingWindow.open(path) as window:
        window.append(real)
        window.append(SAMPLE.fetch(NOW - 20 * HOUR, NOW, NOW))
        stored = window.load("remote:btcusd", "btcusd", HOUR, 0, 2**40)
        assert stored is not None
        assert is_same(stored, real)
        assert stored.provenance == real.provenance
        for key in (("remote:btcusd", "ethusd", HOUR), ("remote:btcusd", "btcusd", 60), ("tiingo", "btcusd", HOUR)):
            assert window.load(*key, 0, 2**40) is None
        synthetic = window.load("sample", "btcusd", HOUR, 0, 2**40)
        assert synthetic is not None
        assert synthetic.provenance.synthetic


def test_window_mixed_synthetic_and_real_rows_are_unused(path: Path, remote: RemoteSource) -> None:
    real = remote.fetch(NOW - 10 * HOUR, NOW, NOW)
    with RollingWindow.open(path) as window:
        window.append(real)
        part = real.take(slice(0, 3))
        window.append(replace(part, provenance=replace(part.provenance, synthetic=True)))
        assert window.load(remote.name, "btcusd", HOUR, 0, 2**40) is None


def test_window_series_is_bounded(path: Path) -> None:
    with RollingWindow.open(path, max_rows=50) as window:
        for hour in range(0, 200, 10):
            window.append(SAMPLE.fetch(NOW + hour * HOUR, NOW + (hour + 10) * HOUR, NOW + 300 * HOUR))
        stored = window.load("sample", "btcusd", HOUR, 0, 2**40)
    assert stored is not None
    assert stored.time.tolist() == [NOW + hour * HOUR for hour in range(150, 200)]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM origin").fetchone()[0] == 5
    db.close()


def fill(path: Path, remote: RemoteSource, rows: int = 2_000) -> None:
    refresh_in_new_process(path, remote, length=rows)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")  # write everything into the one file that the test damages
    db.close()
    remote.requests.clear()


def damage_file(path: Path, damage: Callable[[bytearray], object]) -> None:
    content = bytearray(path.read_bytes())
    damage(content)
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[bytearray], object]] = {
    "zeroed": lambda data: data.__setitem__(slice(None), bytes(len(data))),
    "text": lambda data: data.__setitem__(slice(None), b"no database\n" * 100),
    "half": lambda data: data.__delitem__(slice(len(data) // 2, None)),
    "head lost": lambda data: data.__setitem__(slice(0, 100), bytes(100)),
    "a page zeroed": lambda data: data.__setitem__(slice(8 * 4096, 9 * 4096), bytes(4096)),
    "empty": lambda data: data.__delitem__(slice(None)),
    "another kind": lambda data: data.__setitem__(slice(68, 72), b"abcd"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_window_damaged_file_is_moved_aside_and_logged(
    path: Path, remote: RemoteSource, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, remote)
    damage_file(path, DAMAGE[kind])
    with caplog.at_level(logging.WARNING):
        assert is_same(refresh_in_new_process(path, remote, length=2_000), SAMPLE.fetch(NOW - 2_000 * HOUR, NOW, NOW))
    damaged_copy = path.with_name("window.sqlite.damaged-1")
    if kind != "empty":  # SQLite treats an empty file as a new database
        assert damaged_copy.exists()
        assert "It was renamed to" in caplog.text
    remote.requests.clear()
    refresh_in_new_process(path, remote, length=2_000)
    assert remote.requests == [], "the new file is complete"


def test_window_flipped_bit_loses_only_its_row(
    path: Path, remote: RemoteSource, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, remote)
    db = sqlite3.connect(path)
    data = db.execute("SELECT data FROM tick WHERE time = ?", (NOW - 7 * HOUR,)).fetchone()[0]
    db.close()
    damage_file(
        path, lambda content: content.__setitem__(content.index(data) + 20, content[content.index(data) + 20] ^ 4)
    )
    with caplog.at_level(logging.WARNING):
        assert is_same(refresh_in_new_process(path, remote, length=2_000), SAMPLE.fetch(NOW - 2_000 * HOUR, NOW, NOW))
    assert remote.requests == [(-8, -6)]
    assert "1 damaged row in" in caplog.text


def test_window_random_bit_flips_never_change_candles(path: Path, remote: RemoteSource) -> None:
    fill(path, remote, rows=400)
    all_candles = path.read_bytes()
    rng = random.Random(7)
    expected = SAMPLE.fetch(NOW - 400 * HOUR, NOW, NOW)
    for _ in range(120):
        for part in path.parent.iterdir():
            part.unlink()
        content = bytearray(all_candles)
        for _ in range(rng.choice([1, 20])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert is_same(refresh_in_new_process(path, remote, length=400), expected)


def test_window_at_most_five_damaged_files_are_kept(path: Path, remote: RemoteSource) -> None:
    for _ in range(8):
        refresh_in_new_process(path, remote, length=10)
        for part in path.parent.glob("window.sqlite*"):
            if "damaged" not in part.name:
                part.unlink()
        path.write_bytes(b"junk" * 500)
    assert len(list(path.parent.glob("*.damaged-*"))) <= 5


def test_window_read_only_file_still_returns_candles(
    tmp_path: Path, remote: RemoteSource, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "window.sqlite", tmp_path):
        with caplog.at_level(logging.WARNING):
            assert len(refresh_in_new_process(path, remote)) == 408
        assert "Continuing without it" in caplog.text
        caplog.clear()


def test_window_deleted_while_open_is_recreated(path: Path, remote: RemoteSource) -> None:
    with RollingWindow.open(path) as window:
        refresh(window, remote, now=NOW, length=24)
        for part in path.parent.iterdir():
            part.unlink()
        refresh(window, remote, now=NOW, length=24)
    remote.requests.clear()
    refresh_in_new_process(path, remote, length=24)
    assert remote.requests == [], "the new file contains the fetched candles"


def test_window_full_disk_still_returns_candles(
    path: Path, remote: RemoteSource, caplog: pytest.LogCaptureFixture
) -> None:
    refresh_in_new_process(path, remote, length=24)
    with RollingWindow.open(path) as window, caplog.at_level(logging.WARNING):
        assert window._file.db is not None
        window._file.db.execute("PRAGMA max_page_count = 1")  # SQLite then raises SQLITE_FULL
        assert len(refresh(window, remote, now=NOW, length=5_000)) == 5_000
    assert "full" in caplog.text
    assert len(refresh_in_new_process(path, remote, length=24)) == 24


def test_window_locked_file_is_bypassed(path: Path, remote: RemoteSource, monkeypatch: pytest.MonkeyPatch) -> None:
    refresh_in_new_process(path, remote, length=24)
    monkeypatch.setattr("forecastd.market.window.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    assert len(refresh_in_new_process(path, remote, 5, length=24)) == 24
    other.close()


def test_window_kill_loses_at_most_one_append(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.market.window import *; "
        "from forecastd.market.sources.sample import SampleSource\n"
        f"w, s, now = RollingWindow.open(Path(sys.argv[1])), SampleSource('btcusd'), {NOW}\n"
        "for hour in range(10**6):\n"
        "    w.append(s.fetch(now + hour * 3600, now + (hour + 1) * 3600, 4e9)); print(hour, flush=True)\n"
    )
    stored_before = 0
    for _ in range(5):
        path.parent.mkdir(exist_ok=True)
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        output = [int(child.stdout.readline()) for _ in range(random.Random(stored_before).randrange(3, 40))]
        child.send_signal(signal.SIGKILL)
        output += [int(line) for line in child.stdout.read().splitlines() if line]
        child.wait()
        child.stdout.close()
        with RollingWindow.open(path) as window:
            stored = window.load("sample", "btcusd", HOUR, 0, 2**40)
        assert stored is not None
        assert len(stored) >= max(stored_before, output[-1] + 1)
        assert is_same(stored, SAMPLE.fetch(NOW, NOW + len(stored) * HOUR, 4e9))
        stored_before = len(stored)
    assert not list(path.parent.glob("*.damaged-*"))


def refresh_many_times(path: str, seed: int) -> None:
    remote = RemoteSource()
    for hours in range(30):
        with RollingWindow.open(Path(path)) as window:
            candles = refresh(window, remote, now=NOW + hours * HOUR, length=50 + seed)
            assert len(candles) == 50 + seed
    os._exit(0 if len(remote.requests) < 60 else 3)


def test_window_shared_by_processes_stays_intact(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=refresh_many_times, args=(str(path), seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert not list(path.parent.glob("*.damaged-*"))
    with RollingWindow.open(path) as window:
        stored = window.load(RemoteSource.name, "btcusd", HOUR, NOW - 50 * HOUR, NOW + 29 * HOUR)
    assert stored is not None
    assert is_same(stored, SAMPLE.fetch(NOW - 50 * HOUR, NOW + 29 * HOUR, 4e9))
