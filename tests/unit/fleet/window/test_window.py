from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from forecastd.errors import NeedsHuman
from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX, METRIC_NAMES
from forecastd.fleet.ingest.feed import FleetRows, check_records, parse_feed
from forecastd.fleet.window.ring import MAX_ROWS_PER_TICK
from forecastd.fleet.window.window import FleetWindow, max_ticks_ahead

STEP = 5
START = 340_000_000  # a tick
RETAINED_TICKS = 6
TICKS_AHEAD = 2
SERVERS = ("a", "b", "c", "d")
MAX_SERVERS = 3


def rows(*row_specs: tuple[str, float, dict[str, float]], profile: str = "generic", status: str = "ok") -> FleetRows:
    """Rows of (server, seconds after START, metrics)."""
    values = np.full((len(row_specs), METRIC_COUNT), np.nan)
    for index, (_, _, metrics) in enumerate(row_specs):
        for name, value in metrics.items():
            values[index, METRIC_INDEX[name]] = value
    times = [START * STEP + seconds for _, seconds, _ in row_specs]
    names = [server for server, _, _ in row_specs]
    return FleetRows.from_values(
        names, times, values, step=STEP, profiles=[profile] * len(row_specs), statuses=[status] * len(row_specs)
    )


def window(
    retained_ticks: int = RETAINED_TICKS, max_servers: int = MAX_SERVERS, ticks_ahead: int = TICKS_AHEAD
) -> FleetWindow:
    fleet_window = FleetWindow(STEP, retained_ticks, max_servers, ticks_ahead=ticks_ahead)
    fleet_window.advance(START - 1)
    return fleet_window


def cpu_at(fleet_window: FleetWindow, server: str, tick: int = 0) -> float:
    block = fleet_window.block(START + tick, 1)
    return float(block.values[block.servers.index(server), 0, 0])


