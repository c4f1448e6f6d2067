"""What becomes of a signed submission: one pure state machine, `(row, observation) -> (row, action)`.

Nothing here reads a clock, a disk or a network. New bytes are signed only when the old ones can no longer take effect
beside them: included with a code other than 0, or refused for their fee and replaced under the same sequence, of which the
chain includes one at most. An observation made twice changes nothing the second time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from forecastd.chain.codes import Action as Answer
from forecastd.ledger import OVERTAKEN, SETTLED, Row, State

MOST_ATTEMPTS = 5  # signatures for one epoch; each failed one has cost its fee
LONG_PAST = 12  # blocks past the timeout height, a minute: too late for a block that some index does not show yet


class Do(StrEnum):
    """What the worker does next."""

    SEND = "send"  # the same bytes
    LOOK_UP = "look_up"  # by hash, and the account's sequence with it
    WAIT = "wait"  # nothing can be concluded yet: look again later
    SIGN = "sign"  # new bytes for the same epoch
    ASK_COUNTED = "ask_counted"  # whether the chain counts it
    NOTHING = "nothing"  # settled


@dataclass(frozen=True)
class Restarted:
    """The process began; what happened before is not known."""


@dataclass(frozen=True)
class Answered:
    """A node answered the bytes, and the table of codes says what that means."""

    answer: Answer
    said: str = ""


@dataclass(frozen=True)
class Unanswered:
    """Sending failed on the way: the bytes may have arrived or not."""


@dataclass(frozen=True)
class Found:
    """A block at `height` has the transaction; `answer` is what its code means, ACCEPTED for 0."""

    height: int
    answer: Answer
    said: str = ""


@dataclass(frozen=True)
class Absent:
    """No endpoint that answered has the transaction. `heights`: each one's own; `needed`: how many make a proof.

    `sequence` is the account's next one as the best endpoint tells it, None when none did. `inference`: whether the chain
    shows this worker's forecast for this epoch all the same, which is so while an index is late; `value`: that forecast's.
    """

    heights: tuple[int, ...]
    needed: int
    sequence: int | None
    inference: bool = False
    value: str | None = None


@dataclass(frozen=True)
class Counted:
    """The chain was asked after the inclusion; `verdict` is ADMITTED, PASSIVE or EVICTED."""

    verdict: State


Observation = Restarted | Answered | Unanswered | Found | Absent | Counted


def step(row: Row, seen: Observation) -> tuple[Row, Do]:
    """The row after an observation, and what to do next. Total: every observation has an answer in every state."""
    if row.state in SETTLED:
        return row, Do.NOTHING
    if isinstance(seen, Found):
        return _found(row, seen)
    if row.state is State.SIGNED:
        return _signed(row, seen)
    if row.state is State.DEAD:
        return _dead(row)
    if isinstance(seen, Counted):
        # Code 0 was not the end: with a full active set and a low score nothing is stored.
        return replace(row, state=seen.verdict), Do.NOTHING
    return row, Do.ASK_COUNTED


def _signed(row: Row, seen: Observation) -> tuple[Row, Do]:
    if isinstance(seen, Absent):
        return _absent(row, seen)
    if isinstance(seen, Answered):
        return _answered(row, seen)
    return row, Do.LOOK_UP


def _found(row: Row, seen: Found) -> tuple[Row, Do]:
    """A block has it: either it was accepted, or its bytes are dead for certain."""
    if row.state is State.INCLUDED:
        return replace(row, height=seen.height), Do.ASK_COUNTED
    at = replace(row, height=seen.height, reason=seen.said)
    if seen.answer in (Answer.ACCEPTED, Answer.PENDING, Answer.DONE):
        return replace(at, state=State.INCLUDED), Do.ASK_COUNTED
    if seen.answer in (Answer.RESIGN, Answer.RESEND, Answer.RETRY):
        return _dead(at)
    return replace(at, state=State.MISSED), Do.NOTHING


def _answered(row: Row, seen: Answered) -> tuple[Row, Do]:
    """A node's own check is no proof of anything: other nodes may have taken the same bytes."""
    match seen.answer:
        case Answer.ACCEPTED | Answer.PENDING:
            return replace(row, refused=False, reason=""), Do.LOOK_UP
        case Answer.RESIGN:
            return replace(row, refused=True, reason=seen.said), Do.LOOK_UP
        case Answer.RESEND | Answer.RETRY:
            return replace(row, reason=seen.said), Do.SEND
    return replace(row, reason=seen.said), Do.LOOK_UP


def _absent(row: Row, seen: Absent) -> tuple[Row, Do]:
    """Not in a block: send again, wait for a proof, or give the epoch up."""
    if seen.inference:
        return replace(row, state=State.INCLUDED, reason="found by its inference, not yet by its hash"), Do.ASK_COUNTED
    past = sum(height > row.timeout_height for height in seen.heights)
    overtaken = seen.sequence is not None and seen.sequence > row.sequence
    # Nothing can be signed for this epoch any more, so where the sequence is unused as well, one witness is enough: others
    # that stay away for days must not keep the next epochs from being served.
    unused = seen.sequence is not None and not overtaken and long_past(row, seen)
    if past >= seen.needed > 0 or unused:
        reason = OVERTAKEN if overtaken else row.reason or "not included by the end of its window"
        return replace(row, state=State.MISSED, reason=reason), Do.NOTHING
    # A sequence beyond ours: ours may be in a block that is not indexed yet, or somebody else used it. Neither is proof.
    if past or overtaken or not seen.heights or seen.sequence is None:
        return row, Do.WAIT
    if row.refused and row.attempts < MOST_ATTEMPTS:
        # New bytes with the same sequence exclude the old ones on the chain: at most one of them can be included.
        return replace(row, state=State.DEAD), Do.SIGN
    return row, Do.SEND


def long_past(row: Row, seen: Observation) -> bool:
    """Whether an endpoint that does not have the transaction is well past the last block that could have it."""
    return isinstance(seen, Absent) and max(seen.heights, default=0) > row.timeout_height + LONG_PAST


def _dead(row: Row) -> tuple[Row, Do]:
    """New bytes, unless too many were signed already: then the epoch is missed."""
    if row.attempts < MOST_ATTEMPTS:
        return replace(row, state=State.DEAD), Do.SIGN
    return replace(row, state=State.MISSED), Do.NOTHING


def window_over(row: Row, height: int) -> Row:
    """A dead row whose window has closed is a missed epoch; every other row is as it was."""
    if row.state is State.DEAD and height >= row.timeout_height:
        return replace(row, state=State.MISSED)
    return row
