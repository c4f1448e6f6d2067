"""Delivers a signed submission: sends the same bytes, looks them up, and takes the steps of the state machine.

Invariant: every observation is recorded before the next step, so after a kill at any point the ledger has what is needed to
continue. Nothing here signs: a submission that the state machine abandons is returned to the cycle.
"""

from __future__ import annotations

import logging
import random
from decimal import Decimal

from forecastd.chain.codes import Action, classify
from forecastd.chain.types import Inference
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.ledger.ledger import OPEN_STATES, SETTLED_STATES, EpochKey, LedgerEntry, LedgerRow, SubmissionState
from forecastd.runtime.failpoints import failpoint
from forecastd.submission.context import CycleContext
from forecastd.submission.state_machine import (
    Absence,
    CountVerdict,
    Inclusion,
    NextStep,
    Observation,
    ProcessRestart,
    SendFailure,
    SendResponse,
    expire_abandoned,
    is_long_past_timeout,
    transition,
)

log = logging.getLogger(__name__)

# This many endpoints past the timeout height must lack a transaction before it counts as lost.
ABSENCE_PROOF_ENDPOINTS = 2
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.05, 5.0  # each wait is 1.6 times the last, with 10 % jitter
_ACTION_PRIORITY = (Action.ACCEPTED, Action.PENDING, Action.DONE, Action.VERIFY, Action.WINDOW_CLOSED, Action.RESIGN)


def deliver(context: CycleContext, key: EpochKey, *, never_sent: bool = False) -> LedgerEntry:
    """Deliver an epoch's submission until it is in a block, settled or abandoned.

    It also ends when `confirmation_seconds` have passed, when `wake` is set, and when the window closed long ago and too
    few endpoints answer to prove the result. An abandoned submission may be signed again. `never_sent`: just committed,
    so the first step is to send.

    Raises:
        RetryLater: the ledger could not be written.
        NeedsHuman: another signer uses the wallet's key.
    """
    limit, wait_seconds = context.confirmation_seconds, MIN_WAIT_SECONDS
    deadline = float("inf") if limit is None else context.clock.monotonic() + limit
    entry = context.ledger.get(key)
    next_step = NextStep.SEND if never_sent else transition(entry.row, ProcessRestart())[1]
    while entry.row.state not in SETTLED_STATES:
        if next_step is NextStep.SIGN:
            return _record(context, entry, _expire_abandoned(context, entry.row))
        observation = _observe(context, entry, next_step)
        if observation is None and next_step is NextStep.CHECK_COUNTED:
            break
        previous_row = entry.row
        row, next_step = (entry.row, NextStep.WAIT) if observation is None else transition(entry.row, observation)
        if row != previous_row:
            entry, wait_seconds = _record(context, entry, row, _foreign_value(observation)), MIN_WAIT_SECONDS
            failpoint("after record")
        remaining = deadline - context.clock.monotonic()
        if remaining <= 0:
            break
        if next_step is NextStep.WAIT and is_long_past_timeout(row, observation):
            break  # the next epoch's cycle looks it up again
        should_wait = row == previous_row or next_step in (NextStep.WAIT, NextStep.SEND)
        if should_wait and context.wake.wait(min(wait_seconds * random.uniform(0.9, 1.1), remaining)):  # noqa: S311 - no secret
            break
        wait_seconds = min(wait_seconds * 1.6, MAX_WAIT_SECONDS) if should_wait else MIN_WAIT_SECONDS
    return entry


def reconcile(context: CycleContext) -> None:
    """Settle the open entries of earlier runs by what the chain knows. Signs and sends nothing.

    The topics that other threads serve at the same time are left to them.

    Raises:
        RetryLater: the ledger could not be written, or no endpoint answered.
        NeedsHuman: another signer uses the wallet's key.
    """
    resources = context.resources
    for entry in context.ledger.entries(resources.chain_id, resources.wallet.address, states=OPEN_STATES):
        if entry.key[1] in resources.topics_of_other_threads:
            continue
        row, value = entry.row, None
        for _ in range(2):  # first the inclusion, then whether the chain counts it
            is_included = row.state is SubmissionState.INCLUDED
            observation = _check_counted(context, entry) if is_included else _look_up(context, entry)
            if observation is None:
                break
            row = _expire_abandoned(context, transition(row, observation)[0])
            value = value or _foreign_value(observation)
        _record(context, entry, row, value)


def _record(context: CycleContext, entry: LedgerEntry, row: LedgerRow, value: str | None = None) -> LedgerEntry:
    """Record the new row of an unsettled entry, and report the epoch if it is missed now."""
    updated = context.ledger.record(entry.key, row, context.clock.now(), value=value)
    if updated.row.state is SubmissionState.MISSED:
        context.on_missed(updated)
    return updated


def _expire_abandoned(context: CycleContext, row: LedgerRow) -> LedgerRow:
    """The row as missed when it is abandoned and its window has closed; the height is queried for such a row only."""
    return expire_abandoned(row, context.chain.height()) if row.state is SubmissionState.ABANDONED else row


def _foreign_value(observation: Observation | None) -> str | None:
    """The value of a forecast that the chain shows without its transaction, perhaps signed with a ledger lost since."""
    return observation.inference_value if isinstance(observation, Absence) and observation.has_inference else None


