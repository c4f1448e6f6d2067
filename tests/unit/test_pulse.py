"""A pulse reads back as it was written, refuses what is none, and counts the cycles that it is told of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

import forecastd.pulse as room
from forecastd.outcome import Outcome
from forecastd.pulse import LAST_OUTCOMES, VERSION, Pulse, TopicPulse, Total

NOW = 1_790_000_000.0
numbers = st.floats(allow_nan=False, allow_infinity=False)
whole = st.integers(0, 2**63)
words = st.text(max_size=20)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type, by the type alone, so that a field added later is covered too."""
    if isinstance(kind, type) and is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{one.name: values(hints[one.name]) for one in fields(kind)})
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(words, values(arguments[1]), max_size=3)
    if origin is Literal:
        return st.sampled_from(arguments)
    if arguments:
        return st.one_of(*(values(one) for one in arguments))
    known = {int: whole, float: numbers, str: words, bool: st.booleans(), type(None): st.none()}
    return known[kind]


pulses = values(Pulse)
outcomes = st.builds(
    Outcome,
    outcome=st.sampled_from(["submitted", "already_submitted", "skipped", "missed", "failed"]),
    check=st.sampled_from([None, "stale", "bounds"]),
    nonce=st.none() | st.integers(1, 100),
    height=st.none() | st.integers(100, 200),
    stages=st.dictionaries(st.sampled_from(["chain", "data", "model"]), st.floats(0, 100)),
)


@given(pulses)
def test_what_is_written_is_read_back_the_same(pulse: Pulse) -> None:
    assert Pulse.from_json(pulse.as_text()) == pulse
    assert Pulse.from_json(json.dumps(pulse.as_json())) == pulse


def plain() -> dict[str, Any]:
    pulse = Pulse(1, NOW, NOW, 0.0, "daemon", "running", "local", topics=(TopicPulse(67),))
    return pulse.as_json()


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
        {"written": float("nan")},
    ],
)
def test_what_is_no_pulse_is_refused_by_the_field(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        Pulse.from_json(json.dumps(plain() | change))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "[" * 100_000, b"\xff\xfe", '{"version": 1}'])
def test_what_is_no_object_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|object|required|utf-8"):
        Pulse.from_json(text)


@given(st.lists(outcomes, max_size=30))
def test_cycles_are_counted_by_outcome_and_check_and_only_the_latest_are_kept(ended: list[Outcome]) -> None:
    topic = TopicPulse(67)
    for number, outcome in enumerate(ended):
        topic = topic.after(outcome, NOW + number)
    assert topic.cycles == len(ended) == sum(one.count for one in topic.outcomes)
    assert len({(one.outcome, one.check) for one in topic.outcomes}) == len(topic.outcomes)
    assert topic.submitted == sum(one.outcome == "submitted" for one in ended)
    assert topic.missed == sum(one.outcome == "missed" for one in ended)
    assert [one.at for one in topic.last_outcomes] == [NOW + n for n in reversed(range(len(ended)))][:LAST_OUTCOMES]
    for stage, total in topic.stages.items():
        spent = [one.stages[stage] for one in ended if stage in one.stages]
        assert (total.count, total.largest) == (len(spent), max(spent))
        assert total.sum == pytest.approx(sum(spent))
    served = [one.nonce for one in ended if one.outcome in {"submitted", "already_submitted"} and one.nonce is not None]
    assert topic.confirmed_nonce == max(served, default=None)


def test_a_submission_is_kept_with_its_lag_and_ends_what_was_unserved() -> None:
    topic = TopicPulse(67, oldest_unserved=720, newest_nonce=2160)
    topic = topic.after(Outcome("submitted", nonce=1440, height=1444, tx_hash="AB", value=0.01), NOW)
    assert topic.last_submitted is not None
    assert (topic.last_submitted.nonce, topic.last_submitted.height, topic.lags) == (1440, 1444, Total(1, 4.0, 4.0))
    assert (topic.confirmed_nonce, topic.oldest_unserved) == (1440, None)


def test_an_epoch_that_another_run_submitted_has_no_lag_and_an_older_one_confirms_nothing_newer() -> None:
    topic = TopicPulse(67, oldest_unserved=2160).after(Outcome("already_submitted", nonce=1440, height=9999), NOW)
    assert (topic.lags.count, topic.last_submitted, topic.confirmed_nonce) == (0, None, 1440)
    assert topic.oldest_unserved == 2160


def test_every_value_of_the_room_is_strict() -> None:
    found = [one for one in vars(room).values() if is_dataclass(one) and one is not Outcome]
    assert len(found) > 10
    assert all(getattr(one, "__pydantic_config__", {}).get("extra") == "forbid" for one in found)
    assert Pulse.from_json(json.dumps(plain())).version == VERSION


def test_an_error_message_with_broken_characters_is_written_all_the_same() -> None:
    pulse = Pulse(1, NOW, NOW, 0.0, "daemon", "running", "local", trouble="no such file: \udcff.csv")
    assert Pulse.from_json(pulse.as_text()).trouble == "no such file: ?.csv"
