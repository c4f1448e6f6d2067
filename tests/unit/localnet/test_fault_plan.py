"""Faults of the local node: their text form, and the requests they apply to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.errors import NeedsHuman
from forecastd.localnet.faults import BEHAVIORS, FAULTS, REQUEST_LEVELS, FaultLevel, FaultPlan, NodeFault, parse_faults
from forecastd.localnet.topics import TopicSpec


def selections(text: str, times: int, *, height: int = 1, method: str = "GetTx") -> list[bool]:
    plan = FaultPlan([NodeFault.parse(text)])
    return [bool(plan.select(set(FaultLevel), height, method)) for _ in range(times)]


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
        ("lose-answer", [0, 0, 0, 0, 0, 0]),  # applies to broadcasts only
        ("hang@until=0", [0, 0, 0, 0, 0, 0]),
        ("hang@from=1@until=1", [1, 1, 1, 1, 1, 1]),
        ("hang@from=2", [0, 0, 0, 0, 0, 0]),
    ],
)  # fmt: skip
def test_fault_applies_by_count_method_and_height(text: str, expected: list[int]) -> None:
    assert selections(text, 6) == [bool(value) for value in expected]


def test_fault_probability_is_reproducible() -> None:
    once = selections("hang@p=0.3,seed=7", 400)
    assert once == selections("hang@p=0.3,seed=7", 400)
    assert once != selections("hang@p=0.3,seed=8", 400)
    assert 80 < sum(once) < 160


def test_fault_counts_only_matching_requests() -> None:
    plan = FaultPlan([NodeFault.parse("hang@first=1@method=BroadcastTx@from=5")])
    selected = [(4, "BroadcastTx"), (5, "GetTx"), (5, "BroadcastTx"), (6, "BroadcastTx")]
    assert [bool(plan.select(REQUEST_LEVELS, *value)) for value in selected] == [False, False, True, False]


@pytest.mark.parametrize("text", [*BEHAVIORS, *FAULTS, "upgrade=v9@from=100", "slow=0.5@method=GetTx+Simulate@every=2"])
def test_fault_text_round_trips(text: str) -> None:
    fault = NodeFault.parse(text)
    assert NodeFault.parse(str(fault)) == fault
    assert fault.kind.unit == "" or fault.value is not None
    assert NodeFault(fault.name).value == fault.kind.value


def test_parse_faults_splits_on_commas_but_not_before_seed() -> None:
    assert [str(value) for value in parse_faults("hang@p=0.3,seed=7, drop,late=2")] == [
        "hang@p=0.3,seed=7", "drop", "late=2"
    ]  # fmt: skip
    assert parse_faults("") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a fault"),
        ("explode", "is not a fault"),
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
        ("drop@method=GetTx", "cannot be limited by"),  # it already applies to broadcasts only
        ("out-of-gas@method=GetTx", "cannot be limited by"),
        ("refuse@first=2", "cannot be limited by"),  # refused connections cannot be counted
        ("hang@first=1@first=2", "@first twice"),
        ("hang@from=1@from=2", "@from twice"),
    ],
)
def test_parse_invalid_fault_error_shows_the_format(text: str, message: str) -> None:
    with pytest.raises(NeedsHuman, match=message) as caught:
        NodeFault.parse(text)
    assert len(str(caught.value)) < 300


@given(st.text(max_size=60))
def test_parse_any_text_raises_only_needs_human(text: str) -> None:
    try:
        faults = parse_faults(text)
    except NeedsHuman:
        return
    assert parse_faults(",".join(map(str, faults))) == faults


def test_behaviors_cover_every_endpoint_level_without_duplicates() -> None:
    assert len(set(BEHAVIORS.values())) == len(BEHAVIORS) >= 24
    assert {fault.kind.level for fault in BEHAVIORS.values()} == REQUEST_LEVELS | {FaultLevel.CONNECTION}
    assert {fault.name for fault in BEHAVIORS.values()} == {
        name for name, kind in FAULTS.items() if kind.is_endpoint_fault
    }


def test_topic_with_empty_active_set_is_rejected() -> None:
    fields: dict[str, Any] = {"active_set": 0}
    with pytest.raises(ValueError, match="active set"):
        TopicSpec(1, **fields)
