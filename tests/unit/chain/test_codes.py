"""The classification of a node's answers."""

from __future__ import annotations

import pytest

from forecastd.chain.codes import CODES, TEXT_PATTERNS, UNKNOWN, Action, classify, classify_text

CASES = [
    ("", 0, "", Action.ACCEPTED),
    ("emissions", 0, "inference already submitted", Action.ACCEPTED),
    ("sdk", 4, "signature verification failed", Action.NEEDS_HUMAN),
    ("sdk", 5, "", Action.NEEDS_HUMAN),
    ("sdk", 11, "out of gas in location: ReadFlat", Action.RESIGN),
    ("sdk", 13, "insufficient fees", Action.RESIGN),
    ("sdk", 19, "", Action.PENDING),
    ("sdk", 20, "", Action.RESEND),
    ("sdk", 28, "", Action.NEEDS_HUMAN),
    ("sdk", 30, "", Action.WINDOW_CLOSED),
    ("sdk", 32, "account sequence mismatch, expected 7, got 6", Action.VERIFY),
    ("emissions", 6, "", Action.NEEDS_HUMAN),
    ("emissions", 13, "", Action.NEEDS_HUMAN),
    ("emissions", 67, "", Action.WINDOW_CLOSED),
    ("emissions", 68, "", Action.VERIFY),
    ("emissions", 75, "", Action.VERIFY),
    ("emissions", 78, "", Action.DONE),
    ("undefined", 1, "Error appending: inference already submitted", Action.DONE),
    ("emissions", 92, "Worker is not permitted to submit payload: x", Action.NEEDS_HUMAN),
    ("emissions", 4, "", Action.VERIFY),  # sdk 4 means something else
    ("emissions", 11, "", Action.VERIFY),
    ("sdk", 67, "", Action.VERIFY),
    ("sdk", 75, "", Action.VERIFY),
    ("undefined", 1, "something new", Action.VERIFY),
    ("", 1, "", Action.VERIFY),
]


@pytest.mark.parametrize(("codespace", "code", "text", "action"), CASES)
def test_classify_uses_codespace_and_code(codespace: str, code: int, text: str, action: Action) -> None:
    assert classify(codespace, code, text).action is action


def test_classify_same_code_differs_by_codespace() -> None:
    assert classify("sdk", 13).action is Action.RESIGN
    assert classify("emissions", 13).action is Action.NEEDS_HUMAN


def test_classify_text_never_overrides_a_known_code() -> None:
    for (codespace, code), classification in CODES.items():
        assert classify(codespace, code, "inference already submitted; out of gas") is classification


def test_classify_unknown_answer_is_verified() -> None:
    assert classify("wasm", 5, "execute contract failed") is UNKNOWN
    assert UNKNOWN.action is Action.VERIFY


@pytest.mark.parametrize(("text", "classification"), TEXT_PATTERNS.items())
def test_classify_text_ignores_case_and_surroundings(text: str, classification: object) -> None:
    assert classify_text(f"failed to execute message; message index: 0: {text.upper()}: [cosmos]") == classification


def test_classifications_have_description_and_advice() -> None:
    for classification in (*CODES.values(), *TEXT_PATTERNS.values(), UNKNOWN):
        assert classification.description
        assert classification.advice.endswith(".")
