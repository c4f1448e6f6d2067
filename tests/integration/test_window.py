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

from forecastd.candles import COLUMNS, HOUR, STALE_STEPS, Candles, check
from forecastd.clock import ReplayClock, iso
from forecastd.errors import RetryLater
from forecastd.sources.faketiingo import FakeTiingo
from forecastd.sources.sample import SampleSource
from forecastd.sources.tiingo import TiingoSource
from forecastd.survey import Span, gather
from forecastd.window import RollingWindow, refresh

NOW = 1_700_000_000 // HOUR * HOUR
TRUTH = SampleSource("btcusd")


class Remote:
    """A source that counts what it is asked for, lacks some hours, and can be down or wrong."""

    name, symbol, step, synthetic, local = "remote:btcusd", "btcusd", HOUR, False, False

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []
        self.lacks: set[int] = set()
        self.down = False
        self.factor: dict[int, float] = {}

    def fetch(self, start: int, end: int, now: float) -> Candles:
        self.asked.append(((start - NOW) // HOUR, (end - NOW) // HOUR))
        if self.down:
            raise RetryLater
        candles = TRUTH.fetch(start, end, now)
        candles = candles.take(~np.isin(candles.time, list(self.lacks)))
        scale = np.array([self.factor.get(time, 1.0) for time in candles.time.tolist()])
        origin = replace(candles.provenance, source=self.name, synthetic=False)
        prices = {name: getattr(candles, name) * scale for name in COLUMNS[:4]}
        return replace(candles, provenance=origin, **prices)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "window.sqlite"


@pytest.fixture
def remote() -> Remote:
    return Remote()


def ask(path: Path, remote: Remote, hours: float = 0, length: int = 408) -> Candles:
    """What a fresh process would get, `hours` after NOW."""
    with RollingWindow.open(path) as window:
        return refresh(window, remote, now=NOW + hours * HOUR, length=length)


def same(one: Candles, other: Candles) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("time", *COLUMNS))


def test_a_restart_asks_only_for_what_is_missing(path: Path, remote: Remote) -> None:
    first = ask(path, remote)
    again = ask(path, remote, 0.9)
    later = ask(path, remote, 3)
    assert remote.asked == [(-408, 0), (-1, 3)], "nothing while nothing is missing, then the last and the new ones"
    assert same(first, again)
    assert first.provenance == again.provenance
    assert same(later, TRUTH.fetch(NOW - 405 * HOUR, NOW + 3 * HOUR, NOW + 3 * HOUR))
    assert later.provenance.sha256 != first.provenance.sha256
    assert later.provenance.fetched_at == NOW + 3 * HOUR


@pytest.mark.parametrize("length", [408, 5_000])
def test_a_second_run_costs_at_most_two_percent_of_the_bytes(path: Path, length: int) -> None:
    class Moving(ReplayClock):
        hour = 0.0

        def now(self) -> float:
            return NOW + self.hour * HOUR

    clock = Moving(0)
    with FakeTiingo(TRUTH, clock, key="k") as server:
        sent = []
        for clock.hour in (0, 0.5, 1, 3):
            before = server.bytes_sent
            source = TiingoSource("btcusd", "k", server.url)
            with RollingWindow.open(path) as window:
                candles = refresh(window, source, now=clock.now(), length=length)
            check(candles, now=clock.now(), needed=length, max_age=HOUR)
            sent.append(server.bytes_sent - before)
    assert sent[1] == 0
    assert max(sent[2:]) <= 0.02 * sent[0]


def test_a_hole_is_healed_when_the_source_has_it_and_not_asked_for_all_the_time_when_it_has_not(
    path: Path, remote: Remote
) -> None:
    hole = NOW - 100 * HOUR
    remote.lacks = {hole}
    assert len(ask(path, remote)) == 407
    remote.asked.clear()
    for hours in (0.2, 1, 2, 3):
        ask(path, remote, hours)
    assert remote.asked == [(-1, 1), (0, 2), (1, 3)], "only the new ones"
    remote.lacks.clear()
    remote.asked.clear()
    assert len(ask(path, remote, 100)) == 408
    assert (-101, -99) in remote.asked, "asked again when it is twice as old"


def test_a_newest_candle_that_is_late_is_asked_for_soon_again(path: Path, remote: Remote) -> None:
    remote.lacks = {NOW}
    for seconds in (5, 10, 29, 31, 50, 61, 63):
        ask(path, remote, 1 + seconds / HOUR)
    assert len(remote.asked) == 3, "at 5 s, after 30 s, and when that age has doubled"


def test_a_candle_that_the_source_corrects_is_corrected(path: Path, remote: Remote) -> None:
    remote.factor = {NOW - HOUR: 1.001}
    ask(path, remote)
    remote.factor.clear()
    assert same(ask(path, remote, 1), TRUTH.fetch(NOW - 407 * HOUR, NOW + HOUR, NOW + HOUR))


def test_a_wrong_candle_does_not_stay_when_the_source_has_mended_it(path: Path, remote: Remote) -> None:
    remote.factor = {NOW - 50 * HOUR: 100.0}
    ask(path, remote)
    remote.factor.clear()
    candles = ask(path, remote, 1)
    check(candles, now=NOW + HOUR, needed=408, max_age=HOUR)


def test_a_source_that_is_down_is_told_unless_only_an_old_hole_is_open(path: Path, remote: Remote) -> None:
    remote.lacks = {NOW - 3 * HOUR}
    ask(path, remote)
    remote.down = True
    assert len(ask(path, remote, 0.99)) == 407
    with pytest.raises(RetryLater):
        ask(path, remote, 1)


@pytest.mark.parametrize("late", [1, 2, 3])
def test_an_outage_costs_no_epoch_while_what_is_kept_is_young(
    path: Path, remote: Remote, late: int, caplog: pytest.LogCaptureFixture
) -> None:
    ask(path, remote, length=420)
    remote.down = True
    with caplog.at_level(logging.WARNING):
        candles = ask(path, remote, late)
    now = NOW + late * HOUR
    candles, repairs = check(candles, now=now, needed=408, max_age=STALE_STEPS * HOUR)
    assert same(candles, TRUTH.fetch(NOW - 408 * HOUR, NOW, NOW))
    assert repairs == (f"went on with kept candles up to {iso(NOW)}, because the source gave no newer ones",)
    assert "Newer candles could not be fetched" in caplog.text


@pytest.mark.parametrize(("hours", "length"), [(4, 408), (1, 421)], ids=["too old", "too few"])
def test_an_outage_is_told_when_what_is_kept_would_not_pass(
    path: Path, remote: Remote, hours: int, length: int
) -> None:
    ask(path, remote, length=420)
    remote.down = True
    with pytest.raises(RetryLater):
        ask(path, remote, hours, length=length)


def test_a_newest_candle_that_is_late_leaves_as_many_as_are_needed(path: Path, remote: Remote) -> None:
    ask(path, remote)
    remote.lacks = {NOW}
    assert same(ask(path, remote, 1.001), TRUTH.fetch(NOW - 408 * HOUR, NOW, NOW))


@pytest.mark.parametrize("minutes", [0, 1, 30, 59])
@pytest.mark.parametrize("hours", [1, 24])
def test_as_many_candles_come_as_were_asked_for_at_any_minute(
    path: Path, remote: Remote, minutes: int, hours: int
) -> None:
    now = NOW + 60 * minutes
    with RollingWindow.open(path) as window:
        for source in (remote, TRUTH):
            assert len(gather(source, window, Span(hours=hours), now=now)) == hours
            assert len(gather(source, window, Span(hours=hours, end=now - HOUR), now=now)) == hours
            assert len(gather(source, window, Span(start=now - 90 * HOUR, hours=hours), now=now)) == hours


def test_many_holes_are_asked_for_at_once(path: Path, remote: Remote) -> None:
    remote.lacks = {NOW - at * HOUR for at in range(4, 80, 4)}
    ask(path, remote)
    remote.asked.clear()
    remote.lacks.clear()
    assert len(ask(path, remote, 80)) == 408
    assert len(remote.asked) == 1


def test_a_longer_look_back_fetches_the_older_part(path: Path, remote: Remote) -> None:
    ask(path, remote, length=100)
    ask(path, remote, length=300)
    assert remote.asked == [(-100, 0), (-300, -100)]


def test_a_local_source_is_read_directly(path: Path) -> None:
    with RollingWindow.open(path) as window:
        candles = refresh(window, TRUTH, now=NOW, length=24)
        assert len(candles) == 24
        assert window.load("sample", "btcusd", HOUR, 0, 2**40) is None


def test_series_do_not_mix(path: Path, remote: Remote) -> None:
    real = remote.fetch(NOW - 10 * HOUR, NOW, NOW)
    with RollingWindow.open(path) as window:
        window.append(real)
        window.append(TRUTH.fetch(NOW - 20 * HOUR, NOW, NOW))
        kept = window.load("remote:btcusd", "btcusd", HOUR, 0, 2**40)
        assert kept is not None
        assert same(kept, real)
        assert kept.provenance == real.provenance
        for key in (("remote:btcusd", "ethusd", HOUR), ("remote:btcusd", "btcusd", 60), ("tiingo", "btcusd", HOUR)):
            assert window.load(*key, 0, 2**40) is None
        made_up = window.load("sample", "btcusd", HOUR, 0, 2**40)
        assert made_up is not None
        assert made_up.provenance.synthetic


def test_made_up_candles_under_a_real_name_hide_all_of_it(path: Path, remote: Remote) -> None:
    real = remote.fetch(NOW - 10 * HOUR, NOW, NOW)
    with RollingWindow.open(path) as window:
        window.append(real)
        part = real.take(slice(0, 3))
        window.append(replace(part, provenance=replace(part.provenance, synthetic=True)))
        assert window.load(remote.name, "btcusd", HOUR, 0, 2**40) is None


def test_a_series_is_bounded(path: Path) -> None:
    with RollingWindow.open(path, keep=50) as window:
        for hour in range(0, 200, 10):
            window.append(TRUTH.fetch(NOW + hour * HOUR, NOW + (hour + 10) * HOUR, NOW + 300 * HOUR))
        kept = window.load("sample", "btcusd", HOUR, 0, 2**40)
    assert kept is not None
    assert kept.time.tolist() == [NOW + hour * HOUR for hour in range(150, 200)]
    with sqlite3.connect(path) as db:
        assert db.execute("SELECT count(*) FROM origin").fetchone()[0] == 5
    db.close()


def fill(path: Path, remote: Remote, rows: int = 2_000) -> None:
    ask(path, remote, length=rows)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = DELETE")  # everything into the one file that the test damages
    db.close()
    remote.asked.clear()


def spoil(path: Path, damage: Callable[[bytearray], object]) -> None:
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
def test_a_damaged_file_is_set_aside_and_told_and_nothing_is_lost(
    path: Path, remote: Remote, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(path, remote)
    spoil(path, DAMAGE[kind])
    with caplog.at_level(logging.WARNING):
        assert same(ask(path, remote, length=2_000), TRUTH.fetch(NOW - 2_000 * HOUR, NOW, NOW))
    aside = path.with_name("window.sqlite.damaged-1")
    if kind != "empty":  # SQLite takes an empty file for a new database
        assert aside.exists()
        assert "set aside" in caplog.text
    remote.asked.clear()
    ask(path, remote, length=2_000)
    assert remote.asked == [], "the new one is whole"


def test_a_flipped_bit_costs_its_row_only(path: Path, remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    fill(path, remote)
    db = sqlite3.connect(path)
    data = db.execute("SELECT data FROM tick WHERE time = ?", (NOW - 7 * HOUR,)).fetchone()[0]
    db.close()
    spoil(path, lambda content: content.__setitem__(content.index(data) + 20, content[content.index(data) + 20] ^ 4))
    with caplog.at_level(logging.WARNING):
        assert same(ask(path, remote, length=2_000), TRUTH.fetch(NOW - 2_000 * HOUR, NOW, NOW))
    assert remote.asked == [(-8, -6)]
    assert "1 damaged rows" in caplog.text


def test_bits_flipped_anywhere_never_change_what_is_handed_out(path: Path, remote: Remote) -> None:
    fill(path, remote, rows=400)
    whole = path.read_bytes()
    rng = random.Random(7)
    truth = TRUTH.fetch(NOW - 400 * HOUR, NOW, NOW)
    for _ in range(120):
        for part in path.parent.iterdir():
            part.unlink()
        content = bytearray(whole)
        for _ in range(rng.choice([1, 20])):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        assert same(ask(path, remote, length=400), truth)


def test_no_more_than_five_damaged_files_are_kept(path: Path, remote: Remote) -> None:
    for _ in range(8):
        ask(path, remote, length=10)
        for part in path.parent.glob("window.sqlite*"):
            if "damaged" not in part.name:
                part.unlink()
        path.write_bytes(b"junk" * 500)
    assert len(list(path.parent.glob("*.damaged-*"))) <= 5


def test_a_window_that_cannot_be_written_loses_nothing(
    tmp_path: Path, remote: Remote, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "window.sqlite", tmp_path):
        with caplog.at_level(logging.WARNING):
            assert len(ask(path, remote)) == 408
        assert "Going on without" in caplog.text
        caplog.clear()


def test_a_file_that_vanishes_while_it_is_open_is_begun_again(path: Path, remote: Remote) -> None:
    with RollingWindow.open(path) as window:
        refresh(window, remote, now=NOW, length=24)
        for part in path.parent.iterdir():
            part.unlink()
        refresh(window, remote, now=NOW, length=24)
    remote.asked.clear()
    ask(path, remote, length=24)
    assert remote.asked == [], "what was fetched again is in the new file"


def test_a_full_disk_loses_nothing(path: Path, remote: Remote, caplog: pytest.LogCaptureFixture) -> None:
    ask(path, remote, length=24)
    with RollingWindow.open(path) as window, caplog.at_level(logging.WARNING):
        assert window._file.db is not None
        window._file.db.execute("PRAGMA max_page_count = 1")  # SQLite's own way to a full disk: it raises SQLITE_FULL
        assert len(refresh(window, remote, now=NOW, length=5_000)) == 5_000
    assert "full" in caplog.text
    assert len(ask(path, remote, length=24)) == 24


def test_a_file_held_by_another_process_is_gone_without(
    path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(path, remote, length=24)
    monkeypatch.setattr("forecastd.window.BUSY_SECONDS", 0.05)
    other = sqlite3.connect(path)
    other.execute("BEGIN EXCLUSIVE")
    assert len(ask(path, remote, 5, length=24)) == 24
    other.close()


def test_a_kill_at_any_moment_loses_at_most_the_append_in_flight(path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from forecastd.window import *; "
        "from forecastd.sources.sample import SampleSource\n"
        f"w, s, now = RollingWindow.open(Path(sys.argv[1])), SampleSource('btcusd'), {NOW}\n"
        "for hour in range(10**6):\n"
        "    w.append(s.fetch(now + hour * 3600, now + (hour + 1) * 3600, 4e9)); print(hour, flush=True)\n"
    )
    kept_before = 0
    for _ in range(5):
        path.parent.mkdir(exist_ok=True)
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(random.Random(kept_before).randrange(3, 40))]
        child.send_signal(signal.SIGKILL)
        told += [int(line) for line in child.stdout.read().splitlines() if line]
        child.wait()
        child.stdout.close()
        with RollingWindow.open(path) as window:
            kept = window.load("sample", "btcusd", HOUR, 0, 2**40)
        assert kept is not None
        assert len(kept) >= max(kept_before, told[-1] + 1)
        assert same(kept, TRUTH.fetch(NOW, NOW + len(kept) * HOUR, 4e9))
        kept_before = len(kept)
    assert not list(path.parent.glob("*.damaged-*"))


def work(path: str, seed: int) -> None:
    remote = Remote()
    for hours in range(30):
        with RollingWindow.open(Path(path)) as window:
            candles = refresh(window, remote, now=NOW + hours * HOUR, length=50 + seed)
            assert len(candles) == 50 + seed
    os._exit(0 if len(remote.asked) < 60 else 3)


def test_processes_share_a_window_without_breaking_it(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work, args=(str(path), seed)) for seed in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert not list(path.parent.glob("*.damaged-*"))
    with RollingWindow.open(path) as window:
        kept = window.load(Remote.name, "btcusd", HOUR, NOW - 50 * HOUR, NOW + 29 * HOUR)
    assert kept is not None
    assert same(kept, TRUTH.fetch(NOW - 50 * HOUR, NOW + 29 * HOUR, 4e9))
