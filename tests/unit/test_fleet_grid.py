from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import INDEX, NAMES, M
from forecastd.fleet.grid import FleetWindow, ticks_ahead
from forecastd.fleet.intake import Rows, check, parse_feed
from forecastd.fleet.ring import MOST_A_TICK

STEP = 5
START = 340_000_000  # a tick
KEEP = 6
AHEAD = 2
SERVERS = ("a", "b", "c", "d")
MOST = 3


def rows(*given: tuple[str, float, dict[str, float]], profile: str = "generic", status: str = "ok") -> Rows:
    """Rows of (server, seconds after START, metrics)."""
    values = np.full((len(given), M), np.nan)
    for at, (_, _, metrics) in enumerate(given):
        for name, value in metrics.items():
            values[at, INDEX[name]] = value
    times = [START * STEP + seconds for _, seconds, _ in given]
    names = [server for server, _, _ in given]
    return Rows.of(names, times, values, step=STEP, profiles=[profile] * len(given), statuses=[status] * len(given))


def window(keep: int = KEEP, most: int = MOST, ahead: int = AHEAD) -> FleetWindow:
    made = FleetWindow(STEP, keep, most, ahead=ahead)
    made.advance(START - 1)
    return made


def cpu(found: FleetWindow, server: str, tick: int = 0) -> float:
    block = found.block(START + tick, 1)
    return float(block.values[block.servers.index(server), 0, 0])


class Model(RuleBasedStateMachine):
    """The window against dictionaries: rows in any order, ticks that pass, servers that come and leave."""

    cells: dict[tuple[str, int], tuple[float, dict[int, float], str]]

    @initialize()
    def begin(self) -> None:
        self.window = window()
        self.newest = START - 1
        self.cells = {}
        self.last: dict[str, int] = {}
        self.dirty: set[tuple[str, int]] = set()

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        given, statuses = [], []
        for _ in range(data.draw(st.integers(1, 6))):
            tick = data.draw(st.integers(self.newest - KEEP - 1, self.newest + AHEAD + 1))
            offset = data.draw(st.sampled_from([0.0, 1.5, 3.0, 4.75]))
            sent = data.draw(st.dictionaries(st.sampled_from(NAMES[:3]), st.sampled_from([1.0, 2.0, 3.0]), max_size=3))
            given.append((data.draw(st.sampled_from(SERVERS)), (tick - START) * STEP + offset, sent))
            statuses.append(data.draw(st.sampled_from(["ok", "down"])))
        batch = rows(*given)
        batch = Rows(**{**vars(batch), "statuses": tuple(statuses)})
        report = self.window.put(batch)
        refused, accepted, duplicates, changed = 0, 0, 0, set()
        fit = []
        for at, (server, seconds, sent) in enumerate(given):
            tick = START + int(seconds // STEP)
            if not self.newest - KEEP < tick <= self.newest + AHEAD:
                refused += 1
                continue
            if server not in self.last and len(self.last) >= MOST:
                refused += 1
                continue
            self.last[server] = max(tick, self.last.get(server, tick))
            fit.append((seconds % STEP, at, server, tick, {INDEX[name]: value for name, value in sent.items()}))
        for offset, at, server, tick, metrics in sorted(fit, key=lambda one: one[:2]):
            old_offset, old, status = self.cells.get((server, tick), (-1.0, {}, ""))
            if offset > old_offset:
                self.cells[server, tick] = (offset, {**old, **metrics}, statuses[at])
            elif set(metrics) - set(old):
                self.cells[server, tick] = (old_offset, {**metrics, **old}, status)
            else:
                duplicates += offset == old_offset
                accepted += offset != old_offset
                continue
            accepted += 1
            changed.add(tick)
            self.dirty.add((server, tick))
        assert (report.accepted, report.duplicates, report.refusals.total) == (accepted, duplicates, refused)
        assert report.changed == tuple(sorted(changed))

    @rule(ticks=st.integers(0, KEEP + 4))
    def advance(self, ticks: int) -> None:
        self.newest += ticks
        gone = self.window.advance(self.newest) if ticks else ()
        expected = {server for server, last in self.last.items() if last <= self.newest - KEEP}
        assert set(gone) == expected
        for server in expected:
            del self.last[server]
        self._forget()

    @rule(ticks=st.integers(KEEP + 1, 3 * KEEP))
    def go_far_back(self, ticks: int) -> None:
        self.newest -= ticks
        self.window.advance(self.newest)
        self.last.clear()
        self.cells.clear()
        self.dirty.clear()

    def _forget(self) -> None:
        gone = [key for key in self.cells if key[1] <= self.newest - KEEP or key[0] not in self.last]
        for key in gone:
            del self.cells[key]
            self.dirty.discard(key)

    @rule()
    def save(self) -> None:
        saved = self.window.unsaved()
        found = set(zip(saved.servers, saved.ticks.tolist(), strict=True))
        assert len(found) == len(saved)
        assert found == self.dirty
        for at, (server, tick) in enumerate(zip(saved.servers, saved.ticks.tolist(), strict=True)):
            offset, values, status = self.cells[server, tick]
            assert saved.times[at] == tick * STEP + offset
            assert saved.statuses[at] == status
            assert {place: value for place, value in enumerate(saved.values[at].tolist()) if value == value} == values  # noqa: PLR0124
        self.dirty.clear()

    @precondition(lambda self: hasattr(self, "window"))
    @invariant()
    def the_block_holds_what_came(self) -> None:
        assert set(self.window.servers()) == set(self.last)
        assert self.window.newest == self.newest
        block = self.window.block(self.newest + AHEAD, KEEP + AHEAD)
        expected = np.full((len(block.servers), KEEP + AHEAD, M), np.nan, np.float32)
        for (server, tick), (_, values, _) in self.cells.items():
            for place, value in values.items():
                expected[block.servers.index(server), tick - self.newest + KEEP - 1, place] = value
        assert np.array_equal(block.values, expected, equal_nan=True)
        for server, status in zip(block.servers, block.statuses, strict=True):
            offset, _, expected_status = self.cells[server, self.last[server]]
            assert status == self.window.status(server) == expected_status
            assert self.window.last_seen(server) == self.last[server] * STEP + offset


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=40, stateful_step_count=20)


