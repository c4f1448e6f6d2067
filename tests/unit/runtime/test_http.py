"""Retries within a deadline, on a clock that only attempts and waits advance; messages without passwords."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from forecastd.errors import NeedsHuman, RetryLater
from forecastd.runtime import http
from forecastd.runtime.http import (
    MAX_ATTEMPTS,
    TransientHttpError,
    host_and_port,
    retry_transient,
    split_http_url,
)
from forecastd.testing import ManualClock


class FakeTime(ManualClock):
    """A clock that is also an Event, whose wait advances the clock."""

    def __init__(self) -> None:
        super().__init__(elapsed=0.0)
        self.stopped = False

    def wait(self, seconds: float) -> bool:
        self.advance(0 if self.stopped else seconds)
        return self.stopped


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    time = FakeTime()
    monkeypatch.setattr(http, "SystemClock", lambda: time)
    return time


@pytest.fixture
def total(time: FakeTime) -> Callable[..., tuple[int, float]]:
    """Return the number of attempts and their total time, for work that always fails after `uses` seconds."""

    def total(uses: float, wait: float | None = None) -> tuple[int, float]:
        attempts = 0

        def work(seconds: float) -> None:
            nonlocal attempts
            attempts += 1
            assert seconds > 0
            time.advance(min(seconds, uses))
            raise TransientHttpError("no", retry_after=wait)

        with pytest.raises(TransientHttpError):
            retry_transient(work, 10.0, time)  # type: ignore[arg-type]  # only `wait` is used
        return attempts, time.elapsed

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


@pytest.mark.parametrize(
    ("url", "is_valid"),
    [
        ("http://host", True),
        ("https://user@host:8080/path?query", True),
        ("http://[::1]:80", True),
        ("ftp://host", False),
        ("http://", False),
        ("http://:80", False),
        ("http://host:0", False),
        ("http://host:port", False),
        ("http://host:99999", False),
        ("http://[::1", False),
        ("host", False),
    ],
)
def test_http_url_needs_a_host_and_a_port(url: str, is_valid: bool) -> None:
    assert (split_http_url(url) is not None) is is_valid
