"""Brings a signed submission to its end: sends the same bytes, looks them up, and obeys the outbox.

Every observation is recorded before the next step, so a kill at any point leaves a ledger from which the same steps go on.
Only `sign_again` makes new bytes, and only when the outbox says so.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from threading import Event

from forecastd.chain.answers import Inference
from forecastd.chain.codes import Action, classify
from forecastd.chain.endpoints import Endpoints
from forecastd.clock import Clock
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.failpoints import failpoint
from forecastd.ledger import SETTLED, Entry, Key, Ledger, Row, State
from forecastd.outbox import (
    Absent,
    Answered,
    Counted,
    Do,
    Found,
    Observation,
    Restarted,
    Unanswered,
    long_past,
    step,
    window_over,
)

log = logging.getLogger(__name__)

PROOFS = 2  # endpoints past the timeout height that must not know a transaction before it counts as lost
FIRST_WAIT, LONGEST_WAIT = 0.05, 5.0  # seconds; each wait is 1.6 x the last, with a tenth of jitter
_WORTH = (Action.ACCEPTED, Action.PENDING, Action.DONE, Action.VERIFY, Action.WINDOW_CLOSED, Action.RESIGN)


@dataclass(frozen=True)
class Delivery:
    """What delivering works with."""

    ledger: Ledger
    endpoints: Endpoints
    clock: Clock
    wake: Event


def deliver(work: Delivery, key: Key, *, seconds: float, sign_again: Callable[[], None], fresh: bool = False) -> Entry:
    """Work on an epoch's submission until a block has it, it is settled, `seconds` have passed, or `work.wake` is set.

    It also ends, unsettled, when its window is long over and too few endpoints answer to say what became of it.

    `fresh`: committed just now and never sent, so the first step is to send. `sign_again` signs and commits new bytes for
    the same epoch, or raises when that cannot be done.

    Raises:
        RetryLater: the disk did not take what was learnt.
        NeedsHuman: as `sign_again` does.
    """
    end, pause = work.clock.monotonic() + seconds, FIRST_WAIT
    entry = _entry(work.ledger, key)
    do = Do.SEND if fresh else step(entry.row, Restarted())[1]
    while entry.row.state not in SETTLED:
        if do is Do.SIGN:
            over = _window_over(work, entry.row)
            if over == entry.row:
                sign_again()
            else:
                work.ledger.record(key, over, work.clock.now())
            entry, do = _entry(work.ledger, key), Do.SEND
            continue
        seen = _observe(work, entry, do)
        if seen is None and do is Do.ASK_COUNTED:
            break
        before = entry.row
        row, do = (entry.row, Do.WAIT) if seen is None else step(entry.row, seen)
        if row != before:
            work.ledger.record(key, row, work.clock.now(), value=_shown(seen))
            failpoint("recorded")
            entry, pause = _entry(work.ledger, key), FIRST_WAIT
        remaining = end - work.clock.monotonic()
        if entry.row.state in SETTLED or remaining <= 0:
            break
        if seen is not None and do is Do.WAIT and long_past(row, seen):
            break  # what is open yet is looked up again with the next epoch
        resting = row == before or do in (Do.WAIT, Do.SEND)
        if resting and work.wake.wait(min(pause * random.uniform(0.9, 1.1), remaining)):  # noqa: S311 - no secret
            break
        pause = min(pause * 1.6, LONGEST_WAIT) if resting else FIRST_WAIT
    return entry


def reconcile(work: Delivery, chain_id: str, wallet: str, *, besides: frozenset[int] = frozenset()) -> None:
    """Settle what earlier runs left open, as far as the chain knows. Signs and sends nothing.

    `besides`: topics that other threads serve at the same time; what they have open is theirs.

    Raises:
        RetryLater: the disk did not take what was learnt, or no endpoint answered.
    """
    for entry in work.ledger.entries(chain_id, wallet, unsettled=True):
        if entry.key[1] in besides:
            continue
        row, value = entry.row, None
        for _ in range(2):  # an inclusion first, then whether it counts
            seen = _counted(work, entry) if row.state is State.INCLUDED else _looked_up(work, entry)
            if seen is None:
                break
            row, value = _window_over(work, step(row, seen)[0]), value or _shown(seen)
        work.ledger.record(entry.key, row, work.clock.now(), value=value)


def _window_over(work: Delivery, row: Row) -> Row:
    """A dead row is a missed one when its window has closed; the chain is asked only for a dead one."""
    return window_over(row, work.endpoints.height()) if row.state is State.DEAD else row


def _shown(seen: Observation | None) -> str | None:
    """The value of a forecast that was found by itself. It is not ours where bytes of a ledger that was lost came first."""
    return seen.value if isinstance(seen, Absent) and seen.inference else None


def _entry(ledger: Ledger, key: Key) -> Entry:
    entry = ledger.find(key)
    if entry is None:
        raise KeyError(key)
    return entry


def _observe(work: Delivery, entry: Entry, do: Do) -> Observation | None:
    """Make the observation that `do` asks for; None when no endpoint answered."""
    try:
        if do is Do.SEND:
            return _sent(work, entry)
        if do is Do.ASK_COUNTED:
            return _counted(work, entry)
        return _looked_up(work, entry)
    except RetryLater as error:
        log.info("no endpoint helps with nonce %d: %s", entry.nonce, error)
        return None


def _sent(work: Delivery, entry: Entry) -> Observation:
    """Send the newest bytes to several endpoints; the best answer counts, for one acceptance is enough."""
    submission = work.ledger.attempts(entry.key)[-1]
    failpoint("before send")
    answers = [sent.answer for sent in work.endpoints.broadcast_all(submission.tx_bytes) if sent.answer is not None]
    failpoint("after send")
    meanings = [(classify(answer.codespace, answer.code, answer.log), answer) for answer in answers]
    for meaning, answer in meanings:
        said = f"{answer.codespace} {answer.code}: {answer.log}" if answer.code else "code 0"
        log.info("sent %s: %s (%s)", submission.tx_hash, said, meaning.meaning)
    if not meanings:
        return Unanswered()
    rank = {action: at for at, action in enumerate(_WORTH)}
    meaning, answer = min(meanings, key=lambda one: rank.get(one[0].action, len(rank)))
    accepted = meaning.action in (Action.ACCEPTED, Action.PENDING)
    return Answered(meaning.action, "" if accepted else f"{meaning.meaning} ({answer.log})")


def _looked_up(work: Delivery, entry: Entry) -> Observation:
    """Look for every signature of the epoch; a good inclusion of any counts, else the newest's fate."""
    heights: tuple[int, ...] = ()
    failed: Found | None = None
    asked = 0
    for submission in reversed(work.ledger.attempts(entry.key)):
        looked = work.endpoints.look_up(submission.tx_hash)
        if looked.found is not None:
            found = looked.found
            meaning = classify(found.codespace, found.code, found.log)
            seen = Found(found.height, meaning.action, "" if found.code == 0 else f"{meaning.meaning} ({found.log})")
            if meaning.action is Action.ACCEPTED:
                return seen
            failed = failed or (seen if submission.sequence == entry.row.sequence else None)
        elif not asked:
            heights, asked = looked.absent_heights, looked.asked
    if failed is not None:
        return failed
    latest = work.endpoints.latest_inference(entry.key[1], entry.key[3])
    shown = latest if latest is not None and latest.nonce == entry.nonce else None
    if shown is not None:
        _refuse_stranger(work, entry, shown)
    account = work.endpoints.account(entry.key[3])
    needed = min(PROOFS, work.endpoints.size)
    sequence = None if account is None else account.sequence
    return Absent(heights, needed, sequence, shown is not None, None if shown is None else shown.value)