def test_a_row_sent_again_is_counted_and_changes_nothing() -> None:
    found = window()
    batch = rows(("a", 1, {"cpu_percent": 1.0}), ("b", 1, {"cpu_percent": 2.0}))
    assert found.put(batch).accepted == 2
    again = found.put(batch)
    assert (again.accepted, again.duplicates, again.changed) == (0, 2, ())
    twice = found.put(rows(("a", 2, {"cpu_percent": 3.0}), ("a", 2, {"cpu_percent": 4.0})))
    assert (twice.accepted, twice.duplicates) == (1, 1)
    assert cpu(found, "a") == 3.0, "of two rows of the same time the first counts"


def test_two_agents_may_report_different_metrics_of_one_server() -> None:
    found = window()
    for batch in (
        rows(("a", 2, {"cpu_percent": 1.0})),
        rows(("a", 2, {"swap_percent": 2.0})),
        rows(("a", 1, {"disk_percent": 3.0})),
    ):
        report = found.put(batch)
        assert (report.accepted, report.duplicates, report.superseded) == (1, 0, 0)
    values = found.block(START, 1).values[0, 0]
    assert [values[INDEX[name]] for name in ("cpu_percent", "swap_percent", "disk_percent")] == [1.0, 2.0, 3.0]


def test_within_a_tick_the_newer_row_wins_whatever_order_they_come_in() -> None:
    early, late = ("a", 0, {"cpu_percent": 1.0}), ("a", 4, {"cpu_percent": 2.0})
    for batches in ([rows(early), rows(late)], [rows(late), rows(early)], [rows(early, late)], [rows(late, early)]):
        found = window()
        reports = [found.put(batch) for batch in batches]
        assert cpu(found, "a") == 2.0
        assert sum(report.accepted for report in reports) == 2


def test_of_very_many_rows_of_one_tick_the_newest_wins() -> None:
    found = window()
    many = [("a", 4.9 * at / 20_000, {"cpu_percent": float(at % 90)}) for at in range(20_000)]
    report = found.put(rows(*reversed(many)))
    assert cpu(found, "a") == float(19_999 % 90)
    assert report.accepted == 20_000
    assert report.superseded == 20_000 - MOST_A_TICK


