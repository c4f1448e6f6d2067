"""The rules of further attempts, by a clock that only the attempts and the waits move; no password in a message."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.runtime import http
from forecastd.runtime.http import MAX_ATTEMPTS, TransientHttpError, fetch_url, host_and_port, retry_transient


class FakeTime:
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
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    time = FakeTime()
    monkeypatch.setattr(http, "SystemClock", lambda: time)
    return time


@pytest.fixture
def total(time: FakeTime) -> Callable[..., tuple[int, float]]:
    """How many attempts were made and what they took altogether, of a work that uses up what it may."""

    def total(uses: float, wait: float | None = None) -> tuple[int, float]:
        attempts = 0

        def work(seconds: float) -> None:
            nonlocal attempts
            attempts += 1
            assert seconds > 0
            time.at += min(seconds, uses)
            raise TransientHttpError("no", retry_after=wait)

        with pytest.raises(TransientHttpError):
            retry_transient(work, 10.0, time)  # type: ignore[arg-type]  # all it needs of an Event
        return attempts, time.at

    return total


@pytest.mark.parametrize("uses", [0.0, 0.1, 3.0, 4.9, 5.0, 60.0])
@pytest.mark.parametrize("wait", [None, 0.0, 1.0, 4.0, 5.0])
def test_http_retries_stay_within_the_deadline(
    total: Callable[..., tuple[int, float]], uses: float, wait: float | None
) -> None:
    attempts, elapsed = total(uses, wait)
    assert elapsed <= 10.0 + 1e-9
    assert 1 <= attempts <= MAX_ATTEMPTS


def test_http_hanging_attempt_leaves_time_for_another(total: Callable[..., tuple[int, float]]) -> None:
    assert total(60.0)[0] >= 2


def test_http_wait_beyond_deadline_raises_at_once(total: Callable[..., tuple[int, float]]) -> None:
    assert total(5.0, wait=5.0) == (1, 5.0)


def test_http_permanent_error_is_not_retried(time: FakeTime) -> None:
    for error in (RetryLater("x"), NeedsHuman("x")):
        attempts: list[float] = []

        def work(seconds: float, error: Exception = error, attempts: list[float] = attempts) -> None:
            attempts.append(seconds)
            raise error

        with pytest.raises(type(error)):
            retry_transient(work, 10.0, threading.Event())
        assert len(attempts) == 1


def test_http_stop_event_ends_a_wait(time: FakeTime, total: Callable[..., tuple[int, float]]) -> None:
    time.stopped = True
    assert total(0.0, wait=4.0) == (1, 0.0)


def test_http_host_and_port_hides_credentials() -> None:
    assert host_and_port("http://user:p4ss@host:80/x") == "host:80"
    with pytest.raises(TransientHttpError) as error:
        fetch_url("http://user:p4ss@127.0.0.1:9/", {}, {})
    assert "p4ss" not in str(error.value)
