"""The schedule of polls and heartbeats, for any behavior of the clocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.daemon.schedule import (
    BlockTimeEstimator,
    PollTime,
    clock_jump,
    interval_index,
    latest_due_heartbeat,
    poll_interval,
    seconds_until_poll,
)

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
def test_poll_interval_is_a_third_of_the_window_within_bounds(blocks: int, seconds: float, expected: float) -> None:
    assert poll_interval(blocks, seconds) == pytest.approx(expected)


@given(st.tuples(SECONDS, SECONDS), st.tuples(SECONDS, SECONDS), st.floats(0.01, 7200), INTERVALS)
def test_poll_wait_never_exceeds_the_interval(
    last: tuple[float, float], now: tuple[float, float], poll: float, interval: int
) -> None:
    poll_time = PollTime(last[0], interval_index(last[1], interval))
    assert 0 <= seconds_until_poll(poll_time, *now, poll_seconds=poll, interval=interval) <= poll + 1e-6


@given(SECONDS, st.floats(-1e9, 1e9), st.floats(0, 7200), st.floats(5, 120), INTERVALS)
def test_poll_clock_jump_only_shortens_the_wait(
    wall: float, jump: float, elapsed: float, poll: float, interval: int
) -> None:
    last = PollTime(0.0, interval_index(wall, interval))
    steady = seconds_until_poll(last, elapsed, wall + elapsed, poll_seconds=poll, interval=interval)
    after = seconds_until_poll(last, elapsed, max(0.0, wall + elapsed + jump), poll_seconds=poll, interval=interval)
    assert after <= max(steady, poll - elapsed)


@pytest.mark.parametrize(
    ("wall", "interval", "expected"),
    [(3599.0, 3600, 1.0), (3600.0, 3600, 100.0), (7100.0, 3600, 100.0), (59.5, 60, 0.5), (0.25, 1, 0.75)],
)
def test_poll_is_aligned_to_the_wall_clock(wall: float, interval: int, expected: float) -> None:
    last = PollTime(0.0, interval_index(wall, interval))
    assert seconds_until_poll(last, 0.0, wall, poll_seconds=100.0, interval=interval) == pytest.approx(expected)


def test_poll_first_and_new_interval_are_due_at_once() -> None:
    assert seconds_until_poll(None, 5.0, 5.0, poll_seconds=100.0, interval=3600) == 0.0
    assert seconds_until_poll(PollTime(0.0, 0), 1.0, 3600.0, poll_seconds=100.0, interval=3600) == 0.0
    assert seconds_until_poll(PollTime(0.0, 5), 1.0, 3600.0, poll_seconds=100.0, interval=3600) == 0.0, (
        "a clock that was set back"
    )


@given(SECONDS, st.floats(0, 1e8), st.floats(1, 86_400))
def test_heartbeat_schedule_does_not_drift_or_catch_up(started: float, elapsed: float, every: float) -> None:
    due = latest_due_heartbeat(started, 0, started + elapsed, every)
    assert abs(due - elapsed / every) <= 1 + 1e-3
    assert latest_due_heartbeat(started, due, started + elapsed, every) == due


@pytest.mark.parametrize(
    ("mono", "wall", "expected"),
    [(1.0, 1.0, 0.0), (1.0, 50.0, 0.0), (1.0, 7201.0, 7200.0), (1.0, -86_399.0, -86_400.0)],
)
def test_clock_jump_ignores_small_differences(mono: float, wall: float, expected: float) -> None:
    assert clock_jump(mono, wall, 0.0, 0.0) == pytest.approx(expected)


def test_block_time_is_estimated_from_heights() -> None:
    timer = BlockTimeEstimator()
    assert timer.estimate == 5.0
    for number in range(40):
        timer = timer.update(100 + 4 * number, 10.0 * number)
    assert timer.estimate == pytest.approx(2.5)


@given(st.lists(st.tuples(st.integers(0, 10**9), st.floats(0, 1e9)), max_size=30))
def test_block_time_estimate_stays_within_bounds(heights: list[tuple[int, float]]) -> None:
    timer = BlockTimeEstimator()
    for height, time in heights:
        timer = timer.update(height, time)
    assert 0.001 <= timer.estimate <= 120.0
