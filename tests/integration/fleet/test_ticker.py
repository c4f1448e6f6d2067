"""When a tick closes, and that the ticker reports each closed tick once, whatever the clock does."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet import ticker
from forecastd.fleet.ticker import CLOSE_STEPS, Ticker, due_time, newest_due_tick
from forecastd.testing import ManualClock

WAIT = 60.0


@given(tick=st.integers(0, 10**9), step=st.integers(1, 3600), share=st.floats(0, 0.999))
def test_tick_closes_after_delay(tick: int, step: int, share: float) -> None:
    close_time = (tick + CLOSE_STEPS) * step
    assert due_time(tick, step) == close_time
    assert newest_due_tick(close_time - 1e-4 * step, step) == tick - 1
    assert newest_due_tick(close_time + 1e-4 * step + share * step * 0.99, step) == tick


class TickRecorder:
    """Records the calls of a ticker, and waits for them."""

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.set_back: list[int] = []
        self.changed = threading.Condition()

    def close(self, tick: int) -> None:
        with self.changed:
            self.closed.append(tick)
            self.changed.notify_all()

    def rewind(self, tick: int) -> None:
        with self.changed:
            self.set_back.append(tick)
            self.changed.notify_all()

    def wait_for(self, closed: list[int], set_back: list[int]) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: (self.closed, self.set_back) == (closed, set_back), WAIT)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticker, "MAX_WAIT_SECONDS", 0.005)
    monkeypatch.setattr(ticker, "ERROR_PAUSE_SECONDS", 0.005)


def test_ticker_reports_newest_tick_and_clock_set_back() -> None:
    clock, recorder = ManualClock(1000.0), TickRecorder()
    ticker_thread = Ticker("the test", clock, 5, recorder.close, recorder.rewind)
    ticker_thread.start()
    clock.wall = 1005.6
    recorder.wait_for([200], [])
    clock.wall = 1050.6
    recorder.wait_for([200, 209], [])
    clock.wall = 1048.0  # less than a tick back: no effect
    clock.wall = 1010.6
    recorder.wait_for([200, 209], [201])
    clock.wall = 1015.6
    recorder.wait_for([200, 209, 202], [201])
    ticker_thread.request_stop()
    ticker_thread.join(WAIT)
    assert not ticker_thread.is_alive()


def test_ticker_survives_unexpected_error() -> None:
    clock, recorder = ManualClock(1000.0), TickRecorder()

    def close(tick: int) -> None:
        recorder.close(tick)
        if tick == 200:
            raise ZeroDivisionError

    ticker_thread = Ticker("the test", clock, 5, close, recorder.rewind)
    ticker_thread.start()
    clock.wall = 1005.6
    recorder.wait_for([200], [])
    clock.wall = 1010.6
    recorder.wait_for([200, 201], [])
    ticker_thread.request_stop()
    ticker_thread.join(WAIT)
    assert not ticker_thread.is_alive()
