"""What a person is told, and when: nothing is lost, nothing comes too often, and at rest the person knows how things are."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.alerts.book import MOST_CONDITIONS, MOST_NONCES, Book, Message

HOUR = 3600.0
MISSED = ("missed_epoch", "topic 67")


def seen(messages: list[Message]) -> list[tuple[str, float, int]]:
    return [(message.event, message.at, message.held_back) for message in messages]


# Each step: at which second, what happens (miss or serve a nonce, a person is needed or not, time goes by).
TABLE = {
    "an alarm and its end": (
        [(0, "miss", 1), (60, "serve", 2)],
        [("alarm", 0, 0), ("recovery", 60, 0)],
    ),
    "served all along says nothing": ([(0, "serve", 1), (3600, "serve", 2)], []),
    "the same epoch is one alarm": ([(0, "miss", 1), (9000, "miss", 1), (18000, "miss", 1)], [("alarm", 0, 0)]),
    "a second alarm within the hour waits for its end": (
        [(0, "miss", 1), (600, "miss", 2), (1200, "miss", 3), (3600, "tick", 0)],
        [("alarm", 0, 0), ("alarm", 3600, 1)],
    ),
    "the recovery comes at once and tells what was held back": (
        [(0, "miss", 1), (600, "miss", 2), (700, "serve", 3)],
        [("alarm", 0, 0), ("recovery", 700, 1)],
    ),
    "an epoch served before the one that was missed is no recovery": (
        [(0, "miss", 5), (10, "serve", 4)],
        [("alarm", 0, 0)],
    ),
    "a miss that came and went between two messages is told late, not never": (
        [(0, "miss", 1), (10, "serve", 2), (20, "miss", 3), (30, "serve", 4), (3599, "tick", 0), (3600, "tick", 0)],
        [("alarm", 0, 0), ("recovery", 10, 0), ("recovery", 3600, 1)],
    ),
    "a miss each hour is an alarm each hour": (
        [(0, "miss", 1), (3600, "miss", 2), (7200, "miss", 3), (10800, "serve", 4)],
        [("alarm", 0, 0), ("alarm", 3600, 0), ("alarm", 7200, 0), ("recovery", 10800, 0)],
    ),
    "a recovery does not put the next alarm off": (
        [(0, "miss", 1), (3000, "serve", 2), (3600, "miss", 3)],
        [("alarm", 0, 0), ("recovery", 3000, 0), ("alarm", 3600, 0)],
    ),
    "a clock that was put back does not mute": (
        [(90_000, "miss", 1), (3600, "miss", 2)],
        [("alarm", 90_000, 0), ("alarm", 3600, 0)],
    ),
}


@pytest.mark.parametrize(("steps", "expected"), TABLE.values(), ids=TABLE.keys())
def test_what_is_told_and_when(steps: list[tuple[float, str, int]], expected: list[tuple[str, float, int]]) -> None:
    book, told = Book(HOUR), []
    for at, step, nonce in steps:
        book, messages = play(book, step, nonce, at)
        told += messages
    assert seen(told) == expected


def play(book: Book, step: str, nonce: int, now: float) -> tuple[Book, list[Message]]:
    if step == "tick":
        return book.due(now)
    if step == "miss":
        book, message = book.alarm(MISSED, f"missed {nonce}", now, nonce=nonce)
    elif step == "serve":
        book, message = book.recovery(MISSED, f"served {nonce}", now, nonce=nonce)
    elif step == "raise":
        book, message = book.alarm(("needs_human", "topic 67"), "a person", now)
    else:
        book, message = book.recovery(("needs_human", "topic 67"), "no person", now)
    return book, [message] if message else []


steps = st.lists(
    st.tuples(
        st.floats(0, 2 * HOUR),  # seconds since the step before
        st.sampled_from(["miss", "serve", "raise", "lower", "tick"]),
        st.booleans(),  # whether what is told now reaches the person
    ),
    max_size=40,
)


@given(steps)
def test_no_alarm_is_lost_and_none_comes_too_early_and_at_rest_the_person_knows(
    steps: list[tuple[float, str, bool]],
) -> None:
    book, now, raised = Book(HOUR), 0.0, 0
    state = {"missed_epoch": False, "needs_human": False}
    told: list[Message] = []  # what reached the person
    for nonce, (pause, step, reached) in enumerate(steps):
        now += pause
        raised += step in {"miss", "raise"}
        state |= {"miss": {"missed_epoch": True}, "serve": {"missed_epoch": False}, "raise": {"needs_human": True},
                  "lower": {"needs_human": False}}.get(step, {})  # fmt: skip
        book, messages = play(book, step, nonce, now)
        for message in messages:
            if reached:
                told.append(message)
            else:
                book = book.undelivered(message, now)
    for _ in range(10):  # then everything gets through
        wait = book.wait(now)
        if wait is None:
            break
        now += max(wait, 0.01)  # as the thread does
        book, messages = book.due(now)
        told += messages
    assert book.wait(now) is None
    assert sum(message.alarms for message in told) == raised
    for kind in state:
        mine = [message for message in told if message.kind == kind]
        assert (mine[-1].event == "alarm" if mine else False) == state[kind]
        alarms = [message.at for message in mine if message.event == "alarm"]
        assert all(later - earlier >= 300 - 1e-6 for earlier, later in pairwise(alarms))


@given(steps)
def test_where_everything_gets_through_two_alarms_are_an_interval_apart(steps: list[tuple[float, str, bool]]) -> None:
    book, now, told = Book(HOUR), 0.0, list[Message]()
    for nonce, (pause, step, _) in enumerate(steps):
        now += pause
        book, messages = play(book, step, nonce, now)
        told += messages
    for kind in ("missed_epoch", "needs_human"):
        mine = [message for message in told if message.kind == kind]
        alarms = [message.at for message in mine if message.event == "alarm"]
        assert all(later - earlier >= HOUR - 1e-6 for earlier, later in pairwise(alarms))
        ends = [message for message in mine if message.event == "recovery"]
        told_of = [message for message in mine if message.event == "alarm" or message.held_back]
        assert len(ends) <= len(told_of)


@given(steps)
def test_a_crash_before_delivery_leaves_everything_to_be_told(steps: list[tuple[float, str, bool]]) -> None:
    book, now, waiting, raised = Book(HOUR), 0.0, list[Message](), 0
    for nonce, (pause, step, _) in enumerate(steps):
        now += pause
        raised += step in {"miss", "raise"}
        book, messages = play(book, step, nonce, now)
        waiting += messages
    after, told = book.unsaid(waiting).due(now)
    if raised:
        assert after.wait(now) is None
    assert sum(message.alarms for message in told) == raised


def test_a_message_stands_for_an_earlier_one_that_was_lost() -> None:
    book, first = Book(HOUR).alarm(MISSED, "missed 1", 0.0, nonce=1)
    book, _ = book.alarm(MISSED, "missed 2", 10.0, nonce=2)
    _, end = book.recovery(MISSED, "served 3", 20.0, nonce=3)
    assert first is not None
    assert end is not None
    assert (end.held_back, end.instead_of(first).held_back) == (1, 2)


def test_conditions_and_remembered_epochs_are_bounded() -> None:
    book = Book(HOUR)
    for number in range(MOST_CONDITIONS + 50):
        book, _ = book.alarm(("needs_human", f"topic {number}"), "a person", float(number))
    assert len(book.conditions) == MOST_CONDITIONS
    for nonce in range(MOST_NONCES + 50):
        book, _ = book.alarm(MISSED, "missed", float(nonce), nonce=nonce)
    assert len(book.conditions[MISSED].nonces) == MOST_NONCES
