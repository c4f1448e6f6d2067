"""What a node's answer to a transaction means, what the worker does about it, and what a person should do.

Answers are keyed on (codespace, code), never on the code alone: sdk 13 is a low fee, emissions 13 an unregistered worker.
Some refusals of the chain carry no code of their own and are known by their text. An answer that is not in the table is
uncertain: look the transaction up by hash and look at the account, and never sign blindly. Codes: cosmos-sdk
`types/errors`, allora-chain `x/emissions/types/errors.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """What the worker does next with a transaction it sent."""

    ACCEPTED = "accepted"  # taken; when this is the result of a block, included
    PENDING = "pending"  # the node has it already: wait and look it up by hash
    RESEND = "resend"  # not taken for now: send the same bytes again
    RESIGN = "resign"  # refused for its gas or fee: new bytes with the same sequence, or the next if it was included
    VERIFY = "verify"  # uncertain: look up hash, account and nonce before anything else
    WINDOW_CLOSED = "window_closed"  # too late for this nonce, for certain: record a miss
    DONE = "done"  # the chain has a forecast of this worker for this nonce: check it, sign nothing
    NEEDS_HUMAN = "needs_human"  # the same would happen again until a person changes something
    RETRY = "retry"  # the node's own trouble: ask again, or ask another one


@dataclass(frozen=True)
class Classification:
    """An answer in words: `meaning` for the log, `advice` for the person who reads it."""

    action: Action
    description: str
    advice: str


_NO_ACTION = "Nothing to do."
_NO_ACTION_RETRYING = "Nothing to do; the worker goes on by itself."
_CHECK_VERSION = "The transaction is built wrongly for this chain. Check for an upgrade of forecastd, or report it."

ACCEPTED = Classification(Action.ACCEPTED, "accepted", _NO_ACTION)
UNKNOWN = Classification(
    Action.VERIFY,
    "an answer this version does not know",
    "Look the transaction up by its hash; nothing new is signed until it is found or its window has passed.",
)

CODES: dict[tuple[str, int], Classification] = {
    ("sdk", 2): Classification(Action.NEEDS_HUMAN, "the node cannot read the transaction", _CHECK_VERSION),
    ("sdk", 3): Classification(Action.VERIFY, "the account's sequence is another one", _NO_ACTION_RETRYING),
    ("sdk", 4): Classification(
        Action.NEEDS_HUMAN,
        "a signature does not hold for this chain and account",
        "Check that ALLORA_NETWORK and the endpoints belong to the same chain, and that the mnemonic is the right one.",
    ),
    ("sdk", 5): Classification(Action.NEEDS_HUMAN, "the balance does not cover the fee", "Send uallo to the wallet."),
    ("sdk", 6): Classification(Action.NEEDS_HUMAN, "the chain does not know this kind of message", _CHECK_VERSION),
    ("sdk", 7): Classification(Action.NEEDS_HUMAN, "an address in the transaction is malformed", _CHECK_VERSION),
    ("sdk", 8): Classification(Action.NEEDS_HUMAN, "the public key is not the account's", "Check the mnemonic."),
    ("sdk", 9): Classification(
        Action.NEEDS_HUMAN, "the chain does not know the account", "Send uallo to the wallet once; that creates it."
    ),
    ("sdk", 10): Classification(Action.NEEDS_HUMAN, "the fee is not in a coin the chain takes", _CHECK_VERSION),
    ("sdk", 11): Classification(Action.RESIGN, "out of gas", _NO_ACTION_RETRYING),
    ("sdk", 12): Classification(Action.NEEDS_HUMAN, "the memo is too long", _CHECK_VERSION),
    ("sdk", 13): Classification(
        Action.RESIGN, "the fee is below what the chain asks now", "Should it last, choose a higher FEE_TIER."
    ),
    ("sdk", 14): Classification(Action.NEEDS_HUMAN, "too many signatures", _CHECK_VERSION),
    ("sdk", 15): Classification(Action.NEEDS_HUMAN, "no signature", _CHECK_VERSION),
    ("sdk", 18): Classification(Action.NEEDS_HUMAN, "the chain refuses the content of the message", _CHECK_VERSION),
    ("sdk", 19): Classification(Action.PENDING, "already in the mempool", _NO_ACTION_RETRYING),
    ("sdk", 20): Classification(Action.RESEND, "the mempool is full", _NO_ACTION_RETRYING),
    ("sdk", 21): Classification(Action.NEEDS_HUMAN, "the transaction is too large", _CHECK_VERSION),
    ("sdk", 24): Classification(Action.NEEDS_HUMAN, "signed by another key than the message names", "Check the mnemonic."),
    ("sdk", 28): Classification(
        Action.NEEDS_HUMAN,
        "wrong chain id",
        "An endpoint belongs to another chain than ALLORA_NETWORK. Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
    ),
    ("sdk", 30): Classification(Action.WINDOW_CLOSED, "past its timeout height, the end of the submission window", _NO_ACTION_RETRYING),
    ("sdk", 32): Classification(
        Action.VERIFY,
        "the account's sequence is another one",
        "Should it come again and again, another program signs with this mnemonic. Stop it.",
    ),
    ("sdk", 37): Classification(Action.NEEDS_HUMAN, "the chain does not support this", _CHECK_VERSION),
    ("sdk", 41): Classification(Action.NEEDS_HUMAN, "the gas limit is not one the chain takes", _CHECK_VERSION),
    ("sdk", 111222): Classification(Action.RETRY, "the node panicked", "Should it last, choose another endpoint."),
    ("emissions", 6): Classification(Action.NEEDS_HUMAN, "no such topic", "Check TOPIC_ID and ALLORA_NETWORK."),
    ("emissions", 13): Classification(
        Action.NEEDS_HUMAN,
        "the wallet is not registered as a worker of the topic",
        "Register it: run once with --register; the fee is told before it is paid.",
    ),
    ("emissions", 23): Classification(Action.NEEDS_HUMAN, "no such topic", "Check TOPIC_ID and ALLORA_NETWORK."),
    ("emissions", 67): Classification(Action.WINDOW_CLOSED, "the worker submission window is not open", _NO_ACTION_RETRYING),
    ("emissions", 68): Classification(Action.VERIFY, "the reputers' window is not open", _NO_ACTION_RETRYING),
    ("emissions", 75): Classification(
        Action.VERIFY, "no such nonce is open: the window closed, or the nonce is wrong", _NO_ACTION_RETRYING
    ),
    ("emissions", 78): Classification(Action.DONE, "this worker was counted for this window already", _NO_ACTION),
}  # fmt: skip

TEXT_PATTERNS: tuple[tuple[str, Classification], ...] = (
    (
        "inference already submitted",
        Classification(Action.DONE, "the nonce has this worker's forecast already", _NO_ACTION),
    ),
    ("cannot update ema", CODES["emissions", 78]),
    (
        "not permitted to submit payload",
        Classification(
            Action.NEEDS_HUMAN,
            "the topic takes forecasts of listed workers only, and this wallet is not on the list",
            "Ask the topic's creator to list the wallet, or choose another TOPIC_ID.",
        ),
    ),
    ("account sequence mismatch", CODES["sdk", 32]),
    ("tx timeout height", CODES["sdk", 30]),
    ("out of gas", CODES["sdk", 11]),
    ("insufficient fee", CODES["sdk", 13]),
    ("insufficient funds", CODES["sdk", 5]),
    ("insufficient balance", CODES["sdk", 5]),
    ("tx already exists in cache", CODES["sdk", 19]),
    ("tx already in mempool", CODES["sdk", 19]),
    ("mempool is full", CODES["sdk", 20]),
    ("worker nonce window not available", CODES["emissions", 67]),
    ("unfulfilled nonce not found", CODES["emissions", 75]),
    ("address not registered", CODES["emissions", 13]),
)
"""Texts that name a refusal, in lower case; looked for in this order, and only where the code says nothing."""


def classify(codespace: str, code: int, log: str = "") -> Classification:
    """What an answer means. `log` is the node's text; it counts only where the code is not in the table."""
    if code == 0:
        return ACCEPTED
    classification = CODES.get((codespace, code))
    return classification if classification is not None else classify_text(log)


def classify_text(log: str) -> Classification:
    """What a refusal without a code of its own means, for instance that of a simulation."""
    lowercase_log = log.lower()
    return next((classification for text, classification in TEXT_PATTERNS if text in lowercase_log), UNKNOWN)
