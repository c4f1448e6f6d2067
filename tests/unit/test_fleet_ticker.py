"""When a tick is closed, and that the ticker tells each closed tick once, whatever the clock does."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet import ticker
from forecastd.fleet.ticker import GRACE, Ticker, closed_tick, closing_time

WAIT = 60.0


@given(tick=st.integers(0, 10**9), step=st.integers(1, 3600), share=st.floats(0, 0.999))
def test_a_tick_is_closed_a_tenth_of_a_step_after_its_end_and_not_before(tick: int, step: int, share: float) -> None:
    end = (tick + 1) * step
    assert closing_time(tick, step) == pytest.approx(end + GRACE * step)
    assert closed_tick(end + GRACE * step * share * 0.999, step) == tick - 1
    assert closed_tick(end + GRACE * step * 1.001 + share * step * 0.99, step) == tick


class Hand:
    def __init__(self, now: float) -> None:
        self.wall = now

    def now(self) -> float:
        return self.wall

    def monotonic(self) -> float:
        return 0.0


class Told:
    """What a ticker told, and a way to wait for it."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.set_back: list[int] = []
        self.changed = threading.Condition()

    def close(self, tick: int) -> None:
        with self.changed:
            self.closed.append(tick)
            self.changed.notify_all()

    def back(self, tick: int) -> None:
        with self.changed:
            self.set_back.append(tick)
            self.changed.notify_all()

    def until(self, closed: list[int], set_back: list[int]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: (self.closed, self.set_back) == (closed, set_back), WAIT)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "LONGEST_WAIT", 0.005)
    monkeypatch.setattr(ticker, "AFTER_A_FAULT", 0.005)


def test_ticks_are_told_as_they_close_the_newest_only_after_a_sleep_and_a_clock_that_goes_back_is_told() -> None:
    clock, told = Hand(1000.0), Told()
    beat = Ticker(clock, 5, told.close, told.back)
    beat.start()
    clock.wall = 1005.6
    told.until([200], [])
    clock.wall = 1050.6
    told.until([200, 209], [])
    clock.wall = 1048.0  # less than a tick back: nothing to do, the ticks close when they would have
    clock.wall = 1010.6
    told.until([200, 209], [201])
    clock.wall = 1015.6
    told.until([200, 209, 202], [201])
    beat.tell_to_stop()
    assert beat.join(WAIT)
    assert not beat.alive


def test_an_error_that_nobody_foresaw_costs_one_tick() -> None:
    clock, told = Hand(1000.0), Told()

    def close(tick: int) -> None:
        told.close(tick)
        if tick == 200:
            raise ZeroDivisionError

    beat = Ticker(clock, 5, close, told.back)
    beat.start()
    clock.wall = 1005.6
    told.until([200], [])
    clock.wall = 1010.6
    told.until([200, 201], [])
    beat.tell_to_stop()
    assert beat.join(WAIT)


def test_one_that_never_began_ends_all_the_same() -> None:
    never = Ticker(Hand(1000.0), 5, print, print)
    never.tell_to_stop()
    assert never.join(WAIT)
