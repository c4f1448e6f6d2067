"""The ledger compared with the chain: each state, and each answer of the chain."""

from __future__ import annotations

import pytest

from cli.ledger.list import STATES
from forecastd.chain.types import TxResult
from forecastd.ledger.export import STATE_MEANINGS
from forecastd.ledger.ledger import LedgerEntry, LedgerRow, SubmissionState
from forecastd.submission.account import AccountStatus, format_ranges
from forecastd.submission.verify import ChainFacts, VerificationReport, check_entry

KEY = ("localnet", 67, 720, "allo1x")
ACCEPTED = TxResult("AB", 730, "", 0, "", 100)
FAILED = TxResult("AB", 730, "sdk", 11, "out of gas", 100)
BLOCK = ChainFacts(accepted=(ACCEPTED,))
COUNTED = ChainFacts(accepted=(ACCEPTED,), has_epoch_set=True, counted_value="0.5", latest_value="0.5")
NOT_COUNTED = ChainFacts(accepted=(ACCEPTED,), has_epoch_set=True)
LATE_INDEX = ChainFacts(latest_value="0.50")
NOTHING = ChainFacts()
TWICE = ChainFacts(accepted=(ACCEPTED, TxResult("CD", 731, "", 0, "", 100)))
CASES: list[tuple[SubmissionState, ChainFacts, str, str]] = [
    (SubmissionState.SIGNED, NOTHING, "open", "no block has it yet"),
    (SubmissionState.SIGNED, BLOCK, "open", "the next run records it"),
    (SubmissionState.SIGNED, LATE_INDEX, "open", "shows its forecast"),
    (SubmissionState.ABANDONED, NOTHING, "open", "no block accepted it"),
    (SubmissionState.ABANDONED, ChainFacts(failed=(FAILED,)), "open", "no block accepted it"),
    (SubmissionState.ABANDONED, BLOCK, "disagrees", "block 730 has it"),
    (SubmissionState.ABANDONED, LATE_INDEX, "disagrees", "shows its forecast"),
    (SubmissionState.MISSED, NOTHING, "agrees", "no trace of it"),
    (SubmissionState.MISSED, ChainFacts(failed=(FAILED,)), "agrees", "no trace of it"),
    (SubmissionState.MISSED, ChainFacts(has_epoch_set=True), "agrees", "no trace of it"),
    (SubmissionState.MISSED, BLOCK, "disagrees", "block 730"),
    (SubmissionState.MISSED, COUNTED, "disagrees", "block 730"),
    *((state, TWICE, "disagrees", "accepted it 2 times, in blocks 730, 731") for state in SubmissionState),
    *(
        (state, NOTHING, "disagrees", "no endpoint has its transaction")
        for state in (
            SubmissionState.INCLUDED,
            SubmissionState.ADMITTED,
            SubmissionState.PASSIVE,
            SubmissionState.EVICTED,
        )
    ),
    (SubmissionState.INCLUDED, BLOCK, "agrees", "block 730"),
    (SubmissionState.INCLUDED, LATE_INDEX, "agrees", "shows its forecast"),
    (SubmissionState.INCLUDED, ChainFacts(failed=(FAILED,)), "disagrees", "block 730 refused it (sdk 11)"),
    (SubmissionState.ADMITTED, COUNTED, "agrees", "block 730"),
    (SubmissionState.ADMITTED, BLOCK, "agrees", "block 730"),
    (SubmissionState.ADMITTED, LATE_INDEX, "agrees", "shows its forecast"),
    (SubmissionState.ADMITTED, NOT_COUNTED, "disagrees", "does not count it"),
    (
        SubmissionState.ADMITTED,
        ChainFacts((ACCEPTED,), has_epoch_set=True, counted_value="0.6"),
        "disagrees",
        "the value 0.6, not 0.5",
    ),
    (
        SubmissionState.ADMITTED,
        ChainFacts((ACCEPTED,), has_epoch_set=True, counted_value="5E-1"),
        "agrees",
        "block 730",
    ),
    (
        SubmissionState.ADMITTED,
        ChainFacts((ACCEPTED,), has_epoch_set=True, counted_value="x"),
        "disagrees",
        "the value x",
    ),
    (SubmissionState.PASSIVE, NOT_COUNTED, "agrees", "block 730"),
    (SubmissionState.EVICTED, NOT_COUNTED, "agrees", "block 730"),
    (SubmissionState.PASSIVE, COUNTED, "disagrees", "the chain counts it"),
    (SubmissionState.EVICTED, COUNTED, "disagrees", "the chain counts it"),
]


def entry(state: SubmissionState, *, height: int | None = 730, value: str | None = "0.5") -> LedgerEntry:
    return LedgerEntry(KEY, LedgerRow(state, 4, 1439, height=height), value, 1.0, None)


@pytest.mark.parametrize(("state", "facts", "agreement", "reason"), CASES)
def test_entry_against_chain_facts_gives_verdict(
    state: SubmissionState, facts: ChainFacts, agreement: str, reason: str
) -> None:
    verdict = check_entry(entry(state), facts)
    assert (verdict.agreement, reason in verdict.reason) == (agreement, True), verdict.reason


def test_entry_in_other_block_disagrees() -> None:
    assert check_entry(entry(SubmissionState.INCLUDED, height=731), BLOCK).reason == "block 730 has it, not 731"
    assert check_entry(entry(SubmissionState.INCLUDED, height=None), BLOCK).agreement == "agrees"


def test_entry_without_value_disagrees_with_chain_value() -> None:
    assert check_entry(entry(SubmissionState.ADMITTED, value=None), COUNTED).agreement == "disagrees"


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (AccountStatus("localnet", "allo1x", 9, 3, ()), None),
        (AccountStatus("localnet", "allo1x", 0, None, ()), None),
        (AccountStatus("localnet", "allo1x", 9, 3, (5, 6)), "sequences 5-6"),
        (AccountStatus("localnet", "allo1x", 2, 3, ()), "was reset"),
    ],
)
def test_account_with_unexplained_sequences_is_a_disagreement(account: AccountStatus, words: str | None) -> None:
    disagreements = VerificationReport("localnet", 800, (), (), (account,), {}).disagreements
    assert len(disagreements) == (0 if words is None else 1)
    assert words is None or words in disagreements[0]


def test_damaged_file_is_a_disagreement() -> None:
    assert VerificationReport("localnet", 800, ("page 3 is damaged",), (), (), {}).disagreements == [
        "the file: page 3 is damaged"
    ]


@pytest.mark.parametrize(
    ("numbers", "text"),
    [((), ""), ((3,), "3"), ((3, 4), "3-4"), ((1, 3, 4, 5, 9), "1, 3-5, 9"), ((1, 3, 5, 6, 7), "1, 3 and 3 more")],
)
def test_format_ranges_joins_consecutive_numbers(numbers: tuple[int, ...], text: str) -> None:
    assert format_ranges(numbers, max_ranges=2 if "more" in text else 8) == text


def test_every_state_has_a_filter_and_a_meaning() -> None:
    assert set(STATES) == {state.value for state in SubmissionState}
    assert set(STATE_MEANINGS) == set(SubmissionState)
