"""The submission state machine: a table of cases, each run twice, and properties that hold for every history."""

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
from forecastd.ledger.ledger import SETTLED_STATES, LedgerRow, SubmissionState
from forecastd.submission.state_machine import (
    LONG_PAST_BLOCKS,
    MAX_ATTEMPTS,
    Absence,
    CountVerdict,
    Inclusion,
    NextStep,
    Observation,
    ProcessRestart,
    SendFailure,
    SendResponse,
    expire_abandoned,
    transition,
)

VECTORS = json.loads((Path(__file__).parent / "vectors" / "state_machine.json").read_text())


def row_from(fields: dict[str, Any]) -> LedgerRow:
    return LedgerRow(**{**fields, "state": SubmissionState(fields["state"])})


def observation_from(vector: dict[str, Any]) -> Observation:
    fields = {name: value for name, value in vector.items() if name != "kind"}
    if "action" in fields:
        fields["action"] = Action(fields["action"])
    if "state" in fields:
        fields["state"] = SubmissionState(fields["state"])
    if "heights" in fields:
        fields["heights"] = tuple(fields["heights"])
    kinds = {
        "process_restart": ProcessRestart,
        "send_response": SendResponse,
        "send_failure": SendFailure,
        "inclusion": Inclusion,
        "absence": Absence,
        "count_verdict": CountVerdict,
    }
    observation: Observation = kinds[vector["kind"]](**fields)
    return observation


def test_vectors_have_unique_names() -> None:
    assert len(VECTORS) >= 40
    assert len({vector["name"] for vector in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["name"] for vector in VECTORS])
def test_transition_vector_gives_expected_row_and_is_idempotent(vector: dict[str, Any]) -> None:
    before, observation = row_from(vector["row"]), observation_from(vector["observation"])
    after, next_step = transition(before, observation)
    assert after == row_from({**vector["row"], **vector["changes"]})
    assert next_step == NextStep(vector["next_step"])
    second_row, second_step = transition(after, observation)
    assert second_row.state == after.state
    assert (second_row.attempts, second_row.sequence) == (after.attempts, after.sequence)
    assert second_step == next_step or after.state is not before.state


ANSWERS = st.sampled_from(list(Action))
ROWS = st.builds(
    LedgerRow,
    state=st.sampled_from(list(SubmissionState)),
    sequence=st.just(7),
    timeout_height=st.just(100),
    attempts=st.integers(1, MAX_ATTEMPTS),
    fee_refused=st.booleans(),
)
HEIGHTS = st.lists(st.integers(80, 120), max_size=4).map(tuple)
OBSERVATIONS = st.one_of(
    st.just(ProcessRestart()),
    st.just(SendFailure()),
    st.builds(SendResponse, ANSWERS),
    st.builds(Inclusion, st.integers(80, 100), ANSWERS),
    st.builds(Absence, HEIGHTS, st.integers(1, 2), st.none() | st.integers(6, 9), st.booleans()),
    st.builds(
        CountVerdict, st.sampled_from([SubmissionState.ADMITTED, SubmissionState.PASSIVE, SubmissionState.EVICTED])
    ),
)


@given(row=ROWS, observation=OBSERVATIONS)
def test_transition_any_state_and_observation_is_defined(row: LedgerRow, observation: Observation) -> None:
    after, next_step = transition(row, observation)
    if row.state in SETTLED_STATES:
        assert (after, next_step) == (row, NextStep.DONE)
    if next_step is NextStep.SIGN:
        assert after.state is SubmissionState.ABANDONED
        assert after.attempts < MAX_ATTEMPTS
    if next_step is NextStep.SEND:
        assert after.state is SubmissionState.SIGNED


@given(row=ROWS, observation=OBSERVATIONS)
def test_signed_row_without_inclusion_or_proof_stays_open(row: LedgerRow, observation: Observation) -> None:
    after, _ = transition(replace(row, state=SubmissionState.SIGNED), observation)
    if after.state is SubmissionState.MISSED:
        proof = (
            isinstance(observation, Absence)
            and sum(height > 100 for height in observation.heights) >= observation.required_proofs
        )
        single_endpoint_proof = (
            isinstance(observation, Absence)
            and max(observation.heights, default=0) > 100 + LONG_PAST_BLOCKS
            and observation.sequence in (6, 7)
        )
        assert proof or single_endpoint_proof or isinstance(observation, Inclusion)
    if after.state is SubmissionState.INCLUDED:
        assert isinstance(observation, Inclusion) or (isinstance(observation, Absence) and observation.has_inference)


