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

from forecastd.fleet.alert import Event
from forecastd.fleet.alerting import (
    CLEAR_TICKS,
    FORGET_TICKS,
    GONE,
    LOGGED_EVENTS,
    MAINTENANCE,
    OPEN_TICKS,
    RECENT_EVENTS,
    AlertBook,
)
from forecastd.fleet.contract import INDEX, M
from forecastd.fleet.observed import LOST, SILENT, Observed
from forecastd.fleet.risk import assess
from forecastd.fleet.thresholds import load_thresholds

LIMITS = load_thresholds()
MEMORY = INDEX["memory_percent"]  # generic: warning from 85, critical from 95
CLEAR = 85 * 0.95  # where a warning is on its way out
H, STEP, START = 96, 5, 1000
NAN = float("nan")
LEVELS = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class Forecast:
    tick: int
    servers: tuple[str, ...]
    quantiles: np.ndarray[Any, np.dtype[np.float32]]
    step: int = STEP
    levels: tuple[float, ...] = LEVELS


@dataclass(frozen=True)
class Now:
    """One server at one tick: its memory now, `age` ticks old, and where its p50 is at the horizon's end."""

    memory: float = 50.0
    ahead: float = 50.0
    status: str = "ok"
    silent: int = 0
    age: int = 0


class Fleet:
    """A book, and a clock of ticks."""

    def __init__(self) -> None:
        self.book, self.tick, self.events = AlertBook(), START, list[Event]()

    def see(self, *servers: Now, again: bool = False) -> list[Event]:
        """What the book makes of a tick in which these servers, `a`, `b` and so on, are so."""
        self.tick += not again
        count, names = len(servers), tuple("abcdefgh"[: len(servers)])
        current = np.full((count, M), NAN)
        current[:, MEMORY] = [one.memory for one in servers]
        age = np.array([[one.age] * M for one in servers], dtype=np.int64).reshape(count, M)
        silent = np.array([one.silent for one in servers], dtype=np.int64)
        seen = Observed(
            self.tick, STEP, names, ("generic",) * count, tuple(one.status for one in servers), current, age, silent
        )
        quantiles = np.full((count, H, M, 3), NAN, dtype=np.float32)
        for row, one in enumerate(servers):
            quantiles[row, :, MEMORY] = np.linspace(one.memory, one.ahead, H)[:, None]
        found = list(self.book.update(assess(seen, Forecast(self.tick, names, quantiles), LIMITS)))
        self.events += found
        return found

    def restart(self) -> None:
        """Another process takes over."""
        self.book = AlertBook.from_state(json.loads(json.dumps(self.book.to_state(), allow_nan=False)))

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.alert.severity) for event in self.events]


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


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
def test_when_an_alert_opens_escalates_eases_and_clears(
    fleet: Fleet, course: list[float], expected: list[tuple[int, str, str]]
) -> None:
    for memory in course:
        fleet.see(Now(memory, memory))
    assert [(int(one.at / STEP) - START, one.kind, one.alert.severity) for one in fleet.events] == expected


nows = st.builds(
    Now,
    memory=st.one_of(st.floats(1, 100), st.sampled_from([50.0, CLEAR, 84.9, 85.0, 94.0, 95.0, 99.0, NAN])),
    ahead=st.one_of(st.floats(1, 100), st.sampled_from([50.0, 90.0, 99.0, NAN])),
    status=st.sampled_from(["ok"] * 5 + ["down", "degraded", "maintenance"]),
    silent=st.sampled_from([0] * 5 + [1, 7, SILENT, LOST]),
    age=st.sampled_from([0] * 5 + [1, 3]),
)


@st.composite
def lives(draw: st.DrawFn) -> list[Now]:
    """A server's ticks, where most things last a while."""
    runs = draw(st.lists(st.tuples(nows, st.integers(1, 15)), max_size=6))
    return [now for now, length in runs for _ in range(length)]


