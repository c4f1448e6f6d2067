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


def _needs_human(description: str, advice: str = _CHECK_VERSION) -> Classification:
    return Classification(Action.NEEDS_HUMAN, description, advice)


def _automatic(action: Action, description: str, advice: str = _NO_ACTION_RETRYING) -> Classification:
    return Classification(action, description, advice)


ACCEPTED = _automatic(Action.ACCEPTED, "accepted", _NO_ACTION)
UNKNOWN = _automatic(
    Action.VERIFY,
    "an unknown answer",
    "Look up the transaction by its hash. Until it is found or its submission window ends, nothing new is signed.",
)
_NO_TOPIC = _needs_human("no such topic", "Check TOPIC_ID and ALLORA_NETWORK.")
_SEQUENCE = "the account has a different sequence"

CODES: dict[tuple[str, int], Classification] = {
    ("sdk", 2): _needs_human("the node cannot read the transaction"),
    ("sdk", 3): _automatic(Action.VERIFY, _SEQUENCE),
    ("sdk", 4): _needs_human(
        "the signature is not valid for this chain and account",
        "Check that the endpoints belong to the chain of ALLORA_NETWORK, and that the mnemonic is correct.",
    ),
    ("sdk", 5): _needs_human("the balance does not cover the fee", "Send uallo to the wallet."),
    ("sdk", 6): _needs_human("the chain does not support this message type"),
    ("sdk", 7): _needs_human("an address in the transaction is malformed"),
    ("sdk", 8): _needs_human("the public key is not the account's", "Check the mnemonic."),
    ("sdk", 9): _needs_human(
        "the chain does not know the account", "Send uallo to the wallet; the first transfer creates the account."
    ),
    ("sdk", 10): _needs_human("the fee is in a coin that the chain does not accept"),
    ("sdk", 11): _automatic(Action.RESIGN, "out of gas"),
    ("sdk", 12): _needs_human("the memo is too long"),
    ("sdk", 13): _automatic(
        Action.RESIGN, "the fee is below the current minimum", "If this continues, set a higher FEE_TIER."
    ),
    ("sdk", 14): _needs_human("too many signatures"),
    ("sdk", 15): _needs_human("no signature"),
    ("sdk", 18): _needs_human("the chain refuses the message content"),
    ("sdk", 19): _automatic(Action.PENDING, "already in the mempool"),
    ("sdk", 20): _automatic(Action.RESEND, "the mempool is full"),
    ("sdk", 21): _needs_human("the transaction is too large"),
    ("sdk", 24): _needs_human("signed with a key other than the one the message names", "Check the mnemonic."),
    ("sdk", 28): _needs_human(
        "wrong chain id",
        "An endpoint belongs to another chain than ALLORA_NETWORK. Correct RPC_ENDPOINTS or ALLORA_NETWORK.",
    ),
    ("sdk", 30): _automatic(Action.WINDOW_CLOSED, "past its timeout height, the end of the submission window"),
    ("sdk", 32): _automatic(
        Action.VERIFY, _SEQUENCE, "If this repeats, another program signs with this mnemonic. Stop that program."
    ),
    ("sdk", 37): _needs_human("the chain does not support this"),
    ("sdk", 41): _needs_human("the chain does not accept this gas limit"),
    ("sdk", 111222): _automatic(Action.RETRY, "the node panicked", "If this continues, use another endpoint."),
    ("emissions", 6): _NO_TOPIC,
    ("emissions", 13): _needs_human(
        "the wallet is not registered as a worker of the topic",
        "Register it: run once with --register. The fee is shown before it is paid.",
    ),
    ("emissions", 23): _NO_TOPIC,
    ("emissions", 67): _automatic(Action.WINDOW_CLOSED, "the worker submission window is not open"),
    ("emissions", 68): _automatic(Action.VERIFY, "the reputers' window is not open"),
    ("emissions", 75): _automatic(Action.VERIFY, "the nonce is not open: its window has closed, or the nonce is wrong"),
    ("emissions", 78): _automatic(Action.DONE, "this worker was already counted for this window", _NO_ACTION),
}

TEXT_PATTERNS: dict[str, Classification] = {
    "inference already submitted": _automatic(
        Action.DONE, "the chain already has this worker's forecast for the nonce", _NO_ACTION
    ),
    "cannot update ema": CODES["emissions", 78],
    "not permitted to submit payload": _needs_human(
        "the topic accepts listed workers only, and this wallet is not on the list",
        "Ask the topic's creator to list the wallet, or choose another TOPIC_ID.",
    ),
    "account sequence mismatch": CODES["sdk", 32],
    "tx timeout height": CODES["sdk", 30],
    "out of gas": CODES["sdk", 11],
    "insufficient fee": CODES["sdk", 13],
    "insufficient funds": CODES["sdk", 5],
    "insufficient balance": CODES["sdk", 5],
    "tx already exists in cache": CODES["sdk", 19],
    "tx already in mempool": CODES["sdk", 19],
    "mempool is full": CODES["sdk", 20],
    "worker nonce window not available": CODES["emissions", 67],
    "unfulfilled nonce not found": CODES["emissions", 75],
    "address not registered": CODES["emissions", 13],
}
"""Lower-case texts that identify a refusal. Searched in this order, and only when the code is not in the table."""


def classify(codespace: str, code: int, log: str = "") -> Classification:
    """The meaning of an answer. `log` is the node's text; it counts only when the code is not in the table."""
    if code == 0:
        return ACCEPTED
    return CODES.get((codespace, code)) or classify_text(log)


def classify_text(log: str) -> Classification:
    """The meaning of a refusal without a code of its own, for example of a simulation."""
    lowercase_log = log.lower()
    return next((classification for text, classification in TEXT_PATTERNS.items() if text in lowercase_log), UNKNOWN)