def test_a_late_row_goes_to_its_own_tick_and_is_saved_as_such() -> None:
    found = window()
    found.put(rows(("a", 0, {"cpu_percent": 1.0})))
    found.advance(START + 3)
    found.put(rows(("a", 15, {"cpu_percent": 4.0})))
    found.unsaved()
    report = found.put(rows(("a", 6, {"cpu_percent": 2.0})))
    assert report.changed == (START + 1,)
    assert found.unsaved().ticks.tolist() == [START + 1]
    block = found.block(START + 3, 4)
    assert np.array_equal(block.values[0, :, 0], [1.0, 2.0, np.nan, 4.0], equal_nan=True)


def test_a_server_that_is_a_little_ahead_is_shown_when_its_time_has_come() -> None:
    found = FleetWindow(STEP, KEEP, MOST, ahead=ticks_ahead(30, STEP))
    found.advance(START - 1)
    sent = check([{"server": "fast", "time": START * STEP + 27, "metrics": {"cpu_percent": 1}}], step=STEP)
    assert found.take(sent, now=START * STEP, max_skew=30).accepted == 1
    assert np.isnan(cpu(found, "fast"))
    found.advance(START + 5)
    assert cpu(found, "fast", 5) == 1.0


@pytest.mark.parametrize("skew", [0, 1, 4.9, 5, 7, 30, 61])
def test_every_time_within_the_skew_has_a_place(skew: float) -> None:
    for second in np.arange(0, STEP, 0.5):
        found = FleetWindow(STEP, KEEP, MOST, ahead=ticks_ahead(skew, STEP))
        found.advance(START - 1)
        sent = check([{"server": "a", "time": START * STEP + second + skew, "metrics": {"cpu_percent": 1}}], step=STEP)
        assert found.take(sent, now=START * STEP + second, max_skew=skew).accepted == 1


def test_a_million_made_up_names_cost_no_more_than_the_cap() -> None:
    found = window(most=100)
    known = rows(*[(f"s{at}", 0, {"cpu_percent": 1.0}) for at in range(100)])
    assert found.put(known).accepted == 100
    for flood in range(4):
        names = [f"made-up-{flood}-{at}" for at in range(25_000)]
        report = found.put(Rows.of(names, [START * STEP] * 25_000, np.ones((25_000, M)), step=STEP))
        assert report.accepted == 0
        assert report.refusals.counts == {"too_many_servers": 25_000}
        assert len(report.refusals.first) == 100
        assert "FLEET_MAX_SERVERS" in report.refusals.first[0].reason
    assert len(found) == 100
    assert found._ring.values.shape[0] == 100
    assert found.put(rows(("s7", 1, {"cpu_percent": 2.0}))).accepted == 1


def test_a_server_that_leaves_frees_its_place_and_leaves_nothing_behind() -> None:
    found = window(most=2)
    found.put(rows(("a", 0, {"cpu_percent": 1.0}), ("b", 0, {"swap_percent": 2.0})))
    assert found.put(rows(("c", 0, {"cpu_percent": 3.0}))).refusals.counts == {"too_many_servers": 1}
    found.put(rows(("b", 5, {"swap_percent": 2.0})))
    assert found.advance(START + KEEP) == ("a",)
    assert found.servers() == ("b",)
    assert (found.profile("a"), found.status("a"), found.last_seen("a")) == (None, None, None)
    assert found.put(rows(("c", KEEP * STEP, {"disk_percent": 3.0}))).accepted == 1
    block = found.block(START + KEEP, KEEP)
    (values,) = (block.values[at] for at, server in enumerate(block.servers) if server == "c")
    assert np.flatnonzero(~np.isnan(values)).tolist() == [(KEEP - 1) * M + INDEX["disk_percent"]]


def test_a_profile_and_a_status_are_those_of_the_newest_row() -> None:
    found = window()
    found.put(rows(("a", 5, {"cpu_percent": 1.0}), profile="web", status="degraded"))
    found.put(rows(("a", 0, {"cpu_percent": 1.0}), profile="db", status="ok"))
    assert (found.profile("a"), found.status("a")) == ("web", "degraded")
    found.put(rows(("a", 6, {"cpu_percent": 1.0}), profile="db", status="ok"))
    assert (found.profile("a"), found.status("a")) == ("db", "ok")
    found.put(rows(("a", 5.5, {"swap_percent": 1.0}), profile="late", status="down"))
    assert (found.profile("a"), found.status("a")) == ("db", "ok")


