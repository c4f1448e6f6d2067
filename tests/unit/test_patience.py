"""Trying again: as long as there is time, and never past a stop."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from forecastd import patience
from forecastd.errors import NeedsHuman, RetryLater, SkipEpoch
from forecastd.patience import again_while


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE", 0.0)


def failing(*errors: Exception) -> Iterator[Exception]:
    yield from errors


@pytest.mark.parametrize("error", [RetryLater("later"), SkipEpoch("stale", check="stale")])
def test_what_fails_for_a_passing_reason_is_done_again(error: Exception) -> None:
    errors = failing(error, error, error)

    def work() -> str:
        for failure in errors:
            raise failure
        return "done"

    assert again_while(lambda: True, work, Event()) == "done"


@pytest.mark.parametrize(("left", "tried"), [([True, True, True, True, False], 3), ([True, True, True, False], 2)])
def test_without_time_left_after_a_failure_or_after_a_pause_the_failure_is_the_answer(
    left: list[bool], tried: int
) -> None:
    told, tries = iter(left), []

    def work() -> None:
        tries.append(1)
        raise RetryLater("down")

    with pytest.raises(RetryLater, match="down"):
        again_while(lambda: next(told), work, Event())
    assert len(tries) == tried


def test_what_needs_a_person_is_not_done_again() -> None:
    def work() -> None:
        raise NeedsHuman("no model")

    with pytest.raises(NeedsHuman):
        again_while(lambda: True, work, Event())


def test_a_stop_ends_the_waiting() -> None:
    wake = Event()
    wake.set()

    def work() -> None:
        raise RetryLater("down")

    with pytest.raises(RetryLater, match="Stopped"):
        again_while(lambda: True, work, wake)
