"""Bad rows are refused with their code by the fleet's own ingest; tallies and presence of a simulation."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from forecastd.fleet.contract import NDJSON
from forecastd.fleet.ingest.feed import parse_feed
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.simulator.feeds import (
    ACCEPTED,
    BAD_ROW_KINDS,
    DUPLICATE,
    bad_records,
    count_expected,
    encode_body,
    encode_records,
    to_plain_records,
)
from forecastd.fleet.simulator.noise import keys
from forecastd.fleet.simulator.simulation import PresenceModel, SimulationTally
from forecastd.fleet.window.window import FleetWindow

NOW = 359_000_000  # a tick of 5 s


def parse_records(encoded: Any, kind: Any) -> dict[str, Any]:
    text, content_type = encode_body(encoded, kind)
    window = FleetWindow(5, 400, 100)
    window.advance(NOW - 1)
    response = window.ingest(parse_feed(text, content_type, step=5), now=NOW * 5 + 1.0, max_skew=30.0)
    return response.model_dump()


@pytest.mark.parametrize("kind", ["json", "ndjson"])
@pytest.mark.parametrize("name", BAD_ROW_KINDS)
def test_bad_row_is_refused_with_its_code_alone(name: str, kind: Any) -> None:
    rows = Simulator(0, 20).rows(NOW)
    encoded = encode_records(to_plain_records(rows))
    picked = [
        record for index, record_kind, record in make_bad_records(to_plain_records(rows), kind) if record_kind == name
    ][:5]
    if BAD_ROW_KINDS[name][0] == "not_json" and kind == "json":
        assert not picked  # a truncated record would invalidate the whole body
        return
    assert picked
    response = parse_records([*encoded, *picked], kind)
    tally = SimulationTally()
    tally.record(count_expected([*encoded, *picked]), response, resent=False, is_past=False)
    assert tally.as_expected, tally.mismatches
    assert response["accepted"] == 20
    code = BAD_ROW_KINDS[name][0]
    assert (response["duplicates"] if code == DUPLICATE else response["counts"][code]) == len(picked)


def make_bad_records(plain: Any, kind: Any) -> list[Any]:
    return [record for seed in range(60) for record in bad_records(plain, 0.5, kind, seed)]


def test_bad_rows_match_share_and_repeat_with_seed() -> None:
    plain = to_plain_records(Simulator(0, 500).rows(NOW))
    bad_rows = bad_records(plain, 0.2, "json", 7)
    assert 60 <= len(bad_rows) <= 140
    assert bad_rows == bad_records(plain, 0.2, "json", 7)
    assert bad_rows != bad_records(plain, 0.2, "json", 8)
    assert bad_records(plain, 0.0, "json", 7) == []


def test_encoded_records_parse_to_same_rows() -> None:
    rows = Simulator(3, 30, "critical", start=NOW).rows(NOW)
    for kind in ("json", "ndjson"):
        text, content_type = encode_body(encode_records(to_plain_records(rows)), kind)
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


def respond(**fields: Any) -> dict[str, Any]:
    return {"version": 1, "accepted": 10, "refused": 0, "duplicates": 0, "reasons": [], "counts": {}} | fields


def refusal(code: str) -> dict[str, Any]:
    return {"row": 0, "server": "web-01", "reason": f"because of {code}", "code": code}


@pytest.mark.parametrize(
    ("expected", "response", "resent", "is_past", "mismatches"),
    [
        ({ACCEPTED: 10}, respond(), False, False, None),
        ({ACCEPTED: 10}, respond(accepted=0, duplicates=10), False, False, None),  # sent before
        ({ACCEPTED: 8, "nan": 2}, respond(accepted=8, refused=2, counts={"nan": 2}), False, False, None),
        ({ACCEPTED: 10}, respond(counts={"superseded": 3, "unknown_metric": 1}), False, False, None),  # notes only
        ({ACCEPTED: 8, DUPLICATE: 2}, respond(accepted=8, duplicates=2), False, False, None),
        ({ACCEPTED: 10}, respond(accepted=4, refused=6, counts={"old": 6}, reasons=[refusal("old")]), False, True, None),
        ({ACCEPTED: 6, DUPLICATE: 2, "nan": 2},
         respond(accepted=3, duplicates=1, refused=6, counts={"old": 5, "nan": 1},
                   reasons=[refusal("old"), refusal("nan")]), False, True, None),
        # mismatches
        ({ACCEPTED: 6, DUPLICATE: 4}, respond(accepted=8, refused=2, counts={"old": 2}, reasons=[refusal("old")]), False,
         True, "4 rows were sent twice, 0 were counted as duplicates"),
        ({ACCEPTED: 8, "nan": 2}, respond(accepted=9, refused=1, counts={"old": 1}, reasons=[refusal("old")]), False, True,
         "2 rows should have been refused as nan, 0 were"),
        ({ACCEPTED: 10}, respond(accepted=9), False, False, "10 rows were valid, 9 were accepted"),
        ({ACCEPTED: 10}, respond(accepted=9, refused=1, counts={"servers": 1}, reasons=[refusal("servers")]), False, False,
         "because of servers"),
        ({ACCEPTED: 10}, respond(accepted=4, refused=6, counts={"old": 6}, reasons=[refusal("old")]), False, False,
         "0 rows should have been refused as old, 6 were"),
        ({ACCEPTED: 8, "nan": 2}, respond(), False, False, "2 rows should have been refused as nan, 0 were"),
        ({ACCEPTED: 8, DUPLICATE: 2}, respond(), False, False, "2 rows were sent twice, 0 were counted as duplicates"),
        ({ACCEPTED: 8, DUPLICATE: 2}, respond(), True, False, None),
        ({ACCEPTED: 12}, respond(), False, False, "12 rows were sent, the response counts 10"),
    ],
)  # fmt: skip
def test_tally_compares_response_with_expected(
    expected: dict[str, int], response: dict[str, Any], resent: bool, is_past: bool, mismatches: str | None
) -> None:
    tally = SimulationTally()
    tally.record(Counter(expected), response, resent=resent, is_past=is_past)
    assert tally.as_expected is (mismatches is None), tally.mismatches
    if mismatches is not None:
        assert mismatches in tally.mismatches
    assert tally.as_json()["rows"] == sum(expected.values())


@pytest.mark.parametrize("response", [{}, {"accepted": "many"}, respond(reasons=7), respond(counts={"nan": "x"})])
def test_tally_invalid_response_is_not_counted(response: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        SimulationTally().record(Counter({ACCEPTED: 10}), response, resent=False, is_past=False)


def test_mismatches_are_listed_once_and_bounded() -> None:
    tally = SimulationTally()
    for count in range(200):
        tally.record(Counter({ACCEPTED: 10}), respond(accepted=count % 9), resent=False, is_past=False)
        tally.record(Counter({ACCEPTED: 1000 + count}), respond(), resent=False, is_past=False)
    assert tally.mismatched_feeds == 400
    assert len(tally.mismatches) == len(set(tally.mismatches)) <= 20


def test_presence_absences_match_rate() -> None:
    model = PresenceModel(keys(0, 100), 2.0, 5)
    presence_rows = [model.present(NOW + offset) for offset in range(7_200)]  # ten hours
    departures = sum(int((previous & ~current).sum()) for previous, current in pairwise(presence_rows))
    assert 0.8 * 1_200 < departures < 1.2 * 1_200
    assert all(row.any() for row in presence_rows)
    mean_absence = sum(int((~row).sum()) for row in presence_rows) / departures  # ticks per absence
    assert 12 <= mean_absence <= 120
    assert PresenceModel(keys(0, 100), 0.0, 5).present(NOW).all()
    assert (model.present(NOW + 77) == presence_rows[77]).all()  # without state
