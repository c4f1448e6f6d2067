"""Faults of the local node as text, and which requests they strike."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.errors import NeedsHuman
from forecastd.localnet.faults import BEHAVIOURS, FAULTS, OF_REQUEST, Fault, Level, Plan, parse_faults
from forecastd.localnet.topics import TopicSpec


def struck(text: str, times: int, *, height: int = 1, method: str = "GetTx") -> list[bool]:
    plan = Plan([Fault.parse(text)])
    return [bool(plan.strike(set(Level), height, method)) for _ in range(times)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hang", [1, 1, 1, 1, 1, 1]),
        ("hang@first=2", [1, 1, 0, 0, 0, 0]),
        ("hang@every=3", [0, 0, 1, 0, 0, 1]),
        ("hang@every=2@first=4", [0, 1, 0, 1, 0, 0]),
        ("flapping=2", [0, 0, 1, 1, 0, 0]),
        ("hang@method=GetTx+Simulate", [1, 1, 1, 1, 1, 1]),
        ("hang@method=Simulate", [0, 0, 0, 0, 0, 0]),
        ("lose-answer", [0, 0, 0, 0, 0, 0]),  # only a broadcast has it
        ("hang@until=0", [0, 0, 0, 0, 0, 0]),
        ("hang@from=1@until=1", [1, 1, 1, 1, 1, 1]),
        ("hang@from=2", [0, 0, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_a_fault_strikes_by_count_method_and_height(text: str, expected: list[int]) -> None:
    assert struck(text, 6) == [bool(one) for one in expected]


def test_a_fault_of_chance_strikes_the_same_requests_every_time() -> None:
    once = struck("hang@p=0.3,seed=7", 400)
    assert once == struck("hang@p=0.3,seed=7", 400)
    assert once != struck("hang@p=0.3,seed=8", 400)
    assert 80 < sum(once) < 160


def test_only_what_a_fault_could_strike_is_counted() -> None:
    plan = Plan([Fault.parse("hang@first=1@method=BroadcastTx@from=5")])
    asked = [(4, "BroadcastTx"), (5, "GetTx"), (5, "BroadcastTx"), (6, "BroadcastTx")]
    assert [bool(plan.strike(OF_REQUEST, *one)) for one in asked] == [False, False, True, False]


@pytest.mark.parametrize(
    "text", [*BEHAVIOURS, *FAULTS, "upgrade=v9@from=100", "slow=0.5@method=GetTx+Simulate@every=2"]
)
def test_a_fault_is_written_as_it_is_read(text: str) -> None:
    fault = Fault.parse(text)
    assert Fault.parse(str(fault)) == fault
    assert fault.kind.unit == "" or fault.value is not None
    assert Fault(fault.name).value == fault.kind.value


def test_several_faults_are_separated_by_commas_and_a_seed_is_none_of_them() -> None:
    assert [str(one) for one in parse_faults("hang@p=0.3,seed=7, drop,late=2")] == [
        "hang@p=0.3,seed=7", "drop", "late=2"
    ]  # fmt: skip
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no fault"),
        ("explode", "is no fault"),
        ("hang=3", "takes no value"),
        ("slow=fast", "a number of seconds above 0"),
        ("slow=0", "a number of seconds above 0"),
        ("behind=1.5", "a number of blocks"),
        ("upgrade=v8", "takes a version"),
        ("wrong-chain-id=a b", "takes a chain id"),
        ("hang@", "cannot be limited by"),
        ("hang@first=0", "cannot be limited by"),
        ("hang@first=x", "cannot be limited by"),
        ("hang@p=2", "cannot be limited by"),
        ("hang@method=", "cannot be limited by"),
        ("drop@method=GetTx", "cannot be limited by"),  # it is of broadcasts by itself
        ("out-of-gas@method=GetTx", "cannot be limited by"),
        ("refuse@first=2", "cannot be limited by"),  # what the kernel refuses nobody can count
        ("hang@first=1@first=2", "@first twice"),
        ("hang@from=1@from=2", "@from twice"),
    ],
)
def test_what_is_no_fault_is_told_with_the_form_that_is(text: str, told: str) -> None:
    with pytest.raises(NeedsHuman, match=told) as caught:
        Fault.parse(text)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=60))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    try:
        faults = parse_faults(text)
    except NeedsHuman:
        return
    assert parse_faults(",".join(map(str, faults))) == faults


def test_there_are_behaviours_of_every_level_an_endpoint_has_and_no_two_alike() -> None:
    assert len(set(BEHAVIOURS.values())) == len(BEHAVIOURS) >= 24
    assert {fault.kind.level for fault in BEHAVIOURS.values()} == OF_REQUEST | {Level.CONNECTION}
    assert {fault.name for fault in BEHAVIOURS.values()} == {name for name, kind in FAULTS.items() if kind.of_endpoint}


def test_an_active_set_of_nobody_is_no_topic() -> None:
    fields: dict[str, Any] = {"active_set": 0}
    with pytest.raises(ValueError, match="active set"):
        TopicSpec(1, **fields)
