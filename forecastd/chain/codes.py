"""Classifies a node's answer to a transaction: its meaning, the worker's next action, and advice for a person.

Answers are keyed on (codespace, code), never on the code alone: sdk 13 is a low fee, emissions 13 an unregistered
worker. Some refusals have no code of their own and are recognized by their text. An answer that is not in the table is
uncertain: the worker looks up the transaction by hash, checks the account, and signs nothing new. Codes: cosmos-sdk
`types/errors`, allora-chain `x/emissions/types/errors.go`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Action(Enum):
    """The worker's next action for a transaction it sent."""

    ACCEPTED = "accepted"  # accepted by the node; included, when it is the result of a block
    PENDING = "pending"  # the node already has it: wait and look it up by hash
    RESEND = "resend"  # not accepted for now: send the same bytes again
    # refused for its gas or fee: sign again with the same sequence, or with the next one if it was included
    RESIGN = "resign"
    VERIFY = "verify"  # uncertain: check hash, account and nonce before anything else
    WINDOW_CLOSED = "window_closed"  # certainly too late for this nonce: record a miss
    DONE = "done"  # the chain already has this worker's forecast for this nonce: check it, sign nothing
    NEEDS_HUMAN = "needs_human"  # fails again until a person changes something
    RETRY = "retry"  # a problem of the node: retry, or use another node


@dataclass(frozen=True)
class Classification:
    """The meaning of an answer: `description` for the log, `advice` for the operator."""

    action: Action
    description: str
    advice: str


_NO_ACTION = "No action needed."
_NO_ACTION_RETRYING = "No action needed; the worker continues automatically."
_CHECK_VERSION = "The chain does not accept transactions in this form. Upgrade forecastd, or report the problem."

ACCEPTED = Classification(Action.ACCEPTED, "accepted", _NO_ACTION)
UNKNOWN = Classification(
    Action.VERIFY,
    "an unknown answer",
    "Look up the transaction by its hash. Until it is found or its submission window ends, nothing new is signed.",
)

