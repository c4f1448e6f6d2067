"""What becomes of a signed submission: one pure state machine, `(row, observation) -> (row, action)`.

Nothing here reads a clock, a disk or a network. New bytes are signed only when the old ones can no longer take effect
beside them: included with a code other than 0, or refused for their fee and replaced under the same sequence, of which the
chain includes one at most. An observation made twice changes nothing the second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from forecastd.chain.codes import Action as Answer
from forecastd.ledger.ledger import SEQUENCE_USED_REASON, SETTLED_STATES, LedgerRow, SubmissionState

MAX_ATTEMPTS = 5  # signatures for one epoch; each failed one has cost its fee
LONG_PAST_BLOCKS = (
    12  # blocks past the timeout height, a minute: too late for a block that some index does not show yet
)


class NextStep(StrEnum):
    """What the worker does next."""

    SEND = "send"  # the same bytes
    LOOK_UP = "look_up"  # by hash, and the account's sequence with it
    WAIT = "wait"  # nothing can be concluded yet: look again later
    SIGN = "sign"  # new bytes for the same epoch
    CHECK_COUNTED = "ask_counted"  # whether the chain counts it
    DONE = "nothing"  # settled


@dataclass(frozen=True)
class ProcessRestart:
    """The process began; what happened before is not known."""


@dataclass(frozen=True)
class SendResponse:
    """A node answered the bytes, and the table of codes says what that means."""

    action: Answer
    message: str = ""


@dataclass(frozen=True)
class SendFailure:
    """Sending failed on the way: the bytes may have arrived or not."""


@dataclass(frozen=True)
class Inclusion:
    """A block at `height` has the transaction; `answer` is what its code means, ACCEPTED for 0."""

    height: int
    action: Answer
    message: str = ""


@dataclass(frozen=True)
class Absence:
    """No endpoint that answered has the transaction. `heights`: each one's own; `needed`: how many make a proof.

    `sequence` is the account's next one as the best endpoint tells it, None when none did. `inference`: whether the chain
    shows this worker's forecast for this epoch all the same, which is so while an index is late; `value`: that forecast's.
    """

    heights: tuple[int, ...]
    required_proofs: int
    sequence: int | None
    has_inference: bool = False
    inference_value: str | None = None


@dataclass(frozen=True)
class CountVerdict:
    """The chain was asked after the inclusion; `verdict` is ADMITTED, PASSIVE or EVICTED."""

    state: SubmissionState


Observation = ProcessRestart | SendResponse | SendFailure | Inclusion | Absence | CountVerdict


def transition(row: LedgerRow, observation: Observation) -> tuple[LedgerRow, NextStep]:
    """The row after an observation, and what to do next. Total: every observation has an answer in every state."""
    if row.state in SETTLED_STATES:
        return row, NextStep.DONE
    if isinstance(observation, Inclusion):
        return _apply_inclusion(row, observation)
    if row.state is SubmissionState.SIGNED:
        return _advance_signed(row, observation)
    if row.state is SubmissionState.ABANDONED:
        return _sign_again_or_miss(row)
    if isinstance(observation, CountVerdict):
        # Code 0 was not the end: with a full active set and a low score nothing is stored.
        return replace(row, state=observation.state), NextStep.DONE
    return row, NextStep.CHECK_COUNTED


def _advance_signed(row: LedgerRow, observation: Observation) -> tuple[LedgerRow, NextStep]:
    if isinstance(observation, Absence):
        return _apply_absence(row, observation)
    if isinstance(observation, SendResponse):
        return _apply_response(row, observation)
    return row, NextStep.LOOK_UP


def _apply_inclusion(row: LedgerRow, observation: Inclusion) -> tuple[LedgerRow, NextStep]:
    """A block has it: either it was accepted, or its bytes are dead for certain."""
    if row.state is SubmissionState.INCLUDED:
        return replace(row, height=observation.height), NextStep.CHECK_COUNTED
    updated_row = replace(row, height=observation.height, reason=observation.message)
    if observation.action in (Answer.ACCEPTED, Answer.PENDING, Answer.DONE):
        return replace(updated_row, state=SubmissionState.INCLUDED), NextStep.CHECK_COUNTED
    if observation.action in (Answer.RESIGN, Answer.RESEND, Answer.RETRY):
        return _sign_again_or_miss(updated_row)
    return replace(updated_row, state=SubmissionState.MISSED), NextStep.DONE


def _apply_response(row: LedgerRow, observation: SendResponse) -> tuple[LedgerRow, NextStep]:
    """A node's own check is no proof of anything: other nodes may have taken the same bytes."""
    match observation.action:
        case Answer.ACCEPTED | Answer.PENDING:
            return replace(row, fee_refused=False, reason=""), NextStep.LOOK_UP
        case Answer.RESIGN:
            return replace(row, fee_refused=True, reason=observation.message), NextStep.LOOK_UP
        case Answer.RESEND | Answer.RETRY:
            return replace(row, reason=observation.message), NextStep.SEND
    return replace(row, reason=observation.message), NextStep.LOOK_UP


def _apply_absence(row: LedgerRow, observation: Absence) -> tuple[LedgerRow, NextStep]:
    """Not in a block: send again, wait for a proof, or give the epoch up."""
    if observation.has_inference:
        return replace(
            row, state=SubmissionState.INCLUDED, reason="found by its inference, not yet by its hash"
        ), NextStep.CHECK_COUNTED
    endpoints_past_timeout = sum(height > row.timeout_height for height in observation.heights)
    is_sequence_used = observation.sequence is not None and observation.sequence > row.sequence
    # Nothing can be signed for this epoch any more, so where the sequence is unused as well, one witness is enough: others
    # that stay away for days must not keep the next epochs from being served.
    is_sequence_unused = (
        observation.sequence is not None and not is_sequence_used and is_long_past_timeout(row, observation)
    )
    if endpoints_past_timeout >= observation.required_proofs > 0 or is_sequence_unused:
        reason = SEQUENCE_USED_REASON if is_sequence_used else row.reason or "not included by the end of its window"
        return replace(row, state=SubmissionState.MISSED, reason=reason), NextStep.DONE
    # A sequence beyond ours: ours may be in a block that is not indexed yet, or somebody else used it. Neither is proof.
    if endpoints_past_timeout or is_sequence_used or not observation.heights or observation.sequence is None:
        return row, NextStep.WAIT
    if row.fee_refused and row.attempts < MAX_ATTEMPTS:
        # New bytes with the same sequence exclude the old ones on the chain: at most one of them can be included.
        return replace(row, state=SubmissionState.ABANDONED), NextStep.SIGN
    return row, NextStep.SEND


def is_long_past_timeout(row: LedgerRow, observation: Observation) -> bool:
    """Whether an endpoint that does not have the transaction is well past the last block that could have it."""
    return (
        isinstance(observation, Absence) and max(observation.heights, default=0) > row.timeout_height + LONG_PAST_BLOCKS
    )


def _sign_again_or_miss(row: LedgerRow) -> tuple[LedgerRow, NextStep]:
    """New bytes, unless too many were signed already: then the epoch is missed."""
    if row.attempts < MAX_ATTEMPTS:
        return replace(row, state=SubmissionState.ABANDONED), NextStep.SIGN
    return replace(row, state=SubmissionState.MISSED), NextStep.DONE


def expire_abandoned(row: LedgerRow, height: int) -> LedgerRow:
    """A dead row whose window has closed is a missed epoch; every other row is as it was."""
    if row.state is SubmissionState.ABANDONED and height >= row.timeout_height:
        return replace(row, state=SubmissionState.MISSED)
    return row
