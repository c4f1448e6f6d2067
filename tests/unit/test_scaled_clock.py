"""A clock for rehearsals: wall time at another speed, monotonic time as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.clock import ReplayClock, ScaledClock, SystemClock, seconds_until


class Hand:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.wall, self.mono = 1_000_000.0, 50.0

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return self.mono


@given(speed=st.floats(0.01, 1000), seconds=st.floats(0, 1e6))
def test_wall_time_runs_at_its_speed_and_a_wait_for_it_is_that_much_shorter(speed: float, seconds: float) -> None:
    hand = Hand()
    clock = ScaledClock(speed, hand)
    moment = clock.now() + speed * seconds
    wait = seconds_until(clock, moment)
    assert wait == pytest.approx(seconds, rel=1e-6, abs=1e-6)
    hand.mono += wait
    hand.wall += wait
    assert clock.now() == pytest.approx(moment, rel=1e-9)
    assert clock.monotonic() == hand.mono


def test_at_speed_1_it_is_the_machines_clock_also_when_that_is_set() -> None:
    hand = Hand()
    clock = ScaledClock(1.0, hand)
    hand.wall -= 3600
    assert clock.now() == hand.wall


def test_a_rehearsals_time_does_not_jump_with_the_machines() -> None:
    hand = Hand()
    clock = ScaledClock(10.0, hand)
    hand.wall -= 3600
    assert clock.now() == 1_000_000.0


@given(speed=st.floats(0.01, 1000), since=st.floats(0, 1e6), seconds=st.floats(0, 1e5))
def test_a_rehearsal_that_is_started_again_goes_on_with_its_own_time(
    speed: float, since: float, seconds: float
) -> None:
    hand = Hand()
    first = ScaledClock(speed, hand, since=since)
    hand.wall += seconds
    hand.mono += seconds
    again = ScaledClock(speed, hand, since=since)
    assert again.now() == pytest.approx(first.now(), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ScaledClock(speed)


def test_a_wait_for_a_moment_that_is_over_is_negative() -> None:
    assert seconds_until(ReplayClock(100.0), 90.0) == -10.0
    assert seconds_until(SystemClock(), 0.0) < 0
