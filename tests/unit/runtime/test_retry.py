"""Retries of what fails for a time, and none after a stop."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from forecastd.errors import NeedsHuman, RetryLater, SkipEpoch
from forecastd.runtime import retry
from forecastd.runtime.retry import backoff_seconds, retry_until_stopped


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "MIN_PAUSE_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("failures", "expected"), [(1, 5.0), (2, 10.0), (3, 20.0), (4, 40.0), (5, 60.0), (6, 60.0), (100_000, 60.0)]
)
def test_backoff_doubles_up_to_the_longest(failures: int, expected: float) -> None:
    assert backoff_seconds(failures, 5.0, 60.0, jitter=0) == expected


def test_backoff_varies_within_its_jitter() -> None:
    pauses = [backoff_seconds(3, 1.0, 60.0) for _ in range(100)]
    assert len(set(pauses)) > 1
    assert all(3.2 <= pause <= 4.8 for pause in pauses)


def failing_operation(*errors: Exception) -> Iterator[Exception]:
    yield from errors


@pytest.mark.parametrize("error", [RetryLater("later"), SkipEpoch("stale", check="stale")])
def test_temporary_failure_is_retried(error: Exception) -> None:
    errors = failing_operation(error, error, error)

    def work() -> str:
        for failure in errors:
            raise failure
        return "done"

    assert retry_until_stopped(work, Event()) == "done"


def test_needs_human_is_not_retried() -> None:
    def work() -> None:
        raise NeedsHuman("no model")

    with pytest.raises(NeedsHuman):
        retry_until_stopped(work, Event())


def test_wake_event_ends_the_wait() -> None:
    wake = Event()
    wake.set()

    def work() -> None:
        raise RetryLater("down")

    with pytest.raises(RetryLater, match="Stopped"):
        retry_until_stopped(work, wake)