def _refuse_stranger(work: Delivery, entry: Entry, shown: Inference) -> None:
    """Stop when the forecast that the chain shows for this epoch was not signed here: somebody else has the key.

    Not so where this ledger knows the account only from this very sequence on: then an earlier ledger was lost.
    """
    chain_id, topic_id, nonce, wallet = entry.key
    ours = {Decimal(submission.value) for submission in work.ledger.attempts(entry.key)}
    known = work.ledger.known_from(chain_id, wallet)
    if Decimal(shown.value) not in ours and known is not None and entry.row.sequence > known:
        raise NeedsHuman(
            f"Somebody else signs with the key of {wallet}: the chain has the value {shown.value} for topic {topic_id} "
            f"nonce {nonce}, and this worker signed {entry.value}. Nothing more is signed. Stop the other worker; "
            "then run `forecastd ledger trust`."
        )


def _counted(work: Delivery, entry: Entry) -> Observation | None:
    """Whether the chain counts the forecast. None while that is open: an epoch's set is final when its window has closed."""
    _, topic_id, nonce, wallet = entry.key
    latest = work.endpoints.latest_inference(topic_id, wallet)
    stored = latest is not None and latest.nonce == nonce
    if work.endpoints.height() <= entry.row.timeout_height:
        return None if stored else Counted(State.PASSIVE)
    counting = work.endpoints.inferences_at(topic_id, nonce)
    if any(inference.worker == wallet for inference in counting):
        return Counted(State.ADMITTED)
    if not counting and (stored or (latest is not None and latest.nonce > nonce)):
        return Counted(State.ADMITTED)  # the set is not kept any more, and nothing speaks against the inclusion
    return Counted(State.EVICTED if stored else State.PASSIVE)
