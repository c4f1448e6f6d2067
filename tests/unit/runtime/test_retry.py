"""Retries while there is time, and none after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from forecastd.errors import NeedsHuman, RetryLater, SkipEpoch
from forecastd.runtime import retry
from forecastd.runtime.retry import retry_while


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE_SECONDS", 0.0)


def failing_operation(*errors: Exception) -> Iterator[Exception]:
    yield from errors


@pytest.mark.parametrize("error", [RetryLater("later"), SkipEpoch("stale", check="stale")])
def test_temporary_failure_is_retried(error: Exception) -> None:
    errors = failing_operation(error, error, error)

    def work() -> str:
        for failure in errors:
            raise failure
        return "done"

    assert retry_while(lambda: True, work, Event()) == "done"


@pytest.mark.parametrize(
    ("results", "expected_attempts"), [([True, True, True, True, False], 3), ([True, True, True, False], 2)]
)
def test_no_time_left_raises_the_last_failure(results: list[bool], expected_attempts: int) -> None:
    time_left_results, attempts = iter(results), []

    def work() -> None:
        attempts.append(1)
        raise RetryLater("down")

    with pytest.raises(RetryLater, match="down"):
        retry_while(lambda: next(time_left_results), work, Event())
    assert len(attempts) == expected_attempts


def test_needs_human_is_not_retried() -> None:
    def work() -> None:
        raise NeedsHuman("no model")

    with pytest.raises(NeedsHuman):
        retry_while(lambda: True, work, Event())


def test_wake_event_ends_the_wait() -> None:
    wake = Event()
    wake.set()

    def work() -> None:
        raise RetryLater("down")

    with pytest.raises(RetryLater, match="Stopped"):
        retry_while(lambda: True, work, wake)