few = settings(max_examples=50)  # each is a hundred ticks of a whole assessment


@few
@given(lives(), st.lists(st.integers(0, 120), max_size=4), st.booleans())
def test_a_restart_in_the_middle_changes_nothing(life: list[Now], restarts: list[int], twice: bool) -> None:
    straight, broken = Fleet(), Fleet()
    for place, now in enumerate(life):
        straight.see(now)
        broken.see(now)
        if place in restarts:
            kept = broken.book
            broken.restart()
            assert (broken.book.open, broken.book.recent) == (kept.open, kept.recent)
            broken.book._started = kept._started  # silence before it listened is told by a test of its own
            if twice:
                assert broken.see(now, again=True) == []  # the tick in which it ended comes again
    assert broken.events == straight.events
    assert broken.book.open == straight.book.open


@few
@given(lives())
def test_every_story_is_one_that_can_be_told(life: list[Now]) -> None:
    """An alert opens once, changes its severity as it says, and ends once; what is open is what was told and is not over."""
    fleet, rank = Fleet(), {"early": 1, "warning": 2, "critical": 3}
    stories: dict[str, list[Event]] = {}
    for now in life:
        for event in fleet.see(now):
            stories.setdefault(event.alert.id, []).append(event)
    for story in stories.values():
        assert [event.kind for event in story].count("opened") == 1
        assert story[0].kind == "opened"
        assert all(event.kind != "cleared" for event in story[:-1])
        for earlier, later in pairwise(story):
            change = rank[later.alert.severity] - rank[earlier.alert.severity]
            assert {"escalated": change > 0, "eased": change < 0, "cleared": change == 0}[later.kind]
    alive = {name: story[-1].alert.severity for name, story in stories.items() if story[-1].kind != "cleared"}
    assert {alert.id: alert.severity for alert in fleet.book.open} == alive
    assert len({(alert.server, alert.condition) for alert in fleet.book.open}) == len(fleet.book.open)
    assert fleet.book.counts() == {"open": len(alive), "critical": list(alive.values()).count("critical")}


wavering = st.lists(st.floats(CLEAR, 89.9), min_size=1, max_size=100)


@few
@given(wavering, st.integers(0, 100))
def test_a_value_that_wavers_around_its_threshold_makes_one_alert_at_most(values: list[float], restart: int) -> None:
    fleet = Fleet()
    for place, value in enumerate(values):
        fleet.see(Now(value, 50))
        if place == restart:
            fleet.restart()
    assert fleet.told in ([], [("opened", "warning")])


@few
@given(
    st.lists(st.tuples(st.integers(1, OPEN_TICKS + 2), st.integers(1, CLEAR_TICKS - 1)), max_size=8), st.integers(0, 90)
)
def test_nor_does_one_that_falls_far_but_never_for_long(rhythm: list[tuple[int, int]], restart: int) -> None:
    fleet = Fleet()
    for place, value in enumerate(value for high, low in rhythm for value in [90.0] * high + [10.0] * low):
        fleet.see(Now(value, 10))
        if place == restart:
            fleet.restart()
    assert fleet.told in ([], [("opened", "warning")])


def test_what_the_forecast_reaches_is_told_early_with_the_minutes(fleet: Fleet) -> None:
    for _ in range(3):
        events = fleet.see(Now(60, 90))
    (event,) = events
    alert = event.alert
    assert (event.kind, alert.severity, alert.condition) == ("opened", "early", "memory_percent")
    assert alert.minutes_ahead == pytest.approx(
        81 * STEP / 60
    )  # the 81st of 96 steps from 60 to 90 is the first above 85
    assert event.text == "opened, early: a: memory at 60 %, likely above 85 % in 6.8 min"
    for _ in range(3):
        events = fleet.see(Now(86, 99))
    assert events[0].text == "escalated, warning: a: memory at 86 %, warning from 85 %, likely above 95 % in 5.6 min"
    for _ in range(3):
        events = fleet.see(Now(97, 99))
    assert events[0].text == "escalated, critical: a: memory at 97 %, critical from 95 %"
    assert events[0].alert.minutes_ahead is None
    for _ in range(CLEAR_TICKS):
        events = fleet.see(Now(70, 70))
    assert (
        events[0].text
        == "cleared: a: memory at 70 %, was critical from 95 %; memory and its forecast stayed below 80.8 %"
    )
    assert {event.alert.id for event in fleet.events} == {f"a/memory_percent/{(START + 3) * STEP}"}
    assert fleet.events[-1].alert.opened_at == (START + 3) * STEP
    assert fleet.events[-1].alert.since == (START + 9) * STEP


