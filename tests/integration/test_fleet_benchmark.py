"""The instruments of `python -m benchmarks fleet`: "nothing is lost" is worth what would have been seen."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.figures import Count
from benchmarks.fleet import load, peers
from benchmarks.fleet.scene import STEP, Servers
from benchmarks.fleet.soak import SERVERS, Soak, due
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.intake import parse_feed
from forecastd.fleet.store import TickStore


@pytest.fixture
def kept(tmp_path: Path) -> Soak:
    """A soak that was answered for some ticks, all of them on disk."""
    soak = Soak(tmp_path, 1000, 2, 1)
    with TickStore(soak.path, step=STEP) as store:
        for tick in range(soak.first, soak.first + 6):
            assert store.append(soak._rows(tick), tick * STEP)
            soak.told[tick] = float(tick * STEP)
    return soak


def test_what_is_on_disk_as_it_was_sent_is_not_missed(kept: Soak) -> None:
    assert kept._missing(sorted(kept.told)) == []


def test_a_tick_that_is_gone_and_one_with_another_number_are_missed(kept: Soak) -> None:
    gone, changed = kept.first + 1, kept.first + 4
    with closing(sqlite3.connect(kept.path)) as db, db:
        starts = {row: row // 65_536 for (row,) in db.execute("SELECT id FROM tick")}
        db.executemany("DELETE FROM tick WHERE id = ?", [(row,) for row, at in starts.items() if at == gone * STEP])
    rows = kept._rows(changed)
    rows.values[0, 0] += 1.0
    with TickStore(kept.path, step=STEP) as store:
        assert store.append(rows, changed * STEP)
    assert kept._missing(sorted(kept.told)) == [gone, changed]


def test_a_tick_that_was_due_long_before_a_kill_must_not_be_lost(kept: Soak) -> None:
    with closing(sqlite3.connect(kept.path)) as db, db:
        db.execute("DELETE FROM tick")
    kept.killed = due(kept.first, kept.told[kept.first]) + 1.0  # a moment after the first was due
    kept._account()
    assert kept.lost == [6]
    assert not kept.broken, "they were in flight"
    kept.told = {tick: float(tick * STEP) for tick in range(kept.first, kept.first + 6)}
    kept.killed += 1e6
    kept._account()
    assert len(kept.broken) == 6


@pytest.mark.parametrize(
    ("tick", "answered", "written"),
    [
        (10, 10.2 * STEP, 11.1 * STEP),  # in its own time: when it is closed, a tenth of a step after its end
        (10, 11.05 * STEP, 11.1 * STEP),
        (10, 11.2 * STEP, 12.1 * STEP),  # late: with the next tick that is closed
        (10, 40.0 * STEP, 40.1 * STEP),
    ],
)
def test_rows_are_due_on_disk_with_the_first_tick_that_closes_after_they_came(
    tick: int, answered: float, written: float
) -> None:
    assert due(tick, answered) == pytest.approx(written)


def test_a_fifth_of_the_servers_is_away_and_each_of_them_for_longer_than_the_window(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 17_280, 2, 1)
    ticks = range(soak.first, soak.first + 17_280)
    away = [[not soak._there(place, tick) for tick in ticks] for place in range(SERVERS)]
    assert sum(map(sum, away)) == pytest.approx(len(ticks) * SERVERS / 5, rel=0.1)
    for one in away:
        spells = "".join("x" if gone else "." for gone in one).strip(".").split(".")
        assert max(map(len, spells)) > 360


def test_every_record_of_a_sender_is_new_to_the_window() -> None:
    servers = Servers(30, seed=1)
    window = FleetWindow(STEP, 10, 30)
    now = float((servers.tick + 1) * STEP)
    window.advance(servers.tick)
    for sender in range(3):
        body = load.body(list(servers.names), list(servers.profiles), 100, sender)
        parsed = parse_feed(body.replace(load.MARK, b"%.3f" % now), "application/json", step=STEP)
        answer = window.take(parsed, now=now, max_skew=30)
        assert (answer.accepted, answer.refused, answer.duplicates) == (100, 0, 0)


def test_other_libraries_that_are_absent_are_said_to_be(tmp_path: Path) -> None:
    told = list(peers.run({20: 1.0}, seed=1, turns=1, interpreter=str(bare(tmp_path))))
    assert [type(one) for one in told] == [Count, Count]
    assert [one.name for one in told] == ["neuralforecast: absent", "darts: absent"]


def bare(place: Path) -> Path:
    """An interpreter without any library."""
    script = place / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    script.chmod(0o755)
    return script
