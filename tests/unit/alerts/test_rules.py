"""When messages are sent: none is lost, none is too early, and the last one describes the current state."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.alerts.rules import MAX_CONDITIONS, MAX_NONCES, AlertMessage, AlertState

HOUR = 3600.0
MISSED = ("missed_epoch", "topic 67")


def events_of(messages: list[AlertMessage]) -> list[tuple[str, float, int]]:
    return [(message.event, message.sent_at, message.suppressed) for message in messages]


# Each step: the second, the event (miss or serve a nonce, raise or lower the need for a person, tick), and the nonce.
TABLE = {
    "fire-resolve": (
        [(0, "miss", 1), (60, "serve", 2)],
        [("firing", 0, 0), ("resolved", 60, 0)],
    ),
    "never-missed": ([(0, "serve", 1), (3600, "serve", 2)], []),
    "same-epoch-once": ([(0, "miss", 1), (9000, "miss", 1), (18000, "miss", 1)], [("firing", 0, 0)]),
    "second-alert-waits": (
        [(0, "miss", 1), (600, "miss", 2), (1200, "miss", 3), (3600, "tick", 0)],
        [("firing", 0, 0), ("firing", 3600, 1)],
    ),
    "resolved-counts-suppressed": (
        [(0, "miss", 1), (600, "miss", 2), (700, "serve", 3)],
        [("firing", 0, 0), ("resolved", 700, 1)],
    ),
    "older-epoch-does-not-resolve": (
        [(0, "miss", 5), (10, "serve", 4)],
        [("firing", 0, 0)],
    ),
    "short-miss-is-sent-late": (
        [(0, "miss", 1), (10, "serve", 2), (20, "miss", 3), (30, "serve", 4), (3599, "tick", 0), (3600, "tick", 0)],
        [("firing", 0, 0), ("resolved", 10, 0), ("resolved", 3600, 1)],
    ),
    "miss-every-hour": (
        [(0, "miss", 1), (3600, "miss", 2), (7200, "miss", 3), (10800, "serve", 4)],
        [("firing", 0, 0), ("firing", 3600, 0), ("firing", 7200, 0), ("resolved", 10800, 0)],
    ),
    "resolved-does-not-delay": (
        [(0, "miss", 1), (3000, "serve", 2), (3600, "miss", 3)],
        [("firing", 0, 0), ("resolved", 3000, 0), ("firing", 3600, 0)],
    ),
    "clock-set-back": (
        [(90_000, "miss", 1), (3600, "miss", 2)],
        [("firing", 90_000, 0), ("firing", 3600, 0)],
    ),
}


@pytest.mark.parametrize(("steps", "expected"), TABLE.values(), ids=TABLE.keys())
def test_message_sequence(steps: list[tuple[float, str, int]], expected: list[tuple[str, float, int]]) -> None:
    alert_state, sent = AlertState(HOUR), []
    for expected_time, step, nonce in steps:
        alert_state, messages = run_steps(alert_state, step, nonce, expected_time)
        sent += messages
    assert events_of(sent) == expected


def run_steps(alert_state: AlertState, step: str, nonce: int, now: float) -> tuple[AlertState, list[AlertMessage]]:
    if step == "tick":
        return alert_state.take_due_messages(now)
    if step == "miss":
        alert_state, message = alert_state.fire(MISSED, f"missed {nonce}", now, nonce=nonce)
    elif step == "serve":
        alert_state, message = alert_state.resolve(MISSED, f"served {nonce}", now, nonce=nonce)
    elif step == "raise":
        alert_state, message = alert_state.fire(("needs_human", "topic 67"), "a person", now)
    else:
        alert_state, message = alert_state.resolve(("needs_human", "topic 67"), "no person", now)
    return alert_state, [message] if message else []


steps = st.lists(
    st.tuples(
        st.floats(0, 2 * HOUR),  # seconds since the step before
        st.sampled_from(["miss", "serve", "raise", "lower", "tick"]),
        st.booleans(),  # whether a message of this step is delivered
    ),
    max_size=40,
)


@given(steps)
def test_no_alert_is_lost_or_early_and_the_final_state_is_sent(
    steps: list[tuple[float, str, bool]],
) -> None:
    alert_state, now, raised = AlertState(HOUR), 0.0, 0
    state = {"missed_epoch": False, "needs_human": False}
    notified: list[AlertMessage] = []  # the delivered messages
    for nonce, (pause, step, reached) in enumerate(steps):
        now += pause
        raised += step in {"miss", "raise"}
        state |= {"miss": {"missed_epoch": True}, "serve": {"missed_epoch": False}, "raise": {"needs_human": True},
                  "lower": {"needs_human": False}}.get(step, {})  # fmt: skip
        alert_state, messages = run_steps(alert_state, step, nonce, now)
        for message in messages:
            if reached:
                notified.append(message)
            else:
                alert_state = alert_state.mark_undelivered(message, now)
    for _ in range(10):  # then everything is delivered
        wait = alert_state.seconds_until_due(now)
        if wait is None:
            break
        now += max(wait, 0.01)  # as the thread does
        alert_state, messages = alert_state.take_due_messages(now)
        notified += messages
    assert alert_state.seconds_until_due(now) is None
    assert sum(message.alert_count for message in notified) == raised
    for kind in state:
        own = [message for message in notified if message.kind == kind]
        assert (own[-1].event == "firing" if own else False) == state[kind]
        alert_times = [message.sent_at for message in own if message.event == "firing"]
        assert all(later - earlier >= 300 - 1e-6 for earlier, later in pairwise(alert_times))


@given(steps)
def test_delivered_alerts_are_an_interval_apart(steps: list[tuple[float, str, bool]]) -> None:
    alert_state, now, notified = AlertState(HOUR), 0.0, list[AlertMessage]()
    for nonce, (pause, step, _) in enumerate(steps):
        now += pause
        alert_state, messages = run_steps(alert_state, step, nonce, now)
        notified += messages
    for kind in ("missed_epoch", "needs_human"):
        own = [message for message in notified if message.kind == kind]
        alert_times = [message.sent_at for message in own if message.event == "firing"]
        assert all(later - earlier >= HOUR - 1e-6 for earlier, later in pairwise(alert_times))
        resolutions = [message for message in own if message.event == "resolved"]
        announcements = [message for message in own if message.event == "firing" or message.suppressed]
        assert len(resolutions) <= len(announcements)


@given(steps)
def test_crash_before_delivery_leaves_every_message_pending(steps: list[tuple[float, str, bool]]) -> None:
    alert_state, now, queued, raised = AlertState(HOUR), 0.0, list[AlertMessage](), 0
    for nonce, (pause, step, _) in enumerate(steps):
        now += pause
        raised += step in {"miss", "raise"}
        alert_state, messages = run_steps(alert_state, step, nonce, now)
        queued += messages
    after, notified = alert_state.without_messages(queued).take_due_messages(now)
    if raised:
        assert after.seconds_until_due(now) is None
    assert sum(message.alert_count for message in notified) == raised


def test_message_absorbs_an_undelivered_one() -> None:
    alert_state, first = AlertState(HOUR).fire(MISSED, "missed 1", 0.0, nonce=1)
    alert_state, _ = alert_state.fire(MISSED, "missed 2", 10.0, nonce=2)
    _, end = alert_state.resolve(MISSED, "served 3", 20.0, nonce=3)
    assert first is not None
    assert end is not None
    assert (end.suppressed, end.absorb(first).suppressed) == (1, 2)


def test_conditions_and_nonces_are_bounded() -> None:
    alert_state = AlertState(HOUR)
    for number in range(MAX_CONDITIONS + 50):
        alert_state, _ = alert_state.fire(("needs_human", f"topic {number}"), "a person", float(number))
    assert len(alert_state.conditions) == MAX_CONDITIONS
    for nonce in range(MAX_NONCES + 50):
        alert_state, _ = alert_state.fire(MISSED, "missed", float(nonce), nonce=nonce)
    assert len(alert_state.conditions[MISSED].nonces) == MAX_NONCES