def test_an_early_warning_that_does_not_come_true_is_taken_back(fleet: Fleet) -> None:
    for ahead in [90] * 3 + [83] * 20 + [70] * CLEAR_TICKS:
        fleet.see(Now(60, ahead))
    assert fleet.told == [("opened", "early"), ("cleared", "early")]
    assert fleet.events[1].at == (START + 23 + CLEAR_TICKS) * STEP


def test_a_value_that_is_seen_again_says_nothing_new(fleet: Fleet) -> None:
    fleet.see(Now(90))
    for age in range(1, 4):
        fleet.see(Now(90, age=age))
    assert fleet.told == []
    fleet.see(Now(90))
    fleet.see(Now(90))
    assert fleet.told == [("opened", "warning")]


def test_a_server_that_says_it_is_down_or_falls_silent_is_told(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(status="down"), Now(status="degraded"), Now())
    assert [event.alert.message for event in fleet.events] == ["a: says that it is down", "b: says that it is degraded"]
    assert fleet.told == [("opened", "critical"), ("opened", "warning")]
    fleet.events.clear()
    for silent in range(1, LOST + 1):
        fleet.see(Now(status="down", silent=silent), Now(), Now(silent=silent))
    of_c = [event for event in fleet.events if event.alert.server == "c"]
    assert [(event.kind, event.alert.severity) for event in of_c] == [("opened", "warning"), ("escalated", "critical")]
    assert [event.alert.message for event in of_c] == ["c: has sent nothing for 1 min", "c: has sent nothing for 5 min"]
    fleet.events.clear()
    for _ in range(CLEAR_TICKS):
        fleet.see(Now(), Now(), Now())
    assert {(event.alert.server, event.reason) for event in fleet.events if event.kind == "cleared"} >= {
        ("a", "it says that it is well"), ("c", "it reports again"),
    }  # fmt: skip


def test_an_agent_that_sends_seldom_is_one_alert_and_not_one_each_time(fleet: Fleet) -> None:
    for tick in range(200):
        fleet.see(Now(silent=tick % (SILENT + 1)))
    assert fleet.told == [("opened", "warning")]


def test_nobody_is_called_silent_for_a_time_in_which_nobody_listened(fleet: Fleet) -> None:
    for _ in range(SILENT):
        fleet.see(Now(silent=500))
    assert fleet.told == []
    fleet.see(Now(silent=500))
    assert fleet.told == [("opened", "warning")]
    fleet.restart()
    for _ in range(LOST - SILENT):
        fleet.see(Now(silent=500))
    assert len(fleet.told) == 1  # neither cleared nor told again


def test_a_server_that_vanishes_takes_its_alerts_along_and_says_why(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(), Now(90, 90))
    events = fleet.see(Now())
    assert [(event.kind, event.alert.server, event.reason) for event in events] == [("cleared", "b", GONE)]
    assert fleet.book.open == ()
    for _ in range(3):
        fleet.see(Now(), Now(90, 90))
    assert len({event.alert.id for event in fleet.events}) == 2


def test_maintenance_ends_alerts_and_lets_none_open(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(99, 99))
    events = fleet.see(Now(99, 99, status="maintenance"))
    assert [(event.kind, event.reason) for event in events] == [("cleared", MAINTENANCE)]
    for silent in range(LOST * 2):
        assert fleet.see(Now(99, 99, status="maintenance", silent=silent)) == []


