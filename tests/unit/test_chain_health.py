"""What is known of an endpoint, and whether it is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.chain.health import (
    FRESH,
    LONGEST_REST,
    MAX_LAG,
    PROBE_LOST,
    WRONG_CHAIN_REST,
    Health,
    Standing,
)

NEW = Health()
GOOD = NEW.ok(0.02).at(1000, 10.0, 10.0)
DOWN = GOOD.failed("refused", 20.0)
PROBED = DOWN.probe(21.0)
ELSEWHERE = GOOD.on_chain("other-1", 20.0)


@pytest.mark.parametrize(
    ("health", "now", "standing", "closed", "wants_probe"),
    [
        (NEW, 0.0, Standing.UNTRIED, True, True),
        (GOOD, 10.0, Standing.OK, True, False),
        (GOOD, 10.0 + FRESH, Standing.OK, True, False),
        (GOOD, 10.1 + FRESH, Standing.OK, True, True),
        (NEW.ok(0.02), 0.0, Standing.OK, True, True),
        (DOWN, 20.9, Standing.QUARANTINED, False, False),
        (DOWN, 21.0, Standing.QUARANTINED, False, True),
        (PROBED, 21.0, Standing.PROBING, False, False),
        (PROBED, 21.0 + PROBE_LOST, Standing.PROBING, False, True),
        (PROBED.ok(0.02), 22.0, Standing.OK, True, False),
        (PROBED.failed("refused", 22.0), 23.9, Standing.QUARANTINED, False, False),
        (PROBED.failed("refused", 22.0), 24.0, Standing.QUARANTINED, False, True),
        (ELSEWHERE, 20.0, Standing.WRONG_CHAIN, False, False),
        (ELSEWHERE, 20.0 + WRONG_CHAIN_REST, Standing.WRONG_CHAIN, False, True),
        (ELSEWHERE.probe(320.0).failed("refused", 321.0), 400.0, Standing.WRONG_CHAIN, False, False),
        (ELSEWHERE.probe(320.0).ok(0.02), 321.0, Standing.OK, True, True),
    ],
)
def test_where_an_endpoint_stands(
    health: Health, now: float, standing: Standing, closed: bool, wants_probe: bool
) -> None:
    assert health.standing([health]) is standing
    assert health.closed is closed
    assert health.wants_probe(now) is wants_probe


def test_each_failed_probe_doubles_the_rest_up_to_a_limit() -> None:
    health, now, rests = NEW, 0.0, []
    for _ in range(8):
        health = health.probe(now).failed("refused", now)
        assert health.rests_until is not None
        rests.append(health.rests_until - now)
        now = health.rests_until
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, LONGEST_REST, LONGEST_REST, LONGEST_REST]
    assert health.streak == 8


def test_many_calls_that_fail_together_count_as_one_failure() -> None:
    health = GOOD
    for _ in range(20):
        health = health.failed("refused", 20.0)
    assert health.rests_until == DOWN.rests_until
    assert health.streak == 20


def test_an_answer_ends_whatever_stood_against_an_endpoint_but_the_error_of_the_day_stays_visible_until_then() -> None:
    assert DOWN.error == "refused"
    assert "other-1" in ELSEWHERE.error
    for health in (DOWN, PROBED, ELSEWHERE):
        back = health.ok(0.02)
        assert (back.closed, back.streak, back.error, back.wrong_chain) == (True, 0, "", None)


@pytest.mark.parametrize(
    ("mine", "other", "behind"),
    [
        (GOOD, GOOD.at(1000 + MAX_LAG, 10.0, 10.0), False),
        (GOOD, GOOD.at(1001 + MAX_LAG, 10.0, 10.0), True),
        (GOOD, GOOD.at(500, 10.0, 10.0), False),
        (GOOD, GOOD.at(1500, 10.0, 12.0), True),
        # Read much later than mine: no wonder that it is higher.
        (GOOD, GOOD.at(1500, 25.0, 25.0), False),
        (GOOD.at(1000, 30.0, 30.0), GOOD.at(1500, 25.0, 25.0), True),
        # Not heard from for longer than anybody is measured against it.
        (GOOD.at(1000, 700.0, 700.0), GOOD.at(1500, 25.0, 25.0), False),
        (GOOD, GOOD.at(1500, 10.0, 10.0).on_chain("other-1", 11.0), False),
        (GOOD, replace(GOOD, height=1500).on_chain("other-1", 11.0).ok(0.1), False),
        (NEW, GOOD, False),
        (GOOD, NEW, False),
    ],
)
def test_behind_is_who_lags_what_was_known_when_it_was_asked(mine: Health, other: Health, behind: bool) -> None:
    assert mine.behind([mine, other]) is behind
    assert (mine.ok(0.1).standing([mine, other]) is Standing.BEHIND) is behind


def test_small_differences_of_latency_do_not_reorder_endpoints() -> None:
    ranks = [NEW.ok(latency).rank for latency in (0.0, 0.01, 0.049, 0.06, 0.12, 0.5, 3.0)]
    assert ranks[:3] == [0, 0, 0]
    assert ranks == sorted(ranks)
    assert ranks[3] < ranks[4] < ranks[5] < ranks[6]


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ok", "failed", "wrong", "probe", "height"]), st.floats(0.0, 100.0)), max_size=40
)


def _lived(events: list[tuple[str, float]]) -> tuple[Health, float]:
    """An endpoint after a history, and the time of its end."""
    health, now = NEW, 0.0
    for kind, wait in events:
        now += wait
        match kind:
            case "ok":
                health = health.ok(0.02)
            case "failed":
                health = health.failed("refused", now)
            case "wrong":
                health = health.on_chain("other-1", now)
            case "probe":
                health = health.probe(now) if health.wants_probe(now) else health
            case "height":
                health = health.at(int(now), now, now)
    return health, now


@given(EVENTS)
def test_whatever_happened_an_endpoint_is_asked_again_within_a_bounded_time(events: list[tuple[str, float]]) -> None:
    health, now = _lived(events)
    assert health.closed or health.wants_probe(now + max(LONGEST_REST, PROBE_LOST, WRONG_CHAIN_REST))
    if health.wrong_chain is None:
        assert health.closed or health.wants_probe(now + max(LONGEST_REST, PROBE_LOST))


@given(EVENTS)
def test_one_good_answer_to_a_probe_brings_any_endpoint_back(events: list[tuple[str, float]]) -> None:
    health, now = _lived(events)
    back = health.probe(now).ok(0.02).at(5, now, now)
    assert back.closed
    assert back.standing([back]) is Standing.OK
    assert not back.wants_probe(now)


@given(EVENTS, EVENTS)
def test_a_failure_or_a_wrong_chain_is_never_taken_for_health(
    events: list[tuple[str, float]], more: list[tuple[str, float]]
) -> None:
    health, now = _lived(events)
    assert not health.failed("refused", now).closed
    assert not health.on_chain("other-1", now).closed
    other, _ = _lived(more)
    assert other.failed("refused", now).standing([health]) is not Standing.OK


@given(EVENTS)
def test_probes_do_not_overlap(events: list[tuple[str, float]]) -> None:
    health, now = _lived(events)
    probed = health.probe(now)
    assert health.closed or not probed.wants_probe(now + PROBE_LOST / 2)
