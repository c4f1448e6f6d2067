"""When to look, when a heartbeat is due: for every clock there may be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.schedule import BlockTimer, Look, beats_due, jumped, poll_seconds, slot, wait_for_look

SECONDS = st.floats(0, 1e10, allow_nan=False)
INTERVALS = st.integers(1, 7 * 86_400)


@pytest.mark.parametrize(
    ("blocks", "seconds", "expected"),
    [
        (720, 5.0, 120.0),
        (72, 5.0, 120.0),
        (36, 5.0, 60.0),
        (12, 5.0, 20.0),
        (3, 5.0, 5.0),
        (0, 5.0, 5.0),
        (720, 0.02, 5.0),
    ],
)
def test_a_window_is_looked_for_three_times_within_bounds(blocks: int, seconds: float, expected: float) -> None:
    assert poll_seconds(blocks, seconds) == pytest.approx(expected)


@given(st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS), st.floats(0.01, 7200), INTERVALS)
def test_a_look_is_never_more_than_a_poll_away_whatever_the_clocks_say(
    last: tuple[float, float], now: tuple[float, float], poll: float, interval: int
) -> None:
    look = Look(last[0], slot(last[1], interval))
    assert 0 <= wait_for_look(look, *now, poll=poll, interval=interval) <= poll + 1e-6


@given(SECONDS, st.floats(-1e9, 1e9), st.floats(0, 7200), st.floats(5, 120), INTERVALS)
def test_a_clock_that_jumps_only_makes_a_look_come_sooner(
    wall: float, jump: float, passed: float, poll: float, interval: int
) -> None:
    last = Look(0.0, slot(wall, interval))
    steady = wait_for_look(last, passed, wall + passed, poll=poll, interval=interval)
    after = wait_for_look(last, passed, max(0.0, wall + passed + jump), poll=poll, interval=interval)
    assert after <= max(steady, poll - passed)


@pytest.mark.parametrize(
    ("wall", "interval", "expected"),
    [(3599.0, 3600, 1.0), (3600.0, 3600, 100.0), (7100.0, 3600, 100.0), (59.5, 60, 0.5), (0.25, 1, 0.75)],
)
def test_looks_are_aligned_to_the_wall_clock_and_not_to_the_start(wall: float, interval: int, expected: float) -> None:
    last = Look(0.0, slot(wall, interval))
    assert wait_for_look(last, 0.0, wall, poll=100.0, interval=interval) == pytest.approx(expected)


def test_the_first_look_and_one_in_a_new_slot_are_due_at_once() -> None:
    assert wait_for_look(None, 5.0, 5.0, poll=100.0, interval=3600) == 0.0
    assert wait_for_look(Look(0.0, 0), 1.0, 3600.0, poll=100.0, interval=3600) == 0.0
    assert wait_for_look(Look(0.0, 5), 1.0, 3600.0, poll=100.0, interval=3600) == 0.0, "a clock that was set back"


@given(SECONDS, st.floats(0, 1e8), st.floats(1, 86_400))
def test_heartbeats_do_not_drift_and_are_not_made_up_for(started: float, passed: float, every: float) -> None:
    due = beats_due(started, 0, started + passed, every)
    assert abs(due - passed / every) <= 1 + 1e-3
    assert beats_due(started, due, started + passed, every) == due


@pytest.mark.parametrize(
    ("mono", "wall", "expected"),
    [(1.0, 1.0, 0.0), (1.0, 50.0, 0.0), (1.0, 7201.0, 7200.0), (1.0, -86_399.0, -86_400.0)],
)
def test_only_a_jump_worth_telling_counts_as_one(mono: float, wall: float, expected: float) -> None:
    assert jumped(mono, wall, 0.0, 0.0) == pytest.approx(expected)


def test_blocks_are_timed_by_the_heights_that_are_told() -> None:
    timer = BlockTimer()
    assert timer.known == 5.0
    for number in range(40):
        timer = timer.heard(100 + 4 * number, 10.0 * number)
    assert timer.known == pytest.approx(2.5)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e9)), max_size=30))
def test_whatever_heights_are_told_a_block_takes_a_believable_time(told: list[tuple[int, float]]) -> None:
    timer = BlockTimer()
    for height, at in told:
        timer = timer.heard(height, at)
    assert 0.001 <= timer.known <= 120.0
