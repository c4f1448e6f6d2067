"""The rules of further attempts, by a clock that only the attempts and the waits move; no password in a message."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.sources import http
from forecastd.sources.http import ATTEMPTS, Passing, address, get, persist


class Time:
    """A clock, and an Event whose wait moves it."""

    def __init__(self) -> None:
        self.at = 0.0
        self.stopped = False

    def monotonic(self) -> float:
        return self.at

    def wait(self, seconds: float) -> bool:
        self.at += 0 if self.stopped else seconds
        return self.stopped


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(http, "SystemClock", lambda: time)
    return time


@pytest.fixture
def total(time: Time) -> Callable[..., tuple[int, float]]:
    """How many attempts were made and what they took altogether, of a work that uses up what it may."""

    def total(uses: float, wait: float | None = None) -> tuple[int, float]:
        made = 0

        def work(seconds: float) -> None:
            nonlocal made
            made += 1
            assert seconds > 0
            time.at += min(seconds, uses)
            raise Passing("no", wait=wait)

        with pytest.raises(Passing):
            persist(work, 10.0, time)  # type: ignore[arg-type]  # all it needs of an Event
        return made, time.at

    return total


@pytest.mark.parametrize("uses", [0.0, 0.1, 3.0, 4.9, 5.0, 60.0])
@pytest.mark.parametrize("wait", [None, 0.0, 1.0, 4.0, 5.0])
def test_all_attempts_and_waits_together_stay_within_the_deadline(
    total: Callable[..., tuple[int, float]], uses: float, wait: float | None
) -> None:
    made, took = total(uses, wait)
    assert took <= 10.0 + 1e-9
    assert 1 <= made <= ATTEMPTS


def test_an_attempt_that_hangs_leaves_time_for_another(total: Callable[..., tuple[int, float]]) -> None:
    assert total(60.0)[0] >= 2


def test_a_wait_that_does_not_fit_is_not_begun(total: Callable[..., tuple[int, float]]) -> None:
    assert total(5.0, wait=5.0) == (1, 5.0)


def test_what_is_not_passing_is_not_tried_again(time: Time) -> None:
    for error in (RetryLater("x"), NeedsHuman("x")):
        made: list[float] = []

        def work(seconds: float, error: Exception = error, made: list[float] = made) -> None:
            made.append(seconds)
            raise error

        with pytest.raises(type(error)):
            persist(work, 10.0, threading.Event())
        assert len(made) == 1


def test_a_wait_ends_when_told_to_stop(time: Time, total: Callable[..., tuple[int, float]]) -> None:
    time.stopped = True
    assert total(0.0, wait=4.0) == (1, 0.0)


def test_an_address_is_shown_without_user_and_password() -> None:
    assert address("http://user:p4ss@host:80/x") == "host:80"
    with pytest.raises(Passing) as caught:
        get("http://user:p4ss@127.0.0.1:9/", {}, {})
    assert "p4ss" not in str(caught.value)
