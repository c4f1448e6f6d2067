"""The ledger against the chain: what each state claims, and what the chain may say to it."""

from __future__ import annotations

import pytest

from cli.ledger import STATES
from forecastd.audit import Audit, Facts, judge
from forecastd.bookkeeping import MEANING, Account, shown
from forecastd.chain.answers import TxResult
from forecastd.ledger import Entry, Row, State

KEY = ("localnet", 67, 720, "allo1x")
ACCEPTED = TxResult("AB", 730, "", 0, "", 100)
FAILED = TxResult("AB", 730, "sdk", 11, "out of gas", 100)
BLOCK = Facts(accepted=(ACCEPTED,))
COUNTS = Facts(accepted=(ACCEPTED,), kept=True, counted="0.5", latest="0.5")
PUSHED_OUT = Facts(accepted=(ACCEPTED,), kept=True)
LATE_INDEX = Facts(latest="0.50")
NOTHING = Facts()
TWICE = Facts(accepted=(ACCEPTED, TxResult("CD", 731, "", 0, "", 100)))
CASES: list[tuple[State, Facts, str, str]] = [
    (State.SIGNED, NOTHING, "open", "no block has it yet"),
    (State.SIGNED, BLOCK, "open", "the next run records it"),
    (State.SIGNED, LATE_INDEX, "open", "shows its forecast"),
    (State.DEAD, NOTHING, "open", "no block took it"),
    (State.DEAD, Facts(failed=(FAILED,)), "open", "no block took it"),
    (State.DEAD, BLOCK, "disagrees", "block 730 has it"),
    (State.DEAD, LATE_INDEX, "disagrees", "shows its forecast"),
    (State.MISSED, NOTHING, "agrees", "nothing of it"),
    (State.MISSED, Facts(failed=(FAILED,)), "agrees", "nothing of it"),
    (State.MISSED, Facts(kept=True), "agrees", "nothing of it"),
    (State.MISSED, BLOCK, "disagrees", "block 730"),
    (State.MISSED, COUNTS, "disagrees", "block 730"),
    *((state, TWICE, "disagrees", "accepted it 2 times, in blocks 730, 731") for state in State),
    *(
        (state, NOTHING, "disagrees", "no endpoint has a transaction of it")
        for state in (State.INCLUDED, State.ADMITTED, State.PASSIVE, State.EVICTED)
    ),
    (State.INCLUDED, BLOCK, "agrees", "block 730"),
    (State.INCLUDED, LATE_INDEX, "agrees", "shows its forecast"),
    (State.INCLUDED, Facts(failed=(FAILED,)), "disagrees", "block 730 refused it (sdk 11)"),
    (State.ADMITTED, COUNTS, "agrees", "block 730"),
    (State.ADMITTED, BLOCK, "agrees", "block 730"),
    (State.ADMITTED, LATE_INDEX, "agrees", "shows its forecast"),
    (State.ADMITTED, PUSHED_OUT, "disagrees", "does not count it"),
    (State.ADMITTED, Facts((ACCEPTED,), kept=True, counted="0.6"), "disagrees", "the value 0.6, not 0.5"),
    (State.ADMITTED, Facts((ACCEPTED,), kept=True, counted="5E-1"), "agrees", "block 730"),
    (State.ADMITTED, Facts((ACCEPTED,), kept=True, counted="x"), "disagrees", "the value x"),
    (State.PASSIVE, PUSHED_OUT, "agrees", "block 730"),
    (State.EVICTED, PUSHED_OUT, "agrees", "block 730"),
    (State.PASSIVE, COUNTS, "disagrees", "the chain counts it"),
    (State.EVICTED, COUNTS, "disagrees", "the chain counts it"),
]


def entry(state: State, *, height: int | None = 730, value: str | None = "0.5") -> Entry:
    return Entry(KEY, Row(state, 4, 1439, height=height), value, 1.0, None)


@pytest.mark.parametrize(("state", "facts", "said", "why"), CASES)
def test_a_claim_is_compared_with_what_the_chain_says(state: State, facts: Facts, said: str, why: str) -> None:
    verdict = judge(entry(state), facts)
    assert (verdict.said, why in verdict.why) == (said, True), verdict.why


def test_another_block_than_the_ledger_says_is_a_disagreement_and_an_unknown_one_is_none() -> None:
    assert judge(entry(State.INCLUDED, height=731), BLOCK).why == "block 730 has it, not 731"
    assert judge(entry(State.INCLUDED, height=None), BLOCK).said == "agrees"


def test_an_entry_without_a_value_does_not_agree_with_one_that_the_chain_has() -> None:
    assert judge(entry(State.ADMITTED, value=None), COUNTS).said == "disagrees"


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (Account("localnet", "allo1x", 9, 3, ()), None),
        (Account("localnet", "allo1x", 0, None, ()), None),
        (Account("localnet", "allo1x", 9, 3, (5, 6)), "sequences 5-6"),
        (Account("localnet", "allo1x", 2, 3, ()), "began anew"),
    ],
)
def test_an_account_that_the_ledger_cannot_explain_is_a_disagreement(account: Account, words: str | None) -> None:
    found = Audit("localnet", 800, (), (), (account,), {}).disagreements
    assert len(found) == (0 if words is None else 1)
    assert words is None or words in found[0]


def test_a_damaged_file_is_a_disagreement() -> None:
    assert Audit("localnet", 800, ("page 3 is torn",), (), (), {}).disagreements == ["the file: page 3 is torn"]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((3, 4), "3-4"), ((1, 3, 4, 5, 9), "1, 3-5, 9"), ((1, 3, 5, 6, 7), "1, 3 and 3 more")],
)
def test_numbers_are_shown_as_runs(numbers: tuple[int, ...], text: str) -> None:
    assert shown(numbers, most=2 if "more" in text else 8) == text


def test_every_state_can_be_asked_for_and_has_a_meaning() -> None:
    assert set(STATES) == {state.value for state in State}
    assert set(MEANING) == set(State)
