"""Every bad row is refused with the code that its maker says: held against the fleet's own intake and window."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from forecastd.fleet.contract import NDJSON
from forecastd.fleet.grid import FleetWindow
from forecastd.fleet.intake import parse_feed
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.simulator.badrows import KINDS, bad_records
from forecastd.fleet.simulator.feeds import DUPLICATE, TAKEN, body, dues, plain_records, records
from forecastd.fleet.simulator.noise import keys
from forecastd.fleet.simulator.presence import Presence
from forecastd.fleet.simulator.tally import Tally

NOW = 359_000_000  # a tick of 5 s


def judged(found: Any, kind: Any) -> dict[str, Any]:
    text, content_type = body(found, kind)
    window = FleetWindow(5, 400, 100)
    window.advance(NOW - 1)
    answer = window.take(parse_feed(text, content_type, step=5), now=NOW * 5 + 1.0, max_skew=30.0)
    return answer.model_dump()


@pytest.mark.parametrize("kind", ["json", "ndjson"])
@pytest.mark.parametrize("name", KINDS)
def test_a_bad_row_is_refused_as_foreseen_and_costs_no_other(name: str, kind: Any) -> None:
    rows = Simulator(0, 20).rows(NOW)
    found = records(rows)
    chosen = [record for place, kind_of, record in many(plain_records(rows), kind) if kind_of == name][:5]
    if KINDS[name][0] == "not_json" and kind == "json":
        assert not chosen  # half a record would cost the whole body
        return
    assert chosen
    answer = judged([*found, *chosen], kind)
    tally = Tally()
    tally.note(dues([*found, *chosen]), answer, sent_again=False, past=False)
    assert tally.as_expected, tally.surprises
    assert answer["accepted"] == 20
    code = KINDS[name][0]
    assert (answer["duplicates"] if code == DUPLICATE else answer["counts"][code]) == len(chosen)


def many(plain: Any, kind: Any) -> list[Any]:
    return [one for seed in range(60) for one in bad_records(plain, 0.5, kind, seed)]


def test_about_the_share_that_is_asked_for_is_made_and_the_same_for_the_same_seed() -> None:
    plain = plain_records(Simulator(0, 500).rows(NOW))
    made = bad_records(plain, 0.2, "json", 7)
    assert 60 <= len(made) <= 140
    assert made == bad_records(plain, 0.2, "json", 7)
    assert made != bad_records(plain, 0.2, "json", 8)
    assert bad_records(plain, 0.0, "json", 7) == []


def test_what_is_written_is_what_the_fleet_reads() -> None:
    rows = Simulator(3, 30, "critical", start=NOW).rows(NOW)
    for kind in ("json", "ndjson"):
        text, content_type = body(records(rows), kind)
        assert (content_type == NDJSON) == (kind == "ndjson")
        read = parse_feed(text, content_type, step=5)
        assert (read.rows.servers, read.rows.profiles, read.rows.statuses) == (
            rows.servers,
            rows.profiles,
            rows.statuses,
        )
        assert read.rows.ticks.tolist() == [NOW] * 30
        assert abs(read.rows.values - rows.values).max() <= 1e-4
        assert read.refusals.total == 0


def an_answer(**more: Any) -> dict[str, Any]:
    return {"version": 1, "accepted": 10, "refused": 0, "duplicates": 0, "reasons": [], "counts": {}} | more


def refusal(code: str) -> dict[str, Any]:
    return {"row": 0, "server": "web-01", "reason": f"because of {code}", "code": code}


@pytest.mark.parametrize(
    ("due", "answer", "again", "past", "told"),
    [
        ({TAKEN: 10}, an_answer(), False, False, None),
        ({TAKEN: 10}, an_answer(accepted=0, duplicates=10), False, False, None),  # it was fed the same before
        ({TAKEN: 8, "nan": 2}, an_answer(accepted=8, refused=2, counts={"nan": 2}), False, False, None),
        ({TAKEN: 10}, an_answer(counts={"superseded": 3, "unknown_metric": 1}), False, False, None),  # notes, no refusals
        ({TAKEN: 8, DUPLICATE: 2}, an_answer(accepted=8, duplicates=2), False, False, None),
        ({TAKEN: 10}, an_answer(accepted=4, refused=6, counts={"old": 6}, reasons=[refusal("old")]), False, True, None),
        ({TAKEN: 6, DUPLICATE: 2, "nan": 2},
         an_answer(accepted=3, duplicates=1, refused=6, counts={"old": 5, "nan": 1},
                   reasons=[refusal("old"), refusal("nan")]), False, True, None),
        # and what is not as it should be
        ({TAKEN: 6, DUPLICATE: 4}, an_answer(accepted=8, refused=2, counts={"old": 2}, reasons=[refusal("old")]), False,
         True, "4 rows were sent twice, 0 were seen to be"),
        ({TAKEN: 8, "nan": 2}, an_answer(accepted=9, refused=1, counts={"old": 1}, reasons=[refusal("old")]), False, True,
         "2 rows were to be refused as nan, 0 were"),
        ({TAKEN: 10}, an_answer(accepted=9), False, False, "10 rows were good, 9 were taken"),
        ({TAKEN: 10}, an_answer(accepted=9, refused=1, counts={"servers": 1}, reasons=[refusal("servers")]), False, False,
         "because of servers"),
        ({TAKEN: 10}, an_answer(accepted=4, refused=6, counts={"old": 6}, reasons=[refusal("old")]), False, False,
         "0 rows were to be refused as old, 6 were"),
        ({TAKEN: 8, "nan": 2}, an_answer(), False, False, "2 rows were to be refused as nan, 0 were"),
        ({TAKEN: 8, DUPLICATE: 2}, an_answer(), False, False, "2 rows were sent twice, 0 were seen to be"),
        ({TAKEN: 8, DUPLICATE: 2}, an_answer(), True, False, None),
        ({TAKEN: 12}, an_answer(), False, False, "12 rows were sent, the answer speaks of 10"),
    ],
)  # fmt: skip
def test_an_answer_is_held_against_what_was_sent(
    due: dict[str, int], answer: dict[str, Any], again: bool, past: bool, told: str | None
) -> None:
    tally = Tally()
    tally.note(Counter(due), answer, sent_again=again, past=past)
    assert tally.as_expected is (told is None), tally.surprises
    if told is not None:
        assert told in tally.surprises
    assert tally.as_json()["rows"] == sum(due.values())


@pytest.mark.parametrize("answer", [{}, {"accepted": "many"}, an_answer(reasons=7), an_answer(counts={"nan": "x"})])
def test_what_is_no_answer_is_not_counted(answer: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Tally().note(Counter({TAKEN: 10}), answer, sent_again=False, past=False)


def test_surprises_are_told_once_and_not_without_end() -> None:
    tally = Tally()
    for count in range(200):
        tally.note(Counter({TAKEN: 10}), an_answer(accepted=count % 9), sent_again=False, past=False)
        tally.note(Counter({TAKEN: 1000 + count}), an_answer(), sent_again=False, past=False)
    assert tally.surprised == 400
    assert len(tally.surprises) == len(set(tally.surprises)) <= 20


def test_servers_leave_for_minutes_and_come_back_at_about_the_rate() -> None:
    presence = Presence(keys(0, 100), 2.0, 5)
    there = [presence.there(NOW + at) for at in range(7_200)]  # ten hours
    left = sum(int((before & ~after).sum()) for before, after in pairwise(there))
    assert 0.8 * 1_200 < left < 1.2 * 1_200
    assert all(one.any() for one in there)
    away = sum(int((~one).sum()) for one in there) / left  # ticks a time
    assert 12 <= away <= 120
    assert Presence(keys(0, 100), 0.0, 5).there(NOW).all()
    assert (presence.there(NOW + 77) == there[77]).all()  # without state
