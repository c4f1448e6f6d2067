"""Alerts of the fleet: one for a condition however its value wavers, told in time, and a restart changes nothing."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.fleet.conditions.alert import AlertEvent
from forecastd.fleet.conditions.alert_tracker import (
    CLEAR_TICKS,
    FORGET_TICKS,
    MAX_LOGGED_EVENTS,
    MAX_RECENT_EVENTS,
    OPEN_TICKS,
    SERVER_IN_MAINTENANCE,
    SERVER_REMOVED,
    AlertTracker,
)
from forecastd.fleet.contract import METRIC_COUNT, METRIC_INDEX
from forecastd.fleet.risk.assessment import assess_risk
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS, CurrentValues
from forecastd.fleet.risk.thresholds import load_thresholds

LIMITS = load_thresholds()
MEMORY = METRIC_INDEX["memory_percent"]  # generic: warning from 85, critical from 95
CLEAR = 85 * 0.95  # where a warning is on its way out
H, STEP, START = 96, 5, 1000
NAN = float("nan")
LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class LinearForecast:
    tick: int
    servers: tuple[str, ...]
    quantiles: np.ndarray[Any, np.dtype[np.float32]]
    step: int = STEP
    levels: tuple[float, ...] = LEVELS


@dataclass(frozen=True)
class Reading:
    """One server at one tick: its memory now, `age` ticks old, and where its p50 is at the horizon's end."""

    memory: float = 50.0
    ahead: float = 50.0
    status: str = "ok"
    silent: int = 0
    age: int = 0


class FleetScript:
    """A book, and a clock of ticks."""

    def __init__(self) -> None:
        self.book, self.tick, self.events = AlertTracker(), START, list[AlertEvent]()

    def observe(self, *servers: Reading, repeat: bool = False) -> list[AlertEvent]:
        """What the book makes of a tick in which these servers, `a`, `b` and so on, are so."""
        self.tick += not repeat
        count, names = len(servers), tuple("abcdefgh"[: len(servers)])
        current = np.full((count, METRIC_COUNT), NAN)
        current[:, MEMORY] = [one.memory for one in servers]
        age = np.array([[one.age] * METRIC_COUNT for one in servers], dtype=np.int64).reshape(count, METRIC_COUNT)
        silent = np.array([one.silent for one in servers], dtype=np.int64)
        seen = CurrentValues(
            self.tick, STEP, names, ("generic",) * count, tuple(one.status for one in servers), current, age, silent
        )
        quantiles = np.full((count, H, METRIC_COUNT, 3), NAN, dtype=np.float32)
        for row, one in enumerate(servers):
            quantiles[row, :, MEMORY] = np.linspace(one.memory, one.ahead, H)[:, None]
        found = list(self.book.update(assess_risk(seen, LinearForecast(self.tick, names, quantiles), LIMITS)))
        self.events += found
        return found

    def restart(self) -> None:
        """Another process takes over."""
        self.book = AlertTracker.from_state(json.loads(json.dumps(self.book.to_state(), allow_nan=False)))

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.alert.severity) for event in self.events]


@pytest.fixture
def fleet() -> FleetScript:
    return FleetScript()