CODES: dict[tuple[str, int], Classification] = {
    ("sdk", 2): Classification(Action.NEEDS_HUMAN, "the node cannot read the transaction", _CHECK_VERSION),
    ("sdk", 3): Classification(Action.VERIFY, "the account has a different sequence", _NO_ACTION_RETRYING),
    ("sdk", 4): Classification(
        Action.NEEDS_HUMAN,
        "the signature is not valid for this chain and account",
        "Check that the endpoints belong to the chain of ALLORA_NETWORK, and that the mnemonic is correct.",
    ),
    ("sdk", 5): Classification(Action.NEEDS_HUMAN, "the balance does not cover the fee", "Send uallo to the wallet."),
    ("sdk", 6): Classification(Action.NEEDS_HUMAN, "the chain does not support this message type", _CHECK_VERSION),
    ("sdk", 7): Classification(Action.NEEDS_HUMAN, "an address in the transaction is malformed", _CHECK_VERSION),
    ("sdk", 8): Classification(Action.NEEDS_HUMAN, "the public key is not the account's", "Check the mnemonic."),
    ("sdk", 9): Classification(
        Action.NEEDS_HUMAN,
        "the chain does not know the account",
        "Send uallo to the wallet; the first transfer creates the account.",
    ),
    ("sdk", 10): Classification(
        Action.NEEDS_HUMAN, "the fee is in a coin that the chain does not accept", _CHECK_VERSION
    ),
    ("sdk", 11): Classification(Action.RESIGN, "out of gas", _NO_ACTION_RETRYING),
    ("sdk", 12): Classification(Action.NEEDS_HUMAN, "the memo is too long", _CHECK_VERSION),
    ("sdk", 13): Classification(
        Action.RESIGN, "the fee is below the current minimum", "If this continues, set a higher FEE_TIER."
    ),
    ("sdk", 14): Classification(Action.NEEDS_HUMAN, "too many signatures", _CHECK_VERSION),
    ("sdk", 15): Classification(Action.NEEDS_HUMAN, "no signature", _CHECK_VERSION),
    ("sdk", 18): Classification(Action.NEEDS_HUMAN, "the chain refuses the message content", _CHECK_VERSION),
    ("sdk", 19): Classification(Action.PENDING, "already in the mempool", _NO_ACTION_RETRYING),
    ("sdk", 20): Classification(Action.RESEND, "the mempool is full", _NO_ACTION_RETRYING),
    ("sdk", 21): Classification(Action.NEEDS_HUMAN, "the transaction is too large", _CHECK_VERSION),
    ("sdk", 24): Classification(
        Action.NEEDS_HUMAN, "signed with a key other than the one the message names", "Check the mnemonic."
    ),
    ("sdk", 28): Classification(
        Action.NEEDS_HUMAN,
        "wrong chain id",
        "An endpoint belongs to another chain than ALLORA_NETWORK. Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
    ),
    ("sdk", 30): Classification(
        Action.WINDOW_CLOSED, "past its timeout height, the end of the submission window", _NO_ACTION_RETRYING
    ),
    ("sdk", 32): Classification(
        Action.VERIFY,
        "the account has a different sequence",
        "If this repeats, another program signs with this mnemonic. Stop that program.",
    ),
    ("sdk", 37): Classification(Action.NEEDS_HUMAN, "the chain does not support this", _CHECK_VERSION),
    ("sdk", 41): Classification(Action.NEEDS_HUMAN, "the chain does not accept this gas limit", _CHECK_VERSION),
    ("sdk", 111222): Classification(Action.RETRY, "the node panicked", "If this continues, use another endpoint."),
    ("emissions", 6): Classification(Action.NEEDS_HUMAN, "no such topic", "Check TOPIC_ID and ALLORA_NETWORK."),
    ("emissions", 13): Classification(
        Action.NEEDS_HUMAN,
        "the wallet is not registered as a worker of the topic",
        "Register it: run once with --register. The fee is shown before it is paid.",
    ),
    ("emissions", 23): Classification(Action.NEEDS_HUMAN, "no such topic", "Check TOPIC_ID and ALLORA_NETWORK."),
    ("emissions", 67): Classification(
        Action.WINDOW_CLOSED, "the worker submission window is not open", _NO_ACTION_RETRYING
    ),
    ("emissions", 68): Classification(Action.VERIFY, "the reputers' window is not open", _NO_ACTION_RETRYING),
    ("emissions", 75): Classification(
        Action.VERIFY, "the nonce is not open: its window has closed, or the nonce is wrong", _NO_ACTION_RETRYING
    ),
    ("emissions", 78): Classification(Action.DONE, "this worker was already counted for this window", _NO_ACTION),
}

TEXT_PATTERNS: tuple[tuple[str, Classification], ...] = (
    (
        "inference already submitted",
        Classification(Action.DONE, "the chain already has this worker's forecast for the nonce", _NO_ACTION),
    ),
    ("cannot update ema", CODES["emissions", 78]),
    (
        "not permitted to submit payload",
        Classification(
            Action.NEEDS_HUMAN,
            "the topic accepts listed workers only, and this wallet is not on the list",
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
"""Lower-case texts that identify a refusal. Searched in this order, and only when the code is not in the table."""


def classify(codespace: str, code: int, log: str = "") -> Classification:
    """The meaning of an answer. `log` is the node's text; it counts only when the code is not in the table."""
    if code == 0:
        return ACCEPTED
    classification = CODES.get((codespace, code))
    return classification if classification is not None else classify_text(log)


def classify_text(log: str) -> Classification:
    """The meaning of a refusal without a code of its own, for example of a simulation."""
    lowercase_log = log.lower()
    return next((classification for text, classification in TEXT_PATTERNS if text in lowercase_log), UNKNOWN)