def _observe(context: CycleContext, entry: LedgerEntry, next_step: NextStep) -> Observation | None:
    """Make the observation that `next_step` needs; None when no endpoint answered."""
    try:
        if next_step is NextStep.SEND:
            return _send(context, entry)
        if next_step is NextStep.CHECK_COUNTED:
            return _check_counted(context, entry)
        return _look_up(context, entry)
    except RetryLater as error:
        log.info("%s no endpoint answered for nonce %d: %s", context.label, entry.nonce, error)
        return None


def _send(context: CycleContext, entry: LedgerEntry) -> Observation:
    """Send the newest bytes to several endpoints. The best answer counts, for one acceptance is enough."""
    submission = context.ledger.attempts(entry.key)[-1]
    failpoint("before send")
    answers = [
        response.result for response in context.chain.broadcast_all(submission.tx_bytes) if response.result is not None
    ]
    failpoint("after send")
    meanings = [(classify(answer.codespace, answer.code, answer.log), answer) for answer in answers]
    for meaning, answer in meanings:
        answer_text = f"{answer.codespace} {answer.code}: {answer.log}" if answer.code else "code 0"
        log.info("%s sent %s: %s (%s)", context.label, submission.tx_hash, answer_text, meaning.description)
    if not meanings:
        return SendFailure()
    rank = {action: index for index, action in enumerate(_ACTION_PRIORITY)}
    meaning, answer = min(meanings, key=lambda pair: rank.get(pair[0].action, len(rank)))
    accepted = meaning.action in (Action.ACCEPTED, Action.PENDING)
    return SendResponse(meaning.action, "" if accepted else f"{meaning.description} ({answer.log})")


def _look_up(context: CycleContext, entry: LedgerEntry) -> Observation:
    """Look up every signature of the epoch: a successful inclusion of any counts, else the result of the newest."""
    heights: tuple[int, ...] = ()
    failed_inclusion: Inclusion | None = None
    answer_count = 0
    for submission in reversed(context.ledger.attempts(entry.key)):
        lookup = context.chain.look_up(submission.tx_hash)
        if lookup.result is not None:
            tx_result = lookup.result
            meaning = classify(tx_result.codespace, tx_result.code, tx_result.log)
            observation = Inclusion(
                tx_result.height,
                meaning.action,
                "" if tx_result.code == 0 else f"{meaning.description} ({tx_result.log})",
            )
            if meaning.action is Action.ACCEPTED:
                return observation
            failed_inclusion = failed_inclusion or (observation if submission.sequence == entry.row.sequence else None)
        elif not answer_count:
            heights, answer_count = lookup.absent_heights, lookup.reply_count
    if failed_inclusion is not None:
        return failed_inclusion
    latest = context.chain.latest_inference(entry.key[1], entry.key[3])
    inference = latest if latest is not None and latest.nonce == entry.nonce else None
    if inference is not None:
        _refuse_foreign_signature(context, entry, inference)
    account = context.chain.account(entry.key[3])
    required_proofs = min(ABSENCE_PROOF_ENDPOINTS, context.chain.size)
    sequence = None if account is None else account.sequence
    return Absence(
        heights, required_proofs, sequence, inference is not None, None if inference is None else inference.value
    )


def _refuse_foreign_signature(context: CycleContext, entry: LedgerEntry, inference: Inference) -> None:
    """Raise NeedsHuman when the chain's forecast for this epoch was not signed here: another signer has the key.

    Not when this ledger knows the account only from this sequence on, for then an earlier ledger was lost.
    """
    chain_id, topic_id, nonce, wallet = entry.key
    own_values = {Decimal(submission.value) for submission in context.ledger.attempts(entry.key)}
    known_from = context.ledger.known_from(chain_id, wallet)
    if Decimal(inference.value) not in own_values and known_from is not None and entry.row.sequence > known_from:
        raise NeedsHuman(
            f"Another worker signs with the key of {wallet}: the chain has the value {inference.value} for topic {topic_id} "
            f"nonce {nonce}, but this worker signed {entry.value}. Nothing more is signed. Stop the other worker, "
            "then run `forecastd ledger trust`."
        )


def _check_counted(context: CycleContext, entry: LedgerEntry) -> Observation | None:
    """Whether the chain counts the forecast. None while that may change: an epoch's set is final when its window closed."""
    _, topic_id, nonce, wallet = entry.key
    latest = context.chain.latest_inference(topic_id, wallet)
    is_stored = latest is not None and latest.nonce == nonce
    if context.chain.height() <= entry.row.timeout_height:
        return None if is_stored else CountVerdict(SubmissionState.PASSIVE)
    epoch_inferences = context.chain.inferences_at(topic_id, nonce)
    if any(inference.worker == wallet for inference in epoch_inferences):
        return CountVerdict(SubmissionState.ADMITTED)
    if not epoch_inferences and (is_stored or (latest is not None and latest.nonce > nonce)):
        # The chain no longer keeps the set, and nothing contradicts the inclusion.
        return CountVerdict(SubmissionState.ADMITTED)
    return CountVerdict(SubmissionState.EVICTED if is_stored else SubmissionState.PASSIVE)
