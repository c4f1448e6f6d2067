"""A status reads back as it was written, rejects anything else, and counts cycles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.ledger.outcome import Outcome
from forecastd.status import model
from forecastd.status.model import MAX_LAST_OUTCOMES, VERSION, DaemonStatus, MeasurementSummary, TopicStatus

NOW = 1_790_000_000.0
numbers = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(0, 2**63)
words = st.text(max_size=20)


def strategy_for(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type; derived from the type, so that new fields are covered too."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{argument.name: strategy_for(hints[argument.name]) for argument in fields(kind)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return st.lists(strategy_for(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(words, strategy_for(arguments[1]), max_size=3)
    if origin is Literal:
        return st.sampled_from(arguments)
    if arguments:
        return st.one_of(*(strategy_for(argument) for argument in arguments))
    built = {int: whole, float: numbers, str: words, bool: st.booleans(), type(None): st.none()}
    return built[kind]


statuses = strategy_for(DaemonStatus)
outcomes = st.builds(
    Outcome,
    outcome=st.sampled_from(["submitted", "already_submitted", "skipped", "missed", "failed"]),
    check=st.sampled_from([None, "stale", "bounds"]),
    nonce=st.none() | st.integers(1, 100),
    height=st.none() | st.integers(100, 200),
    stages=st.dictionaries(st.sampled_from(["chain", "data", "model"]), st.floats(0, 100)),
)


@given(statuses)
def test_status_round_trip_is_identical(status: DaemonStatus) -> None:
    assert DaemonStatus.from_json(status.to_json()) == status
    assert DaemonStatus.from_json(json.dumps(status.to_dict())) == status


def as_plain_json() -> dict[str, Any]:
    status = DaemonStatus(1, NOW, NOW, 0.0, "daemon", "running", "local", topics=(TopicStatus(67),))
    return status.to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"pid": "1"},
        {"pid": None},
        {"pid": 1.5},
        {"state": "asleep"},
        {"unknown": 1},
        {"topics": [{}]},
        {"topics": [{"topic_id": 67, "unknown": 1}]},
        {"topics": {"topic_id": 67}},
        {"written_at": float("nan")},
    ],
)
def test_invalid_status_is_rejected_by_field(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        DaemonStatus.from_json(json.dumps(as_plain_json() | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, b"\xff\xfe", '{"version": 1}'])
def test_non_object_is_rejected(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|object|required|utf-8"):
        DaemonStatus.from_json(text)


@given(st.lists(outcomes, max_size=30))
def test_cycles_are_counted_and_only_the_latest_are_kept(records: list[Outcome]) -> None:
    topic = TopicStatus(67)
    for number, outcome in enumerate(records):
        topic = topic.with_outcome(outcome, NOW + number)
    assert topic.cycles == len(records) == sum(record.count for record in topic.outcomes)
    assert len({(record.outcome, record.check) for record in topic.outcomes}) == len(topic.outcomes)
    assert topic.submitted == sum(record.outcome == "submitted" for record in records)
    assert topic.missed == sum(record.outcome == "missed" for record in records)
    assert [record.ended_at for record in topic.last_outcomes] == [NOW + n for n in reversed(range(len(records)))][
        :MAX_LAST_OUTCOMES
    ]
    for stage, total in topic.stages.items():
        total_seconds = [record.stages[stage] for record in records if stage in record.stages]
        assert (total.count, total.max) == (len(total_seconds), max(total_seconds))
        assert total.sum == pytest.approx(sum(total_seconds))
    submissions = [
        record.nonce
        for record in records
        if record.outcome in {"submitted", "already_submitted"} and record.nonce is not None
    ]
    assert topic.confirmed_nonce == max(submissions, default=None)


def test_submission_records_its_lag_and_clears_the_unserved_nonce() -> None:
    topic = TopicStatus(67, oldest_unserved_nonce=720, newest_nonce=2160)
    topic = topic.with_outcome(Outcome("submitted", nonce=1440, height=1444, tx_hash="AB", value=0.01), NOW)
    assert topic.last_submitted is not None
    assert (topic.last_submitted.nonce, topic.last_submitted.height, topic.submission_lag) == (
        1440,
        1444,
        MeasurementSummary(1, 4.0, 4.0),
    )
    assert (topic.confirmed_nonce, topic.oldest_unserved_nonce) == (1440, None)


def test_epoch_of_another_run_has_no_lag_and_confirms_nothing_newer() -> None:
    topic = TopicStatus(67, oldest_unserved_nonce=2160).with_outcome(
        Outcome("already_submitted", nonce=1440, height=9999), NOW
    )
    assert (topic.submission_lag.count, topic.last_submitted, topic.confirmed_nonce) == (0, None, 1440)
    assert topic.oldest_unserved_nonce == 2160


def test_every_status_class_is_strict() -> None:
    classes = [
        status_class
        for status_class in vars(model).values()
        if is_dataclass(status_class) and status_class is not Outcome
    ]
    assert len(classes) > 10
    assert all(getattr(status_class, "__pydantic_config__", {}).get("extra") == "forbid" for status_class in classes)
    assert DaemonStatus.from_json(json.dumps(as_plain_json())).version == VERSION


def test_invalid_characters_in_an_error_are_replaced() -> None:
    status = DaemonStatus(1, NOW, NOW, 0.0, "daemon", "running", "local", attention="no such file: \udcff.csv")
    assert DaemonStatus.from_json(status.to_json()).attention == "no such file: ?.csv"
