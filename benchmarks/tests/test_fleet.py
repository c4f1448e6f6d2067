"""The instruments of the fleet benchmark: a loss that the benchmark reports as zero would have been detected."""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.figures import PremiseCount
from benchmarks.fleet import load, peers
from benchmarks.fleet.scene import STEP, SimulatedServers
from benchmarks.fleet.soak import SERVERS, Soak, written_by
from forecastd.fleet.ingest.feed import parse_feed
from forecastd.fleet.window.store import TickStore
from forecastd.fleet.window.window import FleetWindow


@pytest.fixture
def soak_with_history(tmp_path: Path) -> Soak:
    """A soak whose acknowledged ticks are all on disk."""
    soak = Soak(tmp_path, 1000, 2, 1)
    with TickStore(soak.path, step=STEP) as store:
        for tick in range(soak.first, soak.first + 6):
            assert store.append(soak._rows(tick), tick * STEP)
            soak.acknowledged[tick] = float(tick * STEP)
    return soak


def test_soak_stored_rows_are_not_missing(soak_with_history: Soak) -> None:
    assert soak_with_history._missing(sorted(soak_with_history.acknowledged)) == []


def test_soak_deleted_and_changed_ticks_are_missing(soak_with_history: Soak) -> None:
    deleted, changed = soak_with_history.first + 1, soak_with_history.first + 4
    with closing(sqlite3.connect(soak_with_history.path)) as db, db:
        rows_on_disk = [row for (row,) in db.execute("SELECT id FROM tick")]
        db.executemany(
            "DELETE FROM tick WHERE id = ?", [(row,) for row in rows_on_disk if row // 65_536 == deleted * STEP]
        )
    rows = soak_with_history._rows(changed)
    rows.values[0, 0] += 1.0
    with TickStore(soak_with_history.path, step=STEP) as store:
        assert store.append(rows, changed * STEP)
    assert soak_with_history._missing(sorted(soak_with_history.acknowledged)) == [deleted, changed]


def test_soak_tick_due_before_kill_must_be_stored(soak_with_history: Soak) -> None:
    with closing(sqlite3.connect(soak_with_history.path)) as db, db:
        db.execute("DELETE FROM tick")
    first = soak_with_history.first
    soak_with_history.killed_at = (
        written_by(first, soak_with_history.acknowledged[first]) + 1.0
    )  # just after it was due
    soak_with_history._check_last_kill()
    assert soak_with_history.lost_ticks == [6]
    assert not soak_with_history.failures, "they were in progress"
    soak_with_history.acknowledged = {tick: float(tick * STEP) for tick in range(first, first + 6)}
    soak_with_history.killed_at += 1e6
    soak_with_history._check_last_kill()
    assert len(soak_with_history.failures) == 6


@pytest.mark.parametrize(
    ("tick", "acknowledged_at", "written_at"),
    [
        (10, 10.2 * STEP, 11.1 * STEP),  # on time: when it closes, a tenth of a step after its end
        (10, 11.05 * STEP, 11.1 * STEP),
        (10, 11.2 * STEP, 12.1 * STEP),  # late: with the next tick that closes
        (10, 40.0 * STEP, 40.1 * STEP),
    ],
)
def test_soak_rows_are_due_when_next_tick_closes(tick: int, acknowledged_at: float, written_at: float) -> None:
    assert written_by(tick, acknowledged_at) == pytest.approx(written_at)


def test_soak_fifth_of_servers_is_absent_longer_than_window(tmp_path: Path) -> None:
    soak = Soak(tmp_path, 17_280, 2, 1)
    ticks = range(soak.first, soak.first + 17_280)
    absences = [[not soak._is_present(index, tick) for tick in ticks] for index in range(SERVERS)]
    assert sum(map(sum, absences)) == pytest.approx(len(ticks) * SERVERS / 5, rel=0.1)
    for server in absences:
        spells = "".join("x" if absent else "." for absent in server).strip(".").split(".")
        assert max(map(len, spells)) > 360


def test_load_records_are_new_to_window() -> None:
    servers = SimulatedServers(30, seed=1)
    window = FleetWindow(STEP, 10, 30)
    now = float((servers.tick + 1) * STEP)
    window.advance(servers.tick)
    for sender in range(3):
        body = load.feed_template(list(servers.names), list(servers.profiles), 100, sender)
        parsed = parse_feed(body.replace(load.TIME_PLACEHOLDER, b"%.3f" % now), "application/json", step=STEP)
        response = window.ingest(parsed, now=now, max_skew=30)
        assert (response.accepted, response.refused, response.duplicates) == (100, 0, 0)


def test_peers_absent_library_is_reported(tmp_path: Path) -> None:
    figures = list(peers.run({20: 1.0}, seed=1, turns=1, interpreter=str(empty_interpreter(tmp_path))))
    assert [type(figure) for figure in figures] == [PremiseCount, PremiseCount]
    assert [figure.name for figure in figures] == ["neuralforecast: absent", "darts: absent"]


def empty_interpreter(directory: Path) -> Path:
    """An interpreter without any library."""
    script = directory / "python"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    script.chmod(0o755)
    return script
