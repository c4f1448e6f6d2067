"""The submission state machine, from signed to settled: a pure function `(row, observation) -> (row, next step)`.

Nothing here reads a clock, a disk or a network. The same observation a second time changes nothing.

Invariant: new bytes are signed only when the old ones can no longer take effect as well: a block included them with a
code other than 0, or their fee was refused and the new ones have the same sequence, which the chain includes at most once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from forecastd.chain.codes import Action
from forecastd.ledger.ledger import SEQUENCE_USED_REASON, SETTLED_STATES, LedgerRow, SubmissionState

MAX_ATTEMPTS = 5  # signatures for one epoch; each failed one costs its fee
LONG_PAST_BLOCKS = 12  # past the timeout height, about a minute: an index that lags shows the last block by then


class NextStep(StrEnum):
    """What the worker does next."""

    SEND = "send"  # the same bytes
    LOOK_UP = "look_up"  # the transaction by its hash, and the account's sequence
    WAIT = "wait"  # look up again later: there is no proof yet
    SIGN = "sign"  # new bytes for the same epoch
    CHECK_COUNTED = "check_counted"  # whether the chain counts it
    DONE = "done"  # settled


@dataclass(frozen=True)
class ProcessRestart:
    """The process started; what happened before is not known."""


@dataclass(frozen=True)
class SendResponse:
    """A node answered when the bytes were sent. `action`: the meaning of its code."""

    action: Action
    message: str = ""


@dataclass(frozen=True)
class SendFailure:
    """Sending failed without an answer: the bytes may have arrived or not."""


@dataclass(frozen=True)
class Inclusion:
    """A block at `height` has the transaction. `action`: the meaning of its code, ACCEPTED for 0."""

    height: int
    action: Action
    message: str = ""


@dataclass(frozen=True)
class Absence:
    """No endpoint that answered has the transaction.

    `heights`: the height of each of these endpoints. `required_proofs`: how many past the timeout height prove that it is
    lost. `sequence`: the account's next one by the best endpoint, None when none answered. `has_inference`: the chain shows
    this worker's forecast for this epoch nevertheless, as it does while an index lags; `inference_value`: its value.
    """

    heights: tuple[int, ...]
    required_proofs: int
    sequence: int | None
    has_inference: bool = False
    inference_value: str | None = None


@dataclass(frozen=True)
class CountVerdict:
    """Whether the chain counts an included submission. `state` is ADMITTED, PASSIVE or EVICTED."""

    state: SubmissionState


Observation = ProcessRestart | SendResponse | SendFailure | Inclusion | Absence | CountVerdict


def transition(row: LedgerRow, observation: Observation) -> tuple[LedgerRow, NextStep]:
    """The row after an observation, and what to do next. Defined for every observation in every state."""
    if row.state in SETTLED_STATES:
        return row, NextStep.DONE
    if isinstance(observation, Inclusion):
        return _apply_inclusion(row, observation)
    if row.state is SubmissionState.SIGNED:
        return _advance_signed(row, observation)
    if row.state is SubmissionState.ABANDONED:
        return _sign_again_or_miss(row)
    if isinstance(observation, CountVerdict):
        # Code 0 is not the end: with a full active set and a low score the chain stores nothing.
        return replace(row, state=observation.state), NextStep.DONE
    return row, NextStep.CHECK_COUNTED


def _advance_signed(row: LedgerRow, observation: Observation) -> tuple[LedgerRow, NextStep]:
    if isinstance(observation, Absence):
        return _apply_absence(row, observation)
    if isinstance(observation, SendResponse):
        return _apply_response(row, observation)
    return row, NextStep.LOOK_UP


def _apply_inclusion(row: LedgerRow, observation: Inclusion) -> tuple[LedgerRow, NextStep]:
    """A block has the transaction: either it was accepted, or its bytes can never take effect."""
    if row.state is SubmissionState.INCLUDED:
        return replace(row, height=observation.height), NextStep.CHECK_COUNTED
    updated_row = replace(row, height=observation.height, reason=observation.message)
    if observation.action in (Action.ACCEPTED, Action.PENDING, Action.DONE):
        return replace(updated_row, state=SubmissionState.INCLUDED), NextStep.CHECK_COUNTED
    if observation.action in (Action.RESIGN, Action.RESEND, Action.RETRY):
        return _sign_again_or_miss(updated_row)
    return replace(updated_row, state=SubmissionState.MISSED), NextStep.DONE


def _apply_response(row: LedgerRow, observation: SendResponse) -> tuple[LedgerRow, NextStep]:
    """A node's own check proves nothing: other nodes may have accepted the same bytes."""
    match observation.action:
        case Action.ACCEPTED | Action.PENDING:
            return replace(row, fee_refused=False, reason=""), NextStep.LOOK_UP
        case Action.RESIGN:
            return replace(row, fee_refused=True, reason=observation.message), NextStep.LOOK_UP
        case Action.RESEND | Action.RETRY:
            return replace(row, reason=observation.message), NextStep.SEND
    return replace(row, reason=observation.message), NextStep.LOOK_UP


def _apply_absence(row: LedgerRow, observation: Absence) -> tuple[LedgerRow, NextStep]:
    """No block has the transaction: send it again, wait for a proof, or record the epoch as missed."""
    if observation.has_inference:
        return replace(
            row, state=SubmissionState.INCLUDED, reason="found by its inference, not yet by its hash"
        ), NextStep.CHECK_COUNTED
    endpoints_past_timeout = sum(height > row.timeout_height for height in observation.heights)
    is_sequence_used = observation.sequence is not None and observation.sequence > row.sequence
    # Long past the timeout nothing can be signed for this epoch. If the sequence is unused too, one endpoint is
    # proof enough: others that do not answer for days must not block the next epochs.
    is_sequence_unused = (
        observation.sequence is not None and not is_sequence_used and is_long_past_timeout(row, observation)
    )
    if endpoints_past_timeout >= observation.required_proofs > 0 or is_sequence_unused:
        reason = SEQUENCE_USED_REASON if is_sequence_used else row.reason or "not included by the end of its window"
        return replace(row, state=SubmissionState.MISSED, reason=reason), NextStep.DONE
    # The sequence is used: by our transaction in a block that is not indexed yet, or by another signer. Neither is proof.
    if endpoints_past_timeout or is_sequence_used or not observation.heights or observation.sequence is None:
        return row, NextStep.WAIT
    if row.fee_refused and row.attempts < MAX_ATTEMPTS:
        # New bytes with the same sequence exclude the old ones: the chain includes at most one of them.
        return replace(row, state=SubmissionState.ABANDONED), NextStep.SIGN
    return row, NextStep.SEND


def is_long_past_timeout(row: LedgerRow, observation: Observation | None) -> bool:
    """Whether an endpoint without the transaction is well past the last block that could include it."""
    return (
        isinstance(observation, Absence) and max(observation.heights, default=0) > row.timeout_height + LONG_PAST_BLOCKS
    )


def _sign_again_or_miss(row: LedgerRow) -> tuple[LedgerRow, NextStep]:
    """Sign new bytes, unless there were too many attempts: then the epoch is missed."""
    if row.attempts < MAX_ATTEMPTS:
        return replace(row, state=SubmissionState.ABANDONED), NextStep.SIGN
    return replace(row, state=SubmissionState.MISSED), NextStep.DONE


def expire_abandoned(row: LedgerRow, height: int) -> LedgerRow:
    """An abandoned row as missed once its window has closed; every other row unchanged."""
    if row.state is SubmissionState.ABANDONED and height >= row.timeout_height:
        return replace(row, state=SubmissionState.MISSED)
    return row
