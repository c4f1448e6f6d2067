"""The outbox's state machine: a table of cases each run twice, and promises that hold for every history."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forecastd.chain.codes import Action
from forecastd.ledger import SETTLED, Row, State
from forecastd.outbox import (
    LONG_PAST,
    MOST_ATTEMPTS,
    Absent,
    Answered,
    Counted,
    Do,
    Found,
    Observation,
    Restarted,
    Unanswered,
    step,
    window_over,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "outbox.json").read_text())


def row_of(fields: dict[str, Any]) -> Row:
    return Row(**{**fields, "state": State(fields["state"])})


def seen_of(told: dict[str, Any]) -> Observation:
    fields = {name: value for name, value in told.items() if name != "kind"}
    if "answer" in fields:
        fields["answer"] = Action(fields["answer"])
    if "verdict" in fields:
        fields["verdict"] = State(fields["verdict"])
    if "heights" in fields:
        fields["heights"] = tuple(fields["heights"])
    kinds = {
        "restarted": Restarted, "answered": Answered, "unanswered": Unanswered, "found": Found, "absent": Absent,
        "counted": Counted,
    }  # fmt: skip
    made: Observation = kinds[told["kind"]](**fields)
    return made


def test_the_table_is_as_large_as_promised_and_names_each_case_once() -> None:
    assert len(VECTORS) >= 40
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_each_case_comes_out_right_and_twice_changes_nothing_more(vector: dict[str, Any]) -> None:
    before, seen = row_of(vector["row"]), seen_of(vector["seen"])
    after, do = step(before, seen)
    assert after == row_of({**vector["row"], **vector["then"]})
    assert do == Do(vector["do"])
    again, do_again = step(after, seen)
    assert again.state == after.state
    assert (again.attempts, again.sequence) == (after.attempts, after.sequence)
    assert do_again == do or after.state is not before.state


ANSWERS = st.sampled_from(list(Action))
ROWS = st.builds(
    Row,
    state=st.sampled_from(list(State)),
    sequence=st.just(7),
    timeout_height=st.just(100),
    attempts=st.integers(1, MOST_ATTEMPTS),
    refused=st.booleans(),
)
HEIGHTS = st.lists(st.integers(80, 120), max_size=4).map(tuple)
OBSERVATIONS = st.one_of(
    st.just(Restarted()),
    st.just(Unanswered()),
    st.builds(Answered, ANSWERS),
    st.builds(Found, st.integers(80, 100), ANSWERS),
    st.builds(Absent, HEIGHTS, st.integers(1, 2), st.none() | st.integers(6, 9), st.booleans()),
    st.builds(Counted, st.sampled_from([State.ADMITTED, State.PASSIVE, State.EVICTED])),
)


@given(row=ROWS, seen=OBSERVATIONS)
def test_every_observation_has_an_answer_in_every_state(row: Row, seen: Observation) -> None:
    after, do = step(row, seen)
    if row.state in SETTLED:
        assert (after, do) == (row, Do.NOTHING)
    if do is Do.SIGN:
        assert after.state is State.DEAD
        assert after.attempts < MOST_ATTEMPTS
    if do is Do.SEND:
        assert after.state is State.SIGNED


@given(row=ROWS, seen=OBSERVATIONS)
def test_nothing_but_an_inclusion_or_a_proof_ends_a_signed_row(row: Row, seen: Observation) -> None:
    after, _ = step(replace(row, state=State.SIGNED), seen)
    if after.state is State.MISSED:
        proof = isinstance(seen, Absent) and sum(height > 100 for height in seen.heights) >= seen.needed
        alone = isinstance(seen, Absent) and max(seen.heights, default=0) > 100 + LONG_PAST and seen.sequence in (6, 7)
        assert proof or alone or isinstance(seen, Found)
    if after.state is State.INCLUDED:
        assert isinstance(seen, Found) or (isinstance(seen, Absent) and seen.inference)


@pytest.mark.parametrize(
    ("height", "sequence", "becomes"),
    [
        (100 + LONG_PAST, 7, State.SIGNED),  # an index may be late yet
        (101 + LONG_PAST, 7, State.MISSED),
        (101 + LONG_PAST, 8, State.SIGNED),  # its sequence is used: by itself perhaps
        (101 + LONG_PAST, None, State.SIGNED),
    ],
)
def test_one_witness_of_two_is_enough_long_after_the_window_where_the_sequence_is_unused(
    height: int, sequence: int | None, becomes: State
) -> None:
    after, _ = step(Row(State.SIGNED, 7, 100), Absent((height,), 2, sequence))
    assert after.state is becomes


def test_a_dead_row_is_missed_when_its_window_is_over() -> None:
    dead = Row(State.DEAD, 7, 100)
    assert window_over(dead, 99) == dead
    assert window_over(dead, 100).state is State.MISSED
    signed = replace(dead, state=State.SIGNED)
    assert window_over(signed, 500) == signed


class Chain(RuleBasedStateMachine):
    """A chain that includes at most one transaction a sequence, a worker that obeys the machine, and every mishap."""

    def __init__(self) -> None:
        super().__init__()
        self.height, self.sequence = 90, 7
        self.mempool: dict[int, int] = {}  # sequence -> attempt that a node took
        self.blocks: dict[int, tuple[int, Action]] = {}  # attempt -> (height, what its code means)
        self.sequences = {1: 7}  # attempt -> sequence
        self.row = Row(State.SIGNED, 7, 100)
        self.do = Do.LOOK_UP
        self.window = 100

    def see(self, seen: Observation) -> None:
        self.row, self.do = step(self.row, seen)
        self.row = window_over(self.row, self.height)

    @rule(lost=st.booleans(), answer=st.sampled_from([Action.ACCEPTED, Action.RESIGN, Action.RESEND, Action.RETRY]))
    @precondition(lambda self: self.do is Do.SEND)
    def send(self, lost: bool, answer: Action) -> None:
        attempt = self.row.attempts
        taken = answer is Action.ACCEPTED and self.sequences[attempt] >= self.sequence and self.height < self.window
        if taken:
            self.mempool.setdefault(self.sequences[attempt], attempt)
        self.see(Unanswered() if lost else Answered(answer))

    @rule(drop=st.booleans(), out_of_gas=st.booleans())
    def block(self, drop: bool, out_of_gas: bool) -> None:
        self.height += 1
        attempt = self.mempool.pop(self.sequence, None)
        if attempt is None or drop or self.height > self.window:
            return
        self.blocks[attempt] = (self.height, Action.RESIGN if out_of_gas else Action.ACCEPTED)
        self.sequence += 1

    @rule(index_late=st.booleans(), endpoints=st.integers(1, 3))
    @precondition(lambda self: self.row.state not in SETTLED)
    def look_up(self, index_late: bool, endpoints: int) -> None:
        found = [self.blocks[attempt] for attempt in self.sequences if attempt in self.blocks]
        good = [entry for entry in found if entry[1] is Action.ACCEPTED]
        current = self.blocks.get(self.row.attempts)
        if (current or good) and not index_late:
            height, answer = good[0] if good else current  # type: ignore[misc]  # one of both is there
            self.see(Found(height, answer))
        else:
            inference = bool(good)
            self.see(Absent((self.height,) * endpoints, 2, self.sequence, inference))

    @rule()
    @precondition(lambda self: self.do is Do.ASK_COUNTED)
    def ask(self) -> None:
        self.see(Counted(State.ADMITTED))

    @rule()
    @precondition(lambda self: self.do is Do.SIGN and self.height < self.window)
    def sign(self) -> None:
        attempt = self.row.attempts + 1
        self.sequences[attempt] = self.sequence
        self.row = Row(State.SIGNED, self.sequence, self.window, attempt)
        self.do = Do.SEND

    @rule()
    def restart(self) -> None:
        self.mempool = dict(self.mempool)
        self.see(Restarted())

    @invariant()
    def at_most_one_accepted_inclusion(self) -> None:
        assert sum(answer is Action.ACCEPTED for _, answer in self.blocks.values()) <= 1

    @invariant()
    def an_accepted_forecast_is_never_recorded_as_missed_by_a_late_index(self) -> None:
        accepted = any(answer is Action.ACCEPTED for _, answer in self.blocks.values())
        if accepted:
            assert self.row.state is not State.MISSED


TestChain = Chain.TestCase