class WindowModel(RuleBasedStateMachine):
    """The window compared with dictionaries: rows in any order, ticks that pass, servers that come and go."""

    cells: dict[tuple[str, int], tuple[float, dict[int, float], str]]

    @initialize()
    def create(self) -> None:
        self.window = window()
        self.newest = START - 1
        self.cells = {}
        self.last: dict[str, int] = {}
        self.unsaved: set[tuple[str, int]] = set()

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        row_specs, statuses = [], []
        for _ in range(data.draw(st.integers(1, 6))):
            tick = data.draw(st.integers(self.newest - RETAINED_TICKS - 1, self.newest + TICKS_AHEAD + 1))
            offset = data.draw(st.sampled_from([0.0, 1.5, 3.0, 4.75]))
            metric_values = data.draw(
                st.dictionaries(st.sampled_from(METRIC_NAMES[:3]), st.sampled_from([1.0, 2.0, 3.0]), max_size=3)
            )
            row_specs.append((data.draw(st.sampled_from(SERVERS)), (tick - START) * STEP + offset, metric_values))
            statuses.append(data.draw(st.sampled_from(["ok", "down"])))
        batch = rows(*row_specs)
        batch = FleetRows(**{**vars(batch), "statuses": tuple(statuses)})
        report = self.window.put(batch)
        refused, accepted, duplicates = 0, 0, 0
        accepted_rows = []
        for index, (server, seconds, metric_values) in enumerate(row_specs):
            tick = START + int(seconds // STEP)
            if not self.newest - RETAINED_TICKS < tick <= self.newest + TICKS_AHEAD:
                refused += 1
                continue
            if server not in self.last and len(self.last) >= MAX_SERVERS:
                refused += 1
                continue
            self.last[server] = max(tick, self.last.get(server, tick))
            accepted_rows.append(
                (
                    seconds % STEP,
                    index,
                    server,
                    tick,
                    {METRIC_INDEX[name]: value for name, value in metric_values.items()},
                )
            )
        for offset, index, server, tick, metrics in sorted(accepted_rows, key=lambda item: item[:2]):
            old_offset, old, status = self.cells.get((server, tick), (-1.0, {}, ""))
            if offset > old_offset:
                self.cells[server, tick] = (offset, {**old, **metrics}, statuses[index])
            elif set(metrics) - set(old):
                self.cells[server, tick] = (old_offset, {**metrics, **old}, status)
            else:
                duplicates += offset == old_offset
                accepted += offset != old_offset
                continue
            accepted += 1
            self.unsaved.add((server, tick))
        assert (report.accepted, report.duplicates, report.refused) == (accepted, duplicates, refused)

    @rule(ticks=st.integers(0, RETAINED_TICKS + 4))
    def advance(self, ticks: int) -> None:
        self.newest += ticks
        removed = self.window.advance(self.newest) if ticks else ()
        expected = {server for server, last in self.last.items() if last <= self.newest - RETAINED_TICKS}
        assert set(removed) == expected
        for server in expected:
            del self.last[server]
        self._drop_old_cells()

    @rule(ticks=st.integers(RETAINED_TICKS + 1, 3 * RETAINED_TICKS))
    def rewind(self, ticks: int) -> None:
        self.newest -= ticks
        self.window.advance(self.newest)
        self.last.clear()
        self.cells.clear()
        self.unsaved.clear()

    def _drop_old_cells(self) -> None:
        removed = [key for key in self.cells if key[1] <= self.newest - RETAINED_TICKS or key[0] not in self.last]
        for key in removed:
            del self.cells[key]
            self.unsaved.discard(key)

    @rule()
    def save(self) -> None:
        unsaved_rows = self.window.unsaved()
        keys = set(zip(unsaved_rows.servers, unsaved_rows.ticks.tolist(), strict=True))
        assert len(keys) == len(unsaved_rows)
        assert keys == self.unsaved
        for index, (server, tick) in enumerate(zip(unsaved_rows.servers, unsaved_rows.ticks.tolist(), strict=True)):
            offset, values, status = self.cells[server, tick]
            assert unsaved_rows.times[index] == tick * STEP + offset
            assert unsaved_rows.statuses[index] == status
            assert {
                column: value
                for column, value in enumerate(unsaved_rows.values[index].tolist())
                if not math.isnan(value)
            } == values
        self.unsaved.clear()

    @precondition(lambda self: hasattr(self, "window"))
    @invariant()
    def check_block(self) -> None:
        assert set(self.window.servers()) == set(self.last)
        assert self.window.newest == self.newest
        block = self.window.block(self.newest + TICKS_AHEAD, RETAINED_TICKS + TICKS_AHEAD)
        expected = np.full((len(block.servers), RETAINED_TICKS + TICKS_AHEAD, METRIC_COUNT), np.nan, np.float32)
        for (server, tick), (_, values, _) in self.cells.items():
            for column, value in values.items():
                expected[block.servers.index(server), tick - self.newest + RETAINED_TICKS - 1, column] = value
        assert np.array_equal(block.values, expected, equal_nan=True)
        for server, status in zip(block.servers, block.statuses, strict=True):
            offset, _, expected_status = self.cells[server, self.last[server]]
            assert status == self.window.status(server) == expected_status
            assert self.window.last_seen(server) == self.last[server] * STEP + offset


TestWindowModel = WindowModel.TestCase
TestWindowModel.settings = settings(max_examples=40, stateful_step_count=20)


def test_window_duplicate_row_changes_nothing() -> None:
    fleet_window = window()
    batch = rows(("a", 1, {"cpu_percent": 1.0}), ("b", 1, {"cpu_percent": 2.0}))
    assert fleet_window.put(batch).accepted == 2
    assert len(fleet_window.unsaved()) == 2
    repeated = fleet_window.put(batch)
    assert (repeated.accepted, repeated.duplicates, len(fleet_window.unsaved())) == (0, 2, 0)
    twice = fleet_window.put(rows(("a", 2, {"cpu_percent": 3.0}), ("a", 2, {"cpu_percent": 4.0})))
    assert (twice.accepted, twice.duplicates) == (1, 1)
    assert cpu_at(fleet_window, "a") == 3.0, "of two rows with the same time the first counts"


def test_window_merges_metrics_of_two_agents() -> None:
    fleet_window = window()
    for batch in (
        rows(("a", 2, {"cpu_percent": 1.0})),
        rows(("a", 2, {"swap_percent": 2.0})),
        rows(("a", 1, {"disk_percent": 3.0})),
    ):
        report = fleet_window.put(batch)
        assert (report.accepted, report.duplicates, report.counts) == (1, 0, {})
    values = fleet_window.block(START, 1).values[0, 0]
    assert [values[METRIC_INDEX[name]] for name in ("cpu_percent", "swap_percent", "disk_percent")] == [1.0, 2.0, 3.0]


def test_window_newer_row_wins_in_any_order() -> None:
    early, late = ("a", 0, {"cpu_percent": 1.0}), ("a", 4, {"cpu_percent": 2.0})
    for batches in ([rows(early), rows(late)], [rows(late), rows(early)], [rows(early, late)], [rows(late, early)]):
        fleet_window = window()
        reports = [fleet_window.put(batch) for batch in batches]
        assert cpu_at(fleet_window, "a") == 2.0
        assert sum(report.accepted for report in reports) == 2


def test_window_many_rows_of_tick_newest_wins() -> None:
    fleet_window = window()
    many = [("a", 4.9 * index / 20_000, {"cpu_percent": float(index % 90)}) for index in range(20_000)]
    report = fleet_window.put(rows(*reversed(many)))
    assert cpu_at(fleet_window, "a") == float(19_999 % 90)
    assert report.accepted == 20_000
    assert report.counts == {"superseded": 20_000 - MAX_ROWS_PER_TICK}


def test_window_late_row_goes_to_its_tick() -> None:
    fleet_window = window()
    fleet_window.put(rows(("a", 0, {"cpu_percent": 1.0})))
    fleet_window.advance(START + 3)
    fleet_window.put(rows(("a", 15, {"cpu_percent": 4.0})))
    fleet_window.unsaved()
    fleet_window.put(rows(("a", 6, {"cpu_percent": 2.0})))
    assert fleet_window.unsaved().ticks.tolist() == [START + 1]
    block = fleet_window.block(START + 3, 4)
    assert np.array_equal(block.values[0, :, 0], [1.0, 2.0, np.nan, 4.0], equal_nan=True)


def test_window_early_row_appears_when_due() -> None:
    fleet_window = FleetWindow(STEP, RETAINED_TICKS, MAX_SERVERS, ticks_ahead=max_ticks_ahead(30, STEP))
    fleet_window.advance(START - 1)
    batch = check_records([{"server": "fast", "time": START * STEP + 27, "metrics": {"cpu_percent": 1}}], step=STEP)
    assert fleet_window.ingest(batch, now=START * STEP, max_skew=30).accepted == 1
    assert np.isnan(cpu_at(fleet_window, "fast"))
    fleet_window.advance(START + 5)
    assert cpu_at(fleet_window, "fast", 5) == 1.0


@pytest.mark.parametrize("skew", [0, 1, 4.9, 5, 7, 30, 61])
def test_window_accepts_every_time_within_skew(skew: float) -> None:
    for second in np.arange(0, STEP, 0.5):
        fleet_window = FleetWindow(STEP, RETAINED_TICKS, MAX_SERVERS, ticks_ahead=max_ticks_ahead(skew, STEP))
        fleet_window.advance(START - 1)
        batch = check_records(
            [{"server": "a", "time": START * STEP + second + skew, "metrics": {"cpu_percent": 1}}], step=STEP
        )
        assert fleet_window.ingest(batch, now=START * STEP + second, max_skew=skew).accepted == 1


def test_window_server_count_is_capped() -> None:
    fleet_window = window(max_servers=100)
    existing = rows(*[(f"s{index}", 0, {"cpu_percent": 1.0}) for index in range(100)])
    assert fleet_window.put(existing).accepted == 100
    for flood in range(4):
        names = [f"made-up-{flood}-{index}" for index in range(25_000)]
        report = fleet_window.put(
            FleetRows.from_values(names, [START * STEP] * 25_000, np.ones((25_000, METRIC_COUNT)), step=STEP)
        )
        assert report.accepted == 0
        assert report.counts == {"too_many_servers": 25_000}
        assert len(report.reasons) == 100
        assert "FLEET_MAX_SERVERS" in report.reasons[0].reason
    assert len(fleet_window) == 100
    assert fleet_window._ring.values.shape[0] == 100
    assert fleet_window.put(rows(("s7", 1, {"cpu_percent": 2.0}))).accepted == 1


def test_window_removed_server_frees_slot() -> None:
    fleet_window = window(max_servers=2)
    fleet_window.put(rows(("a", 0, {"cpu_percent": 1.0}), ("b", 0, {"swap_percent": 2.0})))
    assert fleet_window.put(rows(("c", 0, {"cpu_percent": 3.0}))).counts == {"too_many_servers": 1}
    fleet_window.put(rows(("b", 5, {"swap_percent": 2.0})))
    assert fleet_window.advance(START + RETAINED_TICKS) == ("a",)
    assert fleet_window.servers() == ("b",)
    assert (fleet_window.profile("a"), fleet_window.status("a"), fleet_window.last_seen("a")) == (None, None, None)
    assert fleet_window.put(rows(("c", RETAINED_TICKS * STEP, {"disk_percent": 3.0}))).accepted == 1
    block = fleet_window.block(START + RETAINED_TICKS, RETAINED_TICKS)
    (values,) = (block.values[index] for index, server in enumerate(block.servers) if server == "c")
    assert np.flatnonzero(~np.isnan(values)).tolist() == [
        (RETAINED_TICKS - 1) * METRIC_COUNT + METRIC_INDEX["disk_percent"]
    ]


def test_window_profile_and_status_follow_newest_row() -> None:
    fleet_window = window()
    fleet_window.put(rows(("a", 5, {"cpu_percent": 1.0}), profile="web", status="degraded"))
    fleet_window.put(rows(("a", 0, {"cpu_percent": 1.0}), profile="db", status="ok"))
    assert (fleet_window.profile("a"), fleet_window.status("a")) == ("web", "degraded")
    fleet_window.put(rows(("a", 6, {"cpu_percent": 1.0}), profile="db", status="ok"))
    assert (fleet_window.profile("a"), fleet_window.status("a")) == ("db", "ok")
    fleet_window.put(rows(("a", 5.5, {"swap_percent": 1.0}), profile="late", status="down"))
    assert (fleet_window.profile("a"), fleet_window.status("a")) == ("db", "ok")


def test_window_clock_set_back_waits_or_resets() -> None:
    fleet_window = window()
    fleet_window.put(rows(("a", 0, {"cpu_percent": 1.0})))
    fleet_window.advance(START)
    assert fleet_window.advance(START - RETAINED_TICKS) == ()
    assert fleet_window.newest == START
    fleet_window.advance(START - RETAINED_TICKS - 1)
    assert (fleet_window.newest, len(fleet_window)) == (START - RETAINED_TICKS - 1, 0)
    assert fleet_window.put(rows(("a", -RETAINED_TICKS * STEP, {"cpu_percent": 2.0}))).accepted == 1


@pytest.mark.parametrize(
    ("tick", "length"),
    [(TICKS_AHEAD, 1), (0, RETAINED_TICKS + 2), (-RETAINED_TICKS - 1, 1), (0, 0), (-3, RETAINED_TICKS)],
)
def test_window_block_outside_window_raises(tick: int, length: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        window().block(START + tick, length)


def test_window_first_row_opens_window() -> None:
    fleet_window = FleetWindow(STEP, RETAINED_TICKS, MAX_SERVERS)
    assert fleet_window.newest == -1
    report = fleet_window.put(rows(("a", 0, {"cpu_percent": 1.0}), ("a", 20, {"cpu_percent": 2.0})))
    assert report.accepted == 2
    assert fleet_window.newest == START + 3
    assert cpu_at(fleet_window, "a", 0) == 1.0


@pytest.mark.parametrize("options", [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-5, 288, 10)])
def test_window_zero_size_is_refused(options: tuple[int, int, int]) -> None:
    with pytest.raises(NeedsHuman):
        FleetWindow(*options)


def test_window_ingest_response_is_complete() -> None:
    fleet_window = window(max_servers=2)
    now = START * STEP + 1.0
    valid = {"time": now, "metrics": {"cpu_percent": 5, "else": 1}}
    records: list[Any] = [
        {"server": "a", **valid}, {"server": "b", **valid}, {"server": "c", **valid}, {"server": "a", **valid},
        {"server": "a", **valid, "time": now + 60}, {"server": "a", **valid, "time": now - 60}, {"server": "a", "time": 1}, 7,
    ]  # fmt: skip
    body = json.dumps({"version": 1, "records": records}).encode()
    response = fleet_window.ingest(parse_feed(body, None, step=STEP), now=now, max_skew=5.0)
    assert (response.accepted, response.refused, response.duplicates) == (2, 5, 1)
    assert response.counts == {
        "no_metrics": 1, "not_a_record": 1, "future": 1, "old": 1, "too_many_servers": 1, "unknown_metric": 6,
    }  # fmt: skip
    assert {(reason.row, reason.server, reason.code) for reason in response.reasons} == {
        (6, "a", "no_metrics"), (7, None, "not_a_record"), (4, "a", "future"), (5, "a", "old"), (2, "c", "too_many_servers"),
    }  # fmt: skip


def test_window_detects_ratios_by_previous_rows() -> None:
    fleet_window = window()
    percents = {"cpu_percent": 40.0, "disk_percent": 70.0, "swap_percent": 3.0}
    for second, factor, accepted in ((0.0, 1.0, 1), (1.0, 0.01, 0), (2.0, 1.01, 1)):
        metrics = {name: value * factor for name, value in percents.items()}
        metric_values = check_records([{"server": "a", "time": START * STEP + second, "metrics": metrics}], step=STEP)
        assert fleet_window.ingest(metric_values, now=START * STEP + 4, max_skew=5.0).accepted == accepted
