"""The scaled clock: wall time runs at another speed, monotonic time does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.clock import ReplayClock, ScaledClock, SystemClock, seconds_until
from forecastd.testing import ManualClock


@given(speed=st.floats(0.01, 1000), seconds=st.floats(0, 1e6))
def test_scaled_clock_wall_time_and_waits_follow_the_speed(speed: float, seconds: float) -> None:
    system_clock = ManualClock(1_000_000.0, 50.0)
    clock = ScaledClock(speed, system_clock)
    target = clock.now() + speed * seconds
    wait = seconds_until(clock, target)
    assert wait == pytest.approx(seconds, rel=1e-6, abs=1e-6)
    system_clock.advance(wait)
    assert clock.now() == pytest.approx(target, rel=1e-9)
    assert clock.monotonic() == system_clock.elapsed


def test_scaled_clock_speed_1_follows_the_system_clock() -> None:
    system_clock = ManualClock(1_000_000.0, 50.0)
    clock = ScaledClock(1.0, system_clock)
    system_clock.wall -= 3600
    assert clock.now() == system_clock.wall


def test_scaled_clock_ignores_system_clock_jumps() -> None:
    system_clock = ManualClock(1_000_000.0, 50.0)
    clock = ScaledClock(10.0, system_clock)
    system_clock.wall -= 3600
    assert clock.now() == 1_000_000.0


@given(speed=st.floats(0.01, 1000), since=st.floats(0, 1e6), seconds=st.floats(0, 1e5))
def test_scaled_clock_restart_continues_its_own_time(speed: float, since: float, seconds: float) -> None:
    system_clock = ManualClock(1_000_000.0, 50.0)
    first = ScaledClock(speed, system_clock, since=since)
    system_clock.advance(seconds)
    restarted = ScaledClock(speed, system_clock, since=since)
    assert restarted.now() == pytest.approx(first.now(), rel=1e-9, abs=1e-3)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("inf"), float("nan")])
def test_scaled_clock_invalid_speed_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        ScaledClock(speed)


def test_seconds_until_past_time_is_negative() -> None:
    assert seconds_until(ReplayClock(100.0), 90.0) == -10.0
    assert seconds_until(SystemClock(), 0.0) < 0
