"""The alert tracker: one alert per condition however its value fluctuates, in time, and unchanged by a restart."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
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
from forecastd.fleet.documents import AlertCounts
from forecastd.fleet.risk.assessment import assess_risk
from forecastd.fleet.risk.current_values import SILENT_CRITICAL_TICKS, SILENT_WARNING_TICKS, CurrentValues
from forecastd.fleet.risk.thresholds import load_thresholds

THRESHOLDS = load_thresholds()
MEMORY = METRIC_INDEX["memory_percent"]  # generic: warning from 85, critical from 95
CLEAR = 85 * 0.95  # below this a warning may clear
HORIZON, STEP, START = 96, 5, 1000
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
    """One server at one tick: its memory, `age` ticks old, and `ahead`: its p50 at the end of the horizon."""

    memory: float = 50.0
    ahead: float = 50.0
    status: str = "ok"
    silent: int = 0
    age: int = 0


class FleetScript:
    """An alert tracker and a clock of ticks."""

    def __init__(self) -> None:
        self.tracker, self.tick, self.events = AlertTracker(), START, list[AlertEvent]()

    def observe(self, *servers: Reading, repeat: bool = False) -> list[AlertEvent]:
        """The changes at a tick with these readings of the servers `a`, `b` and so on."""
        self.tick += not repeat
        count, names = len(servers), tuple("abcdefgh"[: len(servers)])
        current = np.full((count, METRIC_COUNT), NAN)
        current[:, MEMORY] = [reading.memory for reading in servers]
        age = np.array([[reading.age] * METRIC_COUNT for reading in servers], dtype=np.int64).reshape(
            count, METRIC_COUNT
        )
        silent = np.array([reading.silent for reading in servers], dtype=np.int64)
        observation = CurrentValues(
            self.tick,
            STEP,
            names,
            ("generic",) * count,
            tuple(reading.status for reading in servers),
            current,
            age,
            silent,
        )
        quantiles = np.full((count, HORIZON, METRIC_COUNT, 3), NAN, dtype=np.float32)
        for row, reading in enumerate(servers):
            quantiles[row, :, MEMORY] = np.linspace(reading.memory, reading.ahead, HORIZON)[:, None]
        changes = list(
            self.tracker.update(assess_risk(observation, LinearForecast(self.tick, names, quantiles), THRESHOLDS))
        )
        self.events += changes
        return changes

    def restart(self) -> None:
        """Continue in a new tracker with the saved state."""
        self.tracker = AlertTracker.from_json(self.tracker.to_json())

    @property
    def transitions(self) -> list[tuple[str, str]]:
        return [(event.kind, event.alert.severity) for event in self.events]


@pytest.fixture
def fleet() -> FleetScript:
    return FleetScript()


# The memory at each tick, and the expected events: the number of the tick (from 1), kind, severity.
SEQUENCES = {
    "below_warning": ([84.9] * 30, []),
    "two_values": ([90, 90, 50, 90, 90, 50], []),
    "three_values": ([90] * OPEN_TICKS, [(3, "opened", "warning")]),
    "at_threshold": ([85] * 3, [(3, "opened", "warning")]),
    "critical_at_once": ([99] * 3, [(3, "opened", "critical")]),
    "escalates": ([90] * 5 + [96] * 3, [(3, "opened", "warning"), (8, "escalated", "critical")]),
    "not_consecutive": ([90] * 5 + [96, 96, 90, 96, 96], [(3, "opened", "warning")]),
    "clears": ([90] * 3 + [50] * CLEAR_TICKS, [(3, "opened", "warning"), (15, "cleared", "warning")]),
    "within_hysteresis": ([90] * 3 + [CLEAR] * 50, [(3, "opened", "warning")]),
    "interrupted_clear": (
        [90] * 3 + [50] * 11 + [82] + [50] * 11, [(3, "opened", "warning")],
    ),
    "eases": ([99] * 3 + [90] * 12, [(3, "opened", "critical"), (15, "eased", "warning")]),
    "critical_to_cleared": ([99] * 3 + [50] * 12, [(3, "opened", "critical"), (15, "cleared", "critical")]),
    "fluctuates_around_critical": ([99] * 3 + [94, 96] * 30, [(3, "opened", "critical")]),
    "gaps": (
        [90, NAN, 90, NAN, NAN, 90] + [50, NAN] * 11 + [NAN] * 5 + [50],
        [(6, "opened", "warning"), (34, "cleared", "warning")],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("values", "expected"), SEQUENCES.values(), ids=SEQUENCES.keys())
def test_alert_opens_escalates_eases_and_clears(
    fleet: FleetScript, values: list[float], expected: list[tuple[int, str, str]]
) -> None:
    for memory in values:
        fleet.observe(Reading(memory, memory))
    assert [
        (int(reading.at / STEP) - START, reading.kind, reading.alert.severity) for reading in fleet.events
    ] == expected


readings = st.builds(
    Reading,
    memory=st.one_of(st.floats(1, 100), st.sampled_from([50.0, CLEAR, 84.9, 85.0, 94.0, 95.0, 99.0, NAN])),
    ahead=st.one_of(st.floats(1, 100), st.sampled_from([50.0, 90.0, 99.0, NAN])),
    status=st.sampled_from(["ok"] * 5 + ["down", "degraded", "maintenance"]),
    silent=st.sampled_from([0] * 5 + [1, 7, SILENT_WARNING_TICKS, SILENT_CRITICAL_TICKS]),
    age=st.sampled_from([0] * 5 + [1, 3]),
)


@st.composite
def reading_sequences(draw: st.DrawFn) -> list[Reading]:
    """The readings of a server; most of them last for several ticks."""
    runs = draw(st.lists(st.tuples(readings, st.integers(1, 15)), max_size=6))
    return [reading for reading, length in runs for _ in range(length)]


few_examples = settings(max_examples=50)  # each has a hundred ticks of a whole assessment


@few_examples
@given(reading_sequences(), st.lists(st.integers(0, 120), max_size=4), st.booleans())
def test_alerts_restart_changes_nothing(sequence: list[Reading], restarts: list[int], twice: bool) -> None:
    uninterrupted, restarted = FleetScript(), FleetScript()
    for index, reading in enumerate(sequence):
        uninterrupted.observe(reading)
        restarted.observe(reading)
        if index in restarts:
            previous = restarted.tracker
            restarted.restart()
            assert (restarted.tracker.open_alerts, restarted.tracker.recent_events) == (
                previous.open_alerts,
                previous.recent_events,
            )
            restarted.tracker._started = previous._started  # another test covers silence before the start
            if twice:
                assert restarted.observe(reading, repeat=True) == []  # the tick of the restart again
    assert restarted.events == uninterrupted.events
    assert restarted.tracker.open_alerts == uninterrupted.tracker.open_alerts


@few_examples
@given(reading_sequences())
def test_alert_events_are_a_valid_sequence(sequence: list[Reading]) -> None:
    """An alert opens once, changes its severity as its events say, and clears once; the others are open."""
    fleet, rank = FleetScript(), {"early": 1, "warning": 2, "critical": 3}
    histories: dict[str, list[AlertEvent]] = {}
    for reading in sequence:
        for event in fleet.observe(reading):
            histories.setdefault(event.alert.id, []).append(event)
    for history in histories.values():
        assert [event.kind for event in history].count("opened") == 1
        assert history[0].kind == "opened"
        assert all(event.kind != "cleared" for event in history[:-1])
        for earlier, later in pairwise(history):
            change = rank[later.alert.severity] - rank[earlier.alert.severity]
            assert {"escalated": change > 0, "eased": change < 0, "cleared": change == 0}[later.kind]
    open_severities = {
        name: history[-1].alert.severity for name, history in histories.items() if history[-1].kind != "cleared"
    }
    assert {alert.id: alert.severity for alert in fleet.tracker.open_alerts} == open_severities
    assert len({(alert.server, alert.condition) for alert in fleet.tracker.open_alerts}) == len(
        fleet.tracker.open_alerts
    )
    critical = list(open_severities.values()).count("critical")
    assert fleet.tracker.counts() == AlertCounts(len(open_severities), critical)


fluctuating = st.lists(st.floats(CLEAR, 89.9), min_size=1, max_size=100)


@few_examples
@given(fluctuating, st.integers(0, 100))
def test_value_around_threshold_opens_at_most_one_alert(values: list[float], restart: int) -> None:
    fleet = FleetScript()
    for index, value in enumerate(values):
        fleet.observe(Reading(value, 50))
        if index == restart:
            fleet.restart()
    assert fleet.transitions in ([], [("opened", "warning")])


@few_examples
@given(
    st.lists(st.tuples(st.integers(1, OPEN_TICKS + 2), st.integers(1, CLEAR_TICKS - 1)), max_size=8), st.integers(0, 90)
)
def test_value_with_short_drops_opens_at_most_one_alert(cycles: list[tuple[int, int]], restart: int) -> None:
    fleet = FleetScript()
    for index, value in enumerate(value for high, low in cycles for value in [90.0] * high + [10.0] * low):
        fleet.observe(Reading(value, 10))
        if index == restart:
            fleet.restart()
    assert fleet.transitions in ([], [("opened", "warning")])


def test_forecast_above_threshold_opens_early_alert_with_minutes(fleet: FleetScript) -> None:
    for _ in range(3):
        events = fleet.observe(Reading(60, 90))
    (event,) = events
    alert = event.alert
    assert (event.kind, alert.severity, alert.condition) == ("opened", "early", "memory_percent")
    assert alert.minutes_ahead == pytest.approx(
        81 * STEP / 60
    )  # the 81st of 96 steps from 60 to 90 is the first above 85
    assert event.text == "opened, early: a: memory at 60 %, likely above 85 % in 6 min 45 s"
    for _ in range(3):
        events = fleet.observe(Reading(86, 99))
    assert events[0].text == "escalated, warning: a: memory at 86 %, warning from 85 %, likely above 95 % in 5 min 35 s"
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
    assert fleet.transitions == [("opened", "early"), ("cleared", "early")]
    assert fleet.events[1].at == (START + 23 + CLEAR_TICKS) * STEP


def test_repeated_value_counts_once(fleet: FleetScript) -> None:
    fleet.observe(Reading(90))
    for age in range(1, 4):
        fleet.observe(Reading(90, age=age))
    assert fleet.transitions == []
    fleet.observe(Reading(90))
    fleet.observe(Reading(90))
    assert fleet.transitions == [("opened", "warning")]


def test_server_down_or_silent_opens_alert(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(status="down"), Reading(status="degraded"), Reading())
    assert [event.alert.message for event in fleet.events] == ["a: reports status down", "b: reports status degraded"]
    assert fleet.transitions == [("opened", "critical"), ("opened", "warning")]
    fleet.events.clear()
    for silent in range(1, SILENT_CRITICAL_TICKS + 1):
        fleet.observe(Reading(status="down", silent=silent), Reading(), Reading(silent=silent))
    events_of_c = [event for event in fleet.events if event.alert.server == "c"]
    assert [(event.kind, event.alert.severity) for event in events_of_c] == [
        ("opened", "warning"),
        ("escalated", "critical"),
    ]
    assert [event.alert.message for event in events_of_c] == ["c: no data for 1 min", "c: no data for 5 min"]
    fleet.events.clear()
    for _ in range(CLEAR_TICKS):
        fleet.observe(Reading(), Reading(), Reading())
    assert {(event.alert.server, event.reason) for event in fleet.events if event.kind == "cleared"} >= {
        ("a", "it reports status ok"), ("c", "it reports again"),
    }  # fmt: skip


def test_slow_agent_opens_one_silence_alert(fleet: FleetScript) -> None:
    for tick in range(200):
        fleet.observe(Reading(silent=tick % (SILENT_WARNING_TICKS + 1)))
    assert fleet.transitions == [("opened", "warning")]


def test_silence_before_start_opens_no_alert(fleet: FleetScript) -> None:
    for _ in range(SILENT_WARNING_TICKS):
        fleet.observe(Reading(silent=500))
    assert fleet.transitions == []
    fleet.observe(Reading(silent=500))
    assert fleet.transitions == [("opened", "warning")]
    fleet.restart()
    for _ in range(SILENT_CRITICAL_TICKS - SILENT_WARNING_TICKS):
        fleet.observe(Reading(silent=500))
    assert len(fleet.transitions) == 1  # neither cleared nor opened again


def test_removed_server_clears_its_alerts_with_reason(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(), Reading(90, 90))
    events = fleet.observe(Reading())
    assert [(event.kind, event.alert.server, event.reason) for event in events] == [("cleared", "b", SERVER_REMOVED)]
    assert fleet.tracker.open_alerts == ()
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
    assert fleet.transitions == [("opened", "warning"), ("cleared", "warning")]


def test_values_before_long_gap_do_not_count(fleet: FleetScript) -> None:
    for _ in range(2):
        fleet.observe(Reading(90, 90))
    fleet.tick += FORGET_TICKS + 1
    fleet.observe(Reading(90, 90))
    assert fleet.transitions == []


def test_tracker_count_is_bounded_by_servers(fleet: FleetScript) -> None:
    for _ in range(MAX_RECENT_EVENTS // 8):
        for reading in [Reading(90, 90)] * 3 + [Reading(50, 50)] * CLEAR_TICKS:
            fleet.observe(*[reading] * 8)
    fleet.observe(*[Reading(50, 50)] * 8)
    assert len(fleet.events) == 2 * MAX_RECENT_EVENTS
    assert len(fleet.tracker.recent_events) == MAX_RECENT_EVENTS
    assert fleet.tracker.recent_events[0] == fleet.events[-1]
    assert fleet.tracker._trackers == {}
    fleet.observe()
    assert json.loads(fleet.tracker.to_json())["watches"] == []


def test_open_alerts_are_sorted_by_severity(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(60, 90), Reading(90, 90), Reading(99, 99), Reading(50, 50))
    assert [alert.server for alert in fleet.tracker.open_alerts] == ["c", "b", "a"]
    transitions = orjson.loads(orjson.dumps(fleet.tracker.document()))
    assert [reading["severity"] for reading in transitions["open"]] == ["critical", "warning", "early"]
    assert transitions["open"][1] == {
        "id": "b/memory_percent/5015", "server": "b", "profile": "generic", "condition": "memory_percent",
        "severity": "warning", "opened_at": "1970-01-01T01:23:35Z", "since": "1970-01-01T01:23:35Z", "value": 90.0,
        "warning": 85.0, "critical": 95.0, "minutes_ahead": None, "unit": "%",
        "message": "b: memory at 90 %, warning from 85 %",
    }  # fmt: skip
    assert transitions["recent"][0]["event"] == "opened"


def test_many_events_log_limited_lines(fleet: FleetScript, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecastd.fleet.conditions.alert_tracker")
    names = tuple(f"server-{row}" for row in range(300))
    current = np.full((300, METRIC_COUNT), NAN)
    current[:, MEMORY] = 99
    zeros = np.zeros((300, METRIC_COUNT), dtype=np.int64)
    observation = CurrentValues(START, STEP, names, ("web",) * 300, ("ok",) * 300, current, zeros, zeros[:, 0])
    for tick in range(3):
        fleet.tracker.update(assess_risk(replace(observation, tick=START + tick), None, THRESHOLDS))
    assert len(caplog.messages) == MAX_LOGGED_EVENTS + 1
    assert caplog.messages[0] == "Alert opened, critical: server-0: memory at 99 %, critical from 95 %."
    assert caplog.messages[-1] == "250 more alerts changed."


SAVED_TRACKER = {"server": "a", "condition": "memory_percent", "seen": 1, "over": [1, 1, 1], "under": [0, 0, 0], "rank": 0,
         "alert": None}  # fmt: skip


def test_saved_state_is_accepted() -> None:
    state = {"version": 1, "tick": 1, "watches": [SAVED_TRACKER], "recent": []}
    tracker = AlertTracker.from_json(json.dumps(state).encode())
    assert json.loads(tracker.to_json()) == state


@pytest.mark.parametrize("state", [
    None, [], {}, "x", {"version": 1}, {"version": 2, "tick": 1, "watches": [], "recent": []},
    {"version": 1, "tick": "1", "watches": [], "recent": []}, {"version": 1, "tick": 1, "watches": [{}], "recent": []},
    {"version": 1, "tick": 1, "watches": [], "recent": [], "more": 1}, float("nan"),
    {"version": 1, "tick": 1, "watches": [SAVED_TRACKER | {"over": [1, 1]}], "recent": []},
    {"version": 1, "tick": 1, "watches": [SAVED_TRACKER | {"rank": 2}], "recent": []},
    {"version": 1, "tick": 1, "watches": [SAVED_TRACKER | {"rank": -1}], "recent": []},
])  # fmt: skip
def test_invalid_state_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        AlertTracker.from_json(json.dumps(state).encode())


@pytest.mark.parametrize("text", [b"", b"{", b"{1: 2}", b"\xff", b"[" * 10_000])
def test_state_that_is_not_json_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        AlertTracker.from_json(text)


def test_removed_metric_is_dropped_from_state(fleet: FleetScript) -> None:
    for _ in range(3):
        fleet.observe(Reading(90, 90))
    state = json.loads(fleet.tracker.to_json())
    state["watches"][0]["condition"] = "memory_of_old"
    assert AlertTracker.from_json(json.dumps(state).encode()).open_alerts == ()