# Memory at each tick; what is told of it, by the number of the tick (from 1).
COURSES = {
    "nothing": ([84.9] * 30, []),
    "two values are no alert": ([90, 90, 50, 90, 90, 50], []),
    "three are": ([90] * OPEN_TICKS, [(3, "opened", "warning")]),
    "exactly at the threshold": ([85] * 3, [(3, "opened", "warning")]),
    "at once critical": ([99] * 3, [(3, "opened", "critical")]),
    "escalates": ([90] * 5 + [96] * 3, [(3, "opened", "warning"), (8, "escalated", "critical")]),
    "escalates after three in a row only": ([90] * 5 + [96, 96, 90, 96, 96], [(3, "opened", "warning")]),
    "clears": ([90] * 3 + [50] * CLEAR_TICKS, [(3, "opened", "warning"), (15, "cleared", "warning")]),
    "does not clear within the margin": ([90] * 3 + [CLEAR] * 50, [(3, "opened", "warning")]),
    "one value within the margin starts it anew": (
        [90] * 3 + [50] * 11 + [82] + [50] * 11, [(3, "opened", "warning")],
    ),
    "eases": ([99] * 3 + [90] * 12, [(3, "opened", "critical"), (15, "eased", "warning")]),
    "from critical to nothing": ([99] * 3 + [50] * 12, [(3, "opened", "critical"), (15, "cleared", "critical")]),
    "a wavering around critical": ([99] * 3 + [94, 96] * 30, [(3, "opened", "critical")]),
    "gaps say nothing": (
        [90, NAN, 90, NAN, NAN, 90] + [50, NAN] * 11 + [NAN] * 5 + [50],
        [(6, "opened", "warning"), (34, "cleared", "warning")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("course", "expected"), COURSES.values(), ids=COURSES.keys())
def test_alert_opens_escalates_eases_and_clears(
    fleet: FleetScript, course: list[float], expected: list[tuple[int, str, str]]
) -> None:
    for memory in course:
        fleet.observe(Reading(memory, memory))
    assert [(int(one.at / STEP) - START, one.kind, one.alert.severity) for one in fleet.events] == expected


nows = st.builds(
    Reading,
    memory=st.one_of(st.floats(1, 100), st.sampled_from([50.0, CLEAR, 84.9, 85.0, 94.0, 95.0, 99.0, NAN])),
    ahead=st.one_of(st.floats(1, 100), st.sampled_from([50.0, 90.0, 99.0, NAN])),
    status=st.sampled_from(["ok"] * 5 + ["down", "degraded", "maintenance"]),
    silent=st.sampled_from([0] * 5 + [1, 7, SILENT_WARNING_TICKS, SILENT_CRITICAL_TICKS]),
    age=st.sampled_from([0] * 5 + [1, 3]),
)


@st.composite
def reading_sequences(draw: st.DrawFn) -> list[Reading]:
    """A server's ticks, where most things last a while."""
    runs = draw(st.lists(st.tuples(nows, st.integers(1, 15)), max_size=6))
    return [now for now, length in runs for _ in range(length)]


few = settings(max_examples=50)  # each is a hundred ticks of a whole assessment


@few
@given(reading_sequences(), st.lists(st.integers(0, 120), max_size=4), st.booleans())
def test_alerts_restart_changes_nothing(life: list[Reading], restarts: list[int], twice: bool) -> None:
    straight, broken = FleetScript(), FleetScript()
    for place, now in enumerate(life):
        straight.observe(now)
        broken.observe(now)
        if place in restarts:
            kept = broken.book
            broken.restart()
            assert (broken.book.open_alerts, broken.book.recent_events) == (kept.open_alerts, kept.recent_events)
            broken.book._started = kept._started  # silence before it listened is told by a test of its own
            if twice:
                assert broken.observe(now, repeat=True) == []  # the tick in which it ended comes again
    assert broken.events == straight.events
    assert broken.book.open_alerts == straight.book.open_alerts


@few
@given(reading_sequences())
def test_alert_events_are_a_valid_sequence(life: list[Reading]) -> None:
    """An alert opens once, changes its severity as it says, and ends once; what is open is what was told and is not over."""
    fleet, rank = FleetScript(), {"early": 1, "warning": 2, "critical": 3}
    stories: dict[str, list[AlertEvent]] = {}
    for now in life:
        for event in fleet.observe(now):
            stories.setdefault(event.alert.id, []).append(event)
    for story in stories.values():
        assert [event.kind for event in story].count("opened") == 1
        assert story[0].kind == "opened"
        assert all(event.kind != "cleared" for event in story[:-1])
        for earlier, later in pairwise(story):
            change = rank[later.alert.severity] - rank[earlier.alert.severity]
            assert {"escalated": change > 0, "eased": change < 0, "cleared": change == 0}[later.kind]
    alive = {name: story[-1].alert.severity for name, story in stories.items() if story[-1].kind != "cleared"}
    assert {alert.id: alert.severity for alert in fleet.book.open_alerts} == alive
    assert len({(alert.server, alert.condition) for alert in fleet.book.open_alerts}) == len(fleet.book.open_alerts)
    assert fleet.book.counts() == {"open": len(alive), "critical": list(alive.values()).count("critical")}


wavering = st.lists(st.floats(CLEAR, 89.9), min_size=1, max_size=100)


@few
@given(wavering, st.integers(0, 100))
def test_value_around_threshold_opens_at_most_one_alert(values: list[float], restart: int) -> None:
    fleet = FleetScript()
    for place, value in enumerate(values):
        fleet.observe(Reading(value, 50))
        if place == restart:
            fleet.restart()
    assert fleet.told in ([], [("opened", "warning")])


@few
@given(
    st.lists(st.tuples(st.integers(1, OPEN_TICKS + 2), st.integers(1, CLEAR_TICKS - 1)), max_size=8), st.integers(0, 90)
)
def test_value_with_short_drops_opens_at_most_one_alert(rhythm: list[tuple[int, int]], restart: int) -> None:
    fleet = FleetScript()
    for place, value in enumerate(value for high, low in rhythm for value in [90.0] * high + [10.0] * low):
        fleet.observe(Reading(value, 10))
        if place == restart:
            fleet.restart()
    assert fleet.told in ([], [("opened", "warning")])


def test_forecast_above_threshold_opens_early_alert_with_minutes(fleet: FleetScript) -> None:
    for _ in range(3):
        events = fleet.observe(Reading(60, 90))
    (event,) = events
    alert = event.alert
    assert (event.kind, alert.severity, alert.condition) == ("opened", "early", "memory_percent")
    assert alert.minutes_ahead == pytest.approx(
        81 * STEP / 60
    )  # the 81st of 96 steps from 60 to 90 is the first above 85
    assert event.text == "opened, early: a: memory at 60 %, likely above 85 % in 6.8 min"
    for _ in range(3):
        events = fleet.observe(Reading(86, 99))
    assert events[0].text == "escalated, warning: a: memory at 86 %, warning from 85 %, likely above 95 % in 5.6 min"
    for _ in range(3):
        events = fleet.observe(Reading(97, 99))
    assert events[0].text == "escalated, critical: a: memory at 97 %, critical from 95 %"
    assert events[0].alert.minutes_ahead is None
    for _ in range(CLEAR_TICKS):
        events = fleet.observe(Reading(70, 70))
    assert (
        events[0].text
        == "cleared: a: memory at 70 %, was critical from 95 %; memory and its forecast stayed below 80.8 %"
    )
    assert {event.alert.id for event in fleet.events} == {f"a/memory_percent/{(START + 3) * STEP}"}
    assert fleet.events[-1].alert.opened_at == (START + 3) * STEP
    assert fleet.events[-1].alert.since == (START + 9) * STEP


def test_early_alert_clears_when_forecast_falls(fleet: FleetScript) -> None:
    for ahead in [90] * 3 + [83] * 20 + [70] * CLEAR_TICKS:
        fleet.observe(Reading(60, ahead))
    assert fleet.told == [("opened", "early"), ("cleared", "early")]
    assert fleet.events[1].at == (START + 23 + CLEAR_TICKS) * STEP


def test_repeated_value_counts_once(fleet: FleetScript) -> None:
    fleet.observe(Reading(90))
    for age in range(1, 4):
        fleet.observe(Reading(90, age=age))
    assert fleet.told == []
    fleet.observe(Reading(90))
    fleet.observe(Reading(90))
    assert fleet.told == [("opened", "warning")]


def test_server_down_or_silent_opens_alert(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(status="down"), Reading(status="degraded"), Reading())
    assert [event.alert.message for event in fleet.events] == ["a: says that it is down", "b: says that it is degraded"]
    assert fleet.told == [("opened", "critical"), ("opened", "warning")]
    fleet.events.clear()
    for silent in range(1, SILENT_CRITICAL_TICKS + 1):
        fleet.observe(Reading(status="down", silent=silent), Reading(), Reading(silent=silent))
    of_c = [event for event in fleet.events if event.alert.server == "c"]
    assert [(event.kind, event.alert.severity) for event in of_c] == [("opened", "warning"), ("escalated", "critical")]
    assert [event.alert.message for event in of_c] == ["c: has sent nothing for 1 min", "c: has sent nothing for 5 min"]
    fleet.events.clear()
    for _ in range(CLEAR_TICKS):
        fleet.observe(Reading(), Reading(), Reading())
    assert {(event.alert.server, event.reason) for event in fleet.events if event.kind == "cleared"} >= {
        ("a", "it says that it is well"), ("c", "it reports again"),
    }  # fmt: skip


def test_slow_agent_opens_one_silence_alert(fleet: FleetScript) -> None:
    for tick in range(200):
        fleet.observe(Reading(silent=tick % (SILENT_WARNING_TICKS + 1)))
    assert fleet.told == [("opened", "warning")]


def test_silence_before_start_opens_no_alert(fleet: FleetScript) -> None:
    for _ in range(SILENT_WARNING_TICKS):
        fleet.observe(Reading(silent=500))
    assert fleet.told == []
    fleet.observe(Reading(silent=500))
    assert fleet.told == [("opened", "warning")]
    fleet.restart()
    for _ in range(SILENT_CRITICAL_TICKS - SILENT_WARNING_TICKS):
        fleet.observe(Reading(silent=500))
    assert len(fleet.told) == 1  # neither cleared nor told again


def test_removed_server_clears_its_alerts_with_reason(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(), Reading(90, 90))
    events = fleet.observe(Reading())
    assert [(event.kind, event.alert.server, event.reason) for event in events] == [("cleared", "b", SERVER_REMOVED)]
    assert fleet.book.open_alerts == ()
    for _ in range(3):
        fleet.observe(Reading(), Reading(90, 90))
    assert len({event.alert.id for event in fleet.events}) == 2


def test_maintenance_clears_alerts_and_opens_none(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(99, 99))
    events = fleet.observe(Reading(99, 99, status="maintenance"))
    assert [(event.kind, event.reason) for event in events] == [("cleared", SERVER_IN_MAINTENANCE)]
    for silent in range(SILENT_CRITICAL_TICKS * 2):
        assert fleet.observe(Reading(99, 99, status="maintenance", silent=silent)) == []


def test_clock_set_back_still_updates_alerts(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(90, 90))
    fleet.tick -= 700
    for _ in range(CLEAR_TICKS):
        fleet.observe(Reading(50, 50))
    assert fleet.told == [("opened", "warning"), ("cleared", "warning")]


def test_values_before_long_gap_do_not_count(fleet: FleetScript) -> None:
    for _ in range(2):
        fleet.observe(Reading(90, 90))
    fleet.tick += FORGET_TICKS + 1
    fleet.observe(Reading(90, 90))
    assert fleet.told == []


def test_tracker_count_is_bounded_by_servers(fleet: FleetScript) -> None:
    for _ in range(MAX_RECENT_EVENTS // 8):
        for now in [Reading(90, 90)] * 3 + [Reading(50, 50)] * CLEAR_TICKS:
            fleet.observe(*[now] * 8)
    fleet.observe(*[Reading(50, 50)] * 8)
    assert len(fleet.events) == 2 * MAX_RECENT_EVENTS
    assert len(fleet.book.recent_events) == MAX_RECENT_EVENTS
    assert fleet.book.recent_events[0] == fleet.events[-1]
    assert fleet.book._trackers == {}
    fleet.observe()
    assert fleet.book.to_state()["watches"] == []


def test_open_alerts_are_sorted_by_severity(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(60, 90), Reading(90, 90), Reading(99, 99), Reading(50, 50))
    assert [alert.server for alert in fleet.book.open_alerts] == ["c", "b", "a"]
    told = fleet.book.as_json()
    assert [one["severity"] for one in told["open"]] == ["critical", "warning", "early"]
    assert told["open"][1] == {
        "id": "b/memory_percent/5015", "server": "b", "profile": "generic", "condition": "memory_percent",
        "severity": "warning", "opened_at": "1970-01-01T01:23:35Z", "since": "1970-01-01T01:23:35Z", "value": 90.0,
        "warning": 85.0, "critical": 95.0, "minutes_ahead": None, "unit": "%",
        "message": "b: memory at 90 %, warning from 85 %",
    }  # fmt: skip
    assert told["recent"][0]["event"] == "opened"
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_many_events_log_limited_lines(fleet: FleetScript, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecastd.fleet.conditions.alert_tracker")
    names = tuple(f"server-{row}" for row in range(300))
    current = np.full((300, METRIC_COUNT), NAN)
    current[:, MEMORY] = 99
    zeros = np.zeros((300, METRIC_COUNT), dtype=np.int64)
    seen = CurrentValues(START, STEP, names, ("web",) * 300, ("ok",) * 300, current, zeros, zeros[:, 0])
    for tick in range(3):
        fleet.book.update(assess_risk(replace(seen, tick=START + tick), None, LIMITS))
    assert len(caplog.messages) == MAX_LOGGED_EVENTS + 1
    assert caplog.messages[0] == "Alert opened, critical: server-0: memory at 99 %, critical from 95 %."
    assert caplog.messages[-1] == "250 more alerts changed."


WATCH = {"server": "a", "condition": "memory_percent", "seen": 1, "over": [1, 1, 1], "under": [0, 0, 0], "rank": 0,
         "alert": None}  # fmt: skip


def test_saved_state_is_accepted() -> None:
    book = AlertTracker.from_state({"version": 1, "tick": 1, "watches": [WATCH], "recent": []})
    assert book.to_state() == {"version": 1, "tick": 1, "watches": [WATCH], "recent": []}


@pytest.mark.parametrize("state", [
    None, [], {}, "x", {"version": 1}, {"version": 2, "tick": 1, "watches": [], "recent": []},
    {"version": 1, "tick": "1", "watches": [], "recent": []}, {"version": 1, "tick": 1, "watches": [{}], "recent": []},
    {"version": 1, "tick": 1, "watches": [], "recent": [], "more": 1}, {1j: 2}, float("nan"),
    {"version": 1, "tick": 1, "watches": [WATCH | {"over": [1, 1]}], "recent": []},
    {"version": 1, "tick": 1, "watches": [WATCH | {"rank": 2}], "recent": []},
    {"version": 1, "tick": 1, "watches": [WATCH | {"rank": -1}], "recent": []},
])  # fmt: skip
def test_invalid_state_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        AlertTracker.from_state(state)


def test_removed_metric_is_dropped_from_state(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(90, 90))
    state = fleet.book.to_state()
    state["watches"][0]["condition"] = "memory_of_old"
    assert AlertTracker.from_state(state).open_alerts == ()