def test_a_set_back_clock_is_waited_for_unless_nothing_of_the_window_is_left() -> None:
    found = window()
    found.put(rows(("a", 0, {"cpu_percent": 1.0})))
    found.advance(START)
    assert found.advance(START - KEEP) == ()
    assert found.newest == START
    found.advance(START - KEEP - 1)
    assert (found.newest, len(found)) == (START - KEEP - 1, 0)
    assert found.put(rows(("a", -KEEP * STEP, {"cpu_percent": 2.0}))).accepted == 1


@pytest.mark.parametrize(("tick", "length"), [(AHEAD, 1), (0, KEEP + 2), (-KEEP - 1, 1), (0, 0), (-3, KEEP)])
def test_ticks_that_the_window_does_not_hold_are_not_made_up(tick: int, length: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        window().block(START + tick, length)


def test_the_newest_row_opens_a_window_that_nobody_has_advanced() -> None:
    found = FleetWindow(STEP, KEEP, MOST)
    assert found.newest == -1
    report = found.put(rows(("a", 0, {"cpu_percent": 1.0}), ("a", 20, {"cpu_percent": 2.0})))
    assert report.accepted == 2
    assert found.newest == START + 3
    assert cpu(found, "a", 0) == 1.0


@pytest.mark.parametrize("given", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-5, 288, 10)])
def test_a_window_of_nothing_is_refused(given: tuple[int, int, int]) -> None:
    with pytest.raises(NeedsHuman):
        FleetWindow(*given)


def test_a_feed_is_answered_whole() -> None:
    found = window(most=2)
    now = START * STEP + 1.0
    good = {"time": now, "metrics": {"cpu_percent": 5, "else": 1}}
    records: list[Any] = [
        {"server": "a", **good}, {"server": "b", **good}, {"server": "c", **good}, {"server": "a", **good},
        {"server": "a", **good, "time": now + 60}, {"server": "a", **good, "time": now - 60}, {"server": "a", "time": 1}, 7,
    ]  # fmt: skip
    body = json.dumps({"version": 1, "records": records}).encode()
    answer = found.take(parse_feed(body, None, step=STEP), now=now, max_skew=5.0)
    assert (answer.accepted, answer.refused, answer.duplicates) == (2, 5, 1)
    assert answer.counts == {
        "no_metrics": 1, "not_a_record": 1, "future": 1, "old": 1, "too_many_servers": 1, "unknown_metric": 6,
    }  # fmt: skip
    assert {(one.row, one.server, one.code) for one in answer.reasons} == {
        (6, "a", "no_metrics"), (7, None, "not_a_record"), (4, "a", "future"), (5, "a", "old"), (2, "c", "too_many_servers"),
    }  # fmt: skip


def test_percents_sent_as_ratios_are_found_by_the_rows_before() -> None:
    found = window()
    percents = {"cpu_percent": 40.0, "disk_percent": 70.0, "swap_percent": 3.0}
    for second, factor, accepted in ((0.0, 1.0, 1), (1.0, 0.01, 0), (2.0, 1.01, 1)):
        metrics = {name: value * factor for name, value in percents.items()}
        sent = check([{"server": "a", "time": START * STEP + second, "metrics": metrics}], step=STEP)
        assert found.take(sent, now=START * STEP + 4, max_skew=5.0).accepted == accepted


def test_threads_may_put_and_look_at_once() -> None:
    found = FleetWindow(STEP, 50, 400)
    found.advance(START)
    failures: list[BaseException] = []

    def work(part: int) -> None:
        try:
            for tick in range(1, 30):
                names = [f"s{part}-{at}" for at in range(40)]
                found.put(Rows.of(names, [(START + tick) * STEP + part] * 40, np.full((40, M), part + 1.0), step=STEP))
                found.block(found.newest, 10)
                found.unsaved()
                found.advance(START + tick - 1)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test tells it
            failures.append(error)

    threads = [threading.Thread(target=work, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures
    assert len(found) == 160
    block = found.block(START + 20, 1)
    for server, values in zip(block.servers, block.values[:, 0], strict=True):
        assert set(values.tolist()) == {float(server[1]) + 1.0}