def test_a_clock_that_was_put_back_does_not_make_it_deaf(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(90, 90))
    fleet.tick -= 700
    for _ in range(CLEAR_TICKS):
        fleet.see(Now(50, 50))
    assert fleet.told == [("opened", "warning"), ("cleared", "warning")]


def test_values_from_before_a_long_gap_do_not_count(fleet: Fleet) -> None:
    for _ in range(2):
        fleet.see(Now(90, 90))
    fleet.tick += FORGET_TICKS + 1
    fleet.see(Now(90, 90))
    assert fleet.told == []


def test_memory_is_bounded_by_what_is_there(fleet: Fleet) -> None:
    for _ in range(RECENT_EVENTS // 8):
        for now in [Now(90, 90)] * 3 + [Now(50, 50)] * CLEAR_TICKS:
            fleet.see(*[now] * 8)
    fleet.see(*[Now(50, 50)] * 8)
    assert len(fleet.events) == 2 * RECENT_EVENTS
    assert len(fleet.book.recent) == RECENT_EVENTS
    assert fleet.book.recent[0] == fleet.events[-1]
    assert fleet.book._watches == {}
    fleet.see()
    assert fleet.book.to_state()["watches"] == []


def test_the_gravest_is_first(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(60, 90), Now(90, 90), Now(99, 99), Now(50, 50))
    assert [alert.server for alert in fleet.book.open] == ["c", "b", "a"]
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


def test_many_events_at_once_do_not_flood_the_log(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="forecastd.fleet.alerting")
    names = tuple(f"server-{row}" for row in range(300))
    current = np.full((300, M), NAN)
    current[:, MEMORY] = 99
    zeros = np.zeros((300, M), dtype=np.int64)
    seen = Observed(START, STEP, names, ("web",) * 300, ("ok",) * 300, current, zeros, zeros[:, 0])
    for tick in range(3):
        fleet.book.update(assess(replace(seen, tick=START + tick), None, LIMITS))
    assert len(caplog.messages) == LOGGED_EVENTS + 1
    assert caplog.messages[0] == "Alert opened, critical: server-0: memory at 99 %, critical from 95 %."
    assert caplog.messages[-1] == "250 more alerts changed."


WATCH = {"server": "a", "condition": "memory_percent", "seen": 1, "over": [1, 1, 1], "under": [0, 0, 0], "rank": 0,
         "alert": None}  # fmt: skip


def test_a_state_is_what_it_seems() -> None:
    book = AlertBook.from_state({"version": 1, "tick": 1, "watches": [WATCH], "recent": []})
    assert book.to_state() == {"version": 1, "tick": 1, "watches": [WATCH], "recent": []}


@pytest.mark.parametrize("state", [
    None, [], {}, "x", {"version": 1}, {"version": 2, "tick": 1, "watches": [], "recent": []},
    {"version": 1, "tick": "1", "watches": [], "recent": []}, {"version": 1, "tick": 1, "watches": [{}], "recent": []},
    {"version": 1, "tick": 1, "watches": [], "recent": [], "more": 1}, {1j: 2}, float("nan"),
    {"version": 1, "tick": 1, "watches": [WATCH | {"over": [1, 1]}], "recent": []},
    {"version": 1, "tick": 1, "watches": [WATCH | {"rank": 2}], "recent": []},
    {"version": 1, "tick": 1, "watches": [WATCH | {"rank": -1}], "recent": []},
])  # fmt: skip
def test_a_state_that_makes_no_sense_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        AlertBook.from_state(state)


def test_a_metric_that_is_no_more_is_left_out_of_the_state(fleet: Fleet) -> None:
    for _ in range(3):
        fleet.see(Now(90, 90))
    state = fleet.book.to_state()
    state["watches"][0]["condition"] = "memory_of_old"
    assert AlertBook.from_state(state).open == ()