@pytest.mark.parametrize(
    ("height", "sequence", "expected"),
    [
        (100 + LONG_PAST_BLOCKS, 7, SubmissionState.SIGNED),  # the index may still lag
        (101 + LONG_PAST_BLOCKS, 7, SubmissionState.MISSED),
        (101 + LONG_PAST_BLOCKS, 8, SubmissionState.SIGNED),  # its sequence is used, perhaps by itself
        (101 + LONG_PAST_BLOCKS, None, SubmissionState.SIGNED),
    ],
)
def test_absence_long_past_timeout_needs_one_endpoint_if_sequence_unused(
    height: int, sequence: int | None, expected: SubmissionState
) -> None:
    after, _ = transition(LedgerRow(SubmissionState.SIGNED, 7, 100), Absence((height,), 2, sequence))
    assert after.state is expected


def test_abandoned_row_after_window_is_missed() -> None:
    abandoned = LedgerRow(SubmissionState.ABANDONED, 7, 100)
    assert expire_abandoned(abandoned, 99) == abandoned
    assert expire_abandoned(abandoned, 100).state is SubmissionState.MISSED
    signed = replace(abandoned, state=SubmissionState.SIGNED)
    assert expire_abandoned(signed, 500) == signed


class SubmissionMachine(RuleBasedStateMachine):
    """A chain that includes at most one transaction per sequence, a worker that follows the machine, and random faults."""

    def __init__(self) -> None:
        super().__init__()
        self.height, self.sequence = 90, 7
        self.mempool: dict[int, int] = {}  # sequence -> attempt that a node accepted
        self.blocks: dict[int, tuple[int, Action]] = {}  # attempt -> (height, meaning of its code)
        self.sequences = {1: 7}  # attempt -> sequence
        self.row = LedgerRow(SubmissionState.SIGNED, 7, 100)
        self.next_step = NextStep.LOOK_UP
        self.window = 100

    def observe(self, observation: Observation) -> None:
        self.row, self.next_step = transition(self.row, observation)
        self.row = expire_abandoned(self.row, self.height)

    @rule(lost=st.booleans(), answer=st.sampled_from([Action.ACCEPTED, Action.RESIGN, Action.RESEND, Action.RETRY]))
    @precondition(lambda self: self.next_step is NextStep.SEND)
    def send(self, lost: bool, answer: Action) -> None:
        attempt = self.row.attempts
        is_accepted = (
            answer is Action.ACCEPTED and self.sequences[attempt] >= self.sequence and self.height < self.window
        )
        if is_accepted:
            self.mempool.setdefault(self.sequences[attempt], attempt)
        self.observe(SendFailure() if lost else SendResponse(answer))

    @rule(drop=st.booleans(), out_of_gas=st.booleans())
    def block(self, drop: bool, out_of_gas: bool) -> None:
        self.height += 1
        attempt = self.mempool.pop(self.sequence, None)
        if attempt is None or drop or self.height > self.window:
            return
        self.blocks[attempt] = (self.height, Action.RESIGN if out_of_gas else Action.ACCEPTED)
        self.sequence += 1

    @rule(index_late=st.booleans(), endpoints=st.integers(1, 3))
    @precondition(lambda self: self.row.state not in SETTLED_STATES)
    def look_up(self, index_late: bool, endpoints: int) -> None:
        blocks = [self.blocks[attempt] for attempt in self.sequences if attempt in self.blocks]
        accepted_blocks = [entry for entry in blocks if entry[1] is Action.ACCEPTED]
        current = self.blocks.get(self.row.attempts)
        if (current or accepted_blocks) and not index_late:
            height, answer = accepted_blocks[0] if accepted_blocks else current  # type: ignore[misc]  # one of them exists
            self.observe(Inclusion(height, answer))
        else:
            inference = bool(accepted_blocks)
            self.observe(Absence((self.height,) * endpoints, 2, self.sequence, inference))

    @rule()
    @precondition(lambda self: self.next_step is NextStep.CHECK_COUNTED)
    def ask(self) -> None:
        self.observe(CountVerdict(SubmissionState.ADMITTED))

    @rule()
    @precondition(lambda self: self.next_step is NextStep.SIGN and self.height < self.window)
    def sign(self) -> None:
        attempt = self.row.attempts + 1
        self.sequences[attempt] = self.sequence
        self.row = LedgerRow(SubmissionState.SIGNED, self.sequence, self.window, attempt)
        self.next_step = NextStep.SEND

    @rule()
    def restart(self) -> None:
        self.mempool = dict(self.mempool)
        self.observe(ProcessRestart())

    @invariant()
    def at_most_one_accepted_inclusion(self) -> None:
        assert sum(answer is Action.ACCEPTED for _, answer in self.blocks.values()) <= 1

    @invariant()
    def accepted_forecast_is_never_missed(self) -> None:
        accepted = any(answer is Action.ACCEPTED for _, answer in self.blocks.values())
        if accepted:
            assert self.row.state is not SubmissionState.MISSED


TestSubmissionMachine = SubmissionMachine.TestCase
