"""The health of an endpoint: its state, and when it is called."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.endpoint_health import (
    HEIGHT_MAX_AGE_SECONDS,
    MAX_LAG,
    MAX_REST_SECONDS,
    PROBE_TIMEOUT_SECONDS,
    WRONG_CHAIN_REST_SECONDS,
    EndpointHealth,
    EndpointState,
)

UNTRIED = EndpointHealth()
HEALTHY = UNTRIED.record_success(0.02).record_height(1000, 10.0, 10.0)
FAILED = HEALTHY.record_failure("refused", 20.0)
PROBING = FAILED.start_probe(21.0)
WRONG_CHAIN = HEALTHY.record_wrong_chain("other-1", 20.0)


@pytest.mark.parametrize(
    ("health", "now", "state", "is_available", "needs_probe"),
    [
        (UNTRIED, 0.0, EndpointState.UNTRIED, True, True),
        (HEALTHY, 10.0, EndpointState.OK, True, False),
        (HEALTHY, 10.0 + HEIGHT_MAX_AGE_SECONDS, EndpointState.OK, True, False),
        (HEALTHY, 10.1 + HEIGHT_MAX_AGE_SECONDS, EndpointState.OK, True, True),
        (UNTRIED.record_success(0.02), 0.0, EndpointState.OK, True, True),
        (FAILED, 20.9, EndpointState.QUARANTINED, False, False),
        (FAILED, 21.0, EndpointState.QUARANTINED, False, True),
        (PROBING, 21.0, EndpointState.PROBING, False, False),
        (PROBING, 21.0 + PROBE_TIMEOUT_SECONDS, EndpointState.PROBING, False, True),
        (PROBING.record_success(0.02), 22.0, EndpointState.OK, True, False),
        (PROBING.record_failure("refused", 22.0), 23.9, EndpointState.QUARANTINED, False, False),
        (PROBING.record_failure("refused", 22.0), 24.0, EndpointState.QUARANTINED, False, True),
        (WRONG_CHAIN, 20.0, EndpointState.WRONG_CHAIN, False, False),
        (WRONG_CHAIN, 20.0 + WRONG_CHAIN_REST_SECONDS, EndpointState.WRONG_CHAIN, False, True),
        (
            WRONG_CHAIN.start_probe(320.0).record_failure("refused", 321.0),
            400.0,
            EndpointState.WRONG_CHAIN,
            False,
            False,
        ),
        (WRONG_CHAIN.start_probe(320.0).record_success(0.02), 321.0, EndpointState.OK, True, True),
    ],
)
def test_health_state_availability_and_probe(
    health: EndpointHealth, now: float, state: EndpointState, is_available: bool, needs_probe: bool
) -> None:
    assert health.state([health]) is state
    assert health.is_available is is_available
    assert health.needs_probe(now) is needs_probe


def test_health_failed_probes_double_the_rest_up_to_a_limit() -> None:
    health, now, rests = UNTRIED, 0.0, []
    for _ in range(8):
        health = health.start_probe(now).record_failure("refused", now)
        assert health.rest_until is not None
        rests.append(health.rest_until - now)
        now = health.rest_until
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, MAX_REST_SECONDS, MAX_REST_SECONDS, MAX_REST_SECONDS]
    assert health.streak == 8


def test_health_simultaneous_failures_count_once() -> None:
    health = HEALTHY
    for _ in range(20):
        health = health.record_failure("refused", 20.0)
    assert health.rest_until == FAILED.rest_until
    assert health.streak == 20


def test_health_success_clears_the_failure() -> None:
    assert FAILED.error == "refused"
    assert "other-1" in WRONG_CHAIN.error
    for health in (FAILED, PROBING, WRONG_CHAIN):
        back = health.record_success(0.02)
        assert (back.is_available, back.streak, back.error, back.wrong_chain) == (True, 0, "", None)


@pytest.mark.parametrize(
    ("mine", "other", "behind"),
    [
        (HEALTHY, HEALTHY.record_height(1000 + MAX_LAG, 10.0, 10.0), False),
        (HEALTHY, HEALTHY.record_height(1001 + MAX_LAG, 10.0, 10.0), True),
        (HEALTHY, HEALTHY.record_height(500, 10.0, 10.0), False),
        (HEALTHY, HEALTHY.record_height(1500, 10.0, 12.0), True),
        # Read much later than the other height, so it may well be higher.
        (HEALTHY, HEALTHY.record_height(1500, 25.0, 25.0), False),
        (HEALTHY.record_height(1000, 30.0, 30.0), HEALTHY.record_height(1500, 25.0, 25.0), True),
        # Its height has expired, so nothing is compared with it.
        (HEALTHY.record_height(1000, 700.0, 700.0), HEALTHY.record_height(1500, 25.0, 25.0), False),
        (HEALTHY, HEALTHY.record_height(1500, 10.0, 10.0).record_wrong_chain("other-1", 11.0), False),
        (HEALTHY, replace(HEALTHY, height=1500).record_wrong_chain("other-1", 11.0).record_success(0.1), False),
        (UNTRIED, HEALTHY, False),
        (HEALTHY, UNTRIED, False),
    ],
)
def test_health_lag_is_measured_against_known_heights(
    mine: EndpointHealth, other: EndpointHealth, behind: bool
) -> None:
    assert mine.is_behind([mine, other]) is behind
    assert (mine.record_success(0.1).state([mine, other]) is EndpointState.BEHIND) is behind


def test_health_small_latency_differences_keep_the_order() -> None:
    ranks = [UNTRIED.record_success(latency).rank for latency in (0.0, 0.01, 0.049, 0.06, 0.12, 0.5, 3.0)]
    assert ranks[:3] == [0, 0, 0]
    assert ranks == sorted(ranks)
    assert ranks[3] < ranks[4] < ranks[5] < ranks[6]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ok", "failed", "wrong", "probe", "height"]), st.floats(0.0, 100.0)), max_size=40
)


def _after_events(events: list[tuple[str, float]]) -> tuple[EndpointHealth, float]:
    """An endpoint after a history of events, and the time of the last event."""
    health, now = UNTRIED, 0.0
    for kind, wait in events:
        now += wait
        match kind:
            case "ok":
                health = health.record_success(0.02)
            case "failed":
                health = health.record_failure("refused", now)
            case "wrong":
                health = health.record_wrong_chain("other-1", now)
            case "probe":
                health = health.start_probe(now) if health.needs_probe(now) else health
            case "height":
                health = health.record_height(int(now), now, now)
    return health, now


@given(EVENTS)
def test_health_any_history_is_probed_within_a_bound(events: list[tuple[str, float]]) -> None:
    health, now = _after_events(events)
    assert health.is_available or health.needs_probe(
        now + max(MAX_REST_SECONDS, PROBE_TIMEOUT_SECONDS, WRONG_CHAIN_REST_SECONDS)
    )
    if health.wrong_chain is None:
        assert health.is_available or health.needs_probe(now + max(MAX_REST_SECONDS, PROBE_TIMEOUT_SECONDS))


@given(EVENTS)
def test_health_one_good_probe_restores_any_endpoint(events: list[tuple[str, float]]) -> None:
    health, now = _after_events(events)
    back = health.start_probe(now).record_success(0.02).record_height(5, now, now)
    assert back.is_available
    assert back.state([back]) is EndpointState.OK
    assert not back.needs_probe(now)


@given(EVENTS, EVENTS)
def test_health_failure_or_wrong_chain_is_never_healthy(
    events: list[tuple[str, float]], more: list[tuple[str, float]]
) -> None:
    health, now = _after_events(events)
    assert not health.record_failure("refused", now).is_available
    assert not health.record_wrong_chain("other-1", now).is_available
    other, _ = _after_events(more)
    assert other.record_failure("refused", now).state([health]) is not EndpointState.OK


@given(EVENTS)
def test_health_probes_do_not_overlap(events: list[tuple[str, float]]) -> None:
    health, now = _after_events(events)
    probed = health.start_probe(now)
    assert health.is_available or not probed.needs_probe(now + PROBE_TIMEOUT_SECONDS / 2)
