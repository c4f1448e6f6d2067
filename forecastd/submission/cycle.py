"""One cycle: serve one epoch, from the open submission window to the outcome.

Each stage takes and returns values, or raises an error of `errors.py`. The outcome is built from these values at the end.

Invariant: nothing is sent before it is in the ledger, and open entries of the ledger are settled before anything new is
signed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from forecastd.chain.client import ChainClient
from forecastd.chain.codec import canonical_value, payload_message, sign_submission
from forecastd.chain.networks import is_local
from forecastd.chain.submit import price_transaction
from forecastd.clock import Clock, to_iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.inference.forecaster import TooFewCandles
from forecastd.inference.stages import (
    StageResult,
    describe_candles,
    describe_forecast,
    describe_guards,
    describe_model,
    describe_submission,
    quantiles_at_horizon,
)
from forecastd.ledger.ledger import FINISHED_STATES, LedgerEntry, Submission, SubmissionState
from forecastd.ledger.outcome import Outcome, outcome_from_error
from forecastd.market.candles import Candles
from forecastd.runtime.failpoints import failpoint
from forecastd.runtime.formatting import format_count
from forecastd.submission.account import (
    accept_before_first_signature,
    check_account,
    has_lost_submission,
    needs_registration,
    record_recovered,
    recover_from_chain,
    register_worker,
)
from forecastd.submission.context import CycleContext
from forecastd.submission.delivery import deliver, reconcile
from forecastd.submission.window import (
    CycleTimer,
    SubmissionWindow,
    closed_nonces,
    confirm_windows,
    record_missed,
    select_window,
)
from models.base import Forecast

log = logging.getLogger(__name__)

# The latest point, as a share of the window, at which a stage may still succeed.
FETCH_SHARE, MODEL_SHARE, SIGN_SHARE = 0.5, 0.8, 1.0
CLOCK_TOLERANCE_SECONDS = 600.0  # between this machine's clock and the latest block
GAS_GROWTH = 1.5  # of each further signature for an epoch: the earlier ones may have run out of gas
_IN_BLOCK_REASONS = {
    SubmissionState.PASSIVE: "accepted, but outside the active set",
    SubmissionState.EVICTED: "evicted from the active set",
}


@dataclass(frozen=True)
class Epoch:
    """The epoch to serve, as the chain and the ledger show it at `height`.

    `window`: None when none is open, for the reason `idle_reason`. `next_window_height`: at which the next window opens,
    None when it is not known. `entry`: of the ledger. `is_served`: it already has its submission. `must_register`: the
    worker must be registered before it can submit.
    """

    height: int
    next_window_height: int | None
    must_register: bool
    window: SubmissionWindow | None = None
    idle_reason: str = ""
    entry: LedgerEntry | None = None
    is_served: bool = False


@dataclass(frozen=True)
class CheckedForecast:
    """A forecast that passed the guards. `synthetic`: its candles or its model's training data are synthetic."""

    forecast: Forecast
    synthetic: bool
    warnings: tuple[str, ...]


class StageTimer:
    """Times the stages of a cycle and reports each one that succeeds. `seconds`: by stage, all attempts together."""

    def __init__(self, context: CycleContext) -> None:
        self.seconds: dict[str, float] = {}
        self._context = context

    @contextmanager
    def __call__(self, name: str) -> Iterator[list[str]]:
        """Run a stage. The block appends lines that describe its result."""
        context, lines = self._context, list[str]()
        context.on_stage_start(name)
        log.debug("%s %s starts", context.label, name)
        start = context.clock.monotonic()
        try:
            yield lines
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + context.clock.monotonic() - start, 4)
        log.info("%s %s: %s", context.label, name, "; ".join(lines))
        context.on_stage_end(StageResult(name, "\n".join(lines), self.seconds[name]))


@dataclass
class CycleValues:
    """What the stages of a cycle have returned so far; None for a stage that has not succeeded yet."""

    epoch: Epoch | None = None
    candles: Candles | None = None
    bundle: str | None = None
    forecast: Forecast | None = None
    checked: CheckedForecast | None = None
    submission: Submission | None = None
    entry: LedgerEntry | None = None

    @property
    def window(self) -> SubmissionWindow | None:
        """The window to serve; None while it is not known."""
        return None if self.epoch is None else self.epoch.window

    @property
    def share(self) -> float:
        """The share of the window that the next stage has."""
        return FETCH_SHARE if self.candles is None else MODEL_SHARE if self.checked is None else SIGN_SHARE


def run_cycle(context: CycleContext, windows: Sequence[SubmissionWindow] = ()) -> Outcome:
    """Serve the newest open epoch of a topic once. An error of `errors.py` is not raised but becomes the outcome.

    `windows`: those that the caller knows. The chain is queried for its windows when none of them is open.
    """
    stage, timer, values = StageTimer(context), CycleTimer(context), CycleValues()
    as_of, outage = to_iso(context.clock.now()), ""
    failure: ForecastdError | None = None
    is_complete = False
    while not is_complete and failure is None:
        try:
            is_complete = run_stages(context, stage, timer, values, windows=windows, outage=outage)
        except ForecastdError as error:
            outage = str(error)
            failure = timer.pause(error, values.window, values.share)
    try:
        outcome = make_outcome(context, values) if failure is None else make_failure(context, values, failure)
    except ForecastdError as error:  # of the ledger
        outcome = outcome_from_error(error, partial_outcome(context, values))
    outcome = replace(outcome, as_of=as_of, stages=stage.seconds)
    log.info(
        "%s outcome: %s, exit code %d, nonce %s: %s%s",
        context.label,
        outcome.outcome,
        outcome.exit_code,
        outcome.nonce,
        outcome.reason or outcome.tx_hash,
        _describe_next_window(context, values.epoch, max(timer.height, outcome.height or 0)),
    )
    return outcome


def run_stages(
    context: CycleContext,
    stage: StageTimer,
    timer: CycleTimer,
    values: CycleValues,
    *,
    windows: Sequence[SubmissionWindow],
    outage: str,
) -> bool:
    """Run the stages that have not succeeded yet, and keep what they return in `values`.

    Returns whether the cycle is complete. If not, the chain will never take the epoch's submission: sign another one.
    `outage`: why no endpoint has answered yet.
    """
    epoch = values.epoch = values.epoch or find_epoch(context, stage, windows, outage)
    window, values.entry = epoch.window, epoch.entry
    if window is None or (epoch.is_served and not context.dry_run):
        return True
    values.entry = context.ledger.find(context.resources.epoch_key(window.nonce))
    if context.dry_run or must_sign(values.entry):
        too_late = functools.partial(timer.is_too_late, window)
        values.candles = values.candles or fetch_candles(context, stage)
        if values.checked is None:
            values.bundle = check_model(context, stage, too_late)
            values.candles, values.forecast = make_forecast(context, stage, values.candles, too_late)
            values.checked = check_guards(context, stage, values.candles, values.forecast)
        if epoch.is_served:
            return True
        values.submission = sign_forecast(context, stage, window, values.checked, must_register=epoch.must_register)
        if context.dry_run:
            return True
    values.entry = submit(context, stage, window, values.submission)
    return not must_sign(values.entry) or context.wake.is_set()


def must_sign(entry: LedgerEntry | None) -> bool:
    """Whether an epoch with this entry needs new bytes."""
    return entry is None or entry.row.state is SubmissionState.ABANDONED


# The stages


def find_epoch(
    context: CycleContext, stage: StageTimer, windows: Sequence[SubmissionWindow] = (), outage: str = ""
) -> Epoch:
    """Bring the ledger up to date with the chain, and find the epoch to serve.

    `outage`: why no endpoint answered before, for the epochs that were missed meanwhile.

    Raises:
        RetryLater: no endpoint answered, or the ledger could not be written.
        NeedsHuman: the topic does not exist, the worker may not submit to it, or another signer uses its key.
    """
    resources, chain, ledger = context.resources, context.chain, context.ledger
    topic_id, address = resources.key
    with stage("chain") as lines:
        chain_id = chain.chain_id()  # raises if the endpoints are on another chain
        topic = chain.topic(topic_id)
        if topic is None:
            raise NeedsHuman(f"Topic {topic_id} does not exist on {chain_id}. Check --topic-id.")
        height, open_windows = confirm_windows(chain, topic, windows)
        record_missed(context, [window.nonce for window in windows if height >= window.last_height], outage)
        reconcile(context)
        with resources.signing_lock:
            is_new_account = check_account(
                chain, ledger, chain_id, address, functools.partial(has_lost_submission, context)
            )
        must_register = needs_registration(context)
        if is_new_account:
            oldest_nonce = open_windows[-1].nonce if open_windows else topic.epoch_last_ended + topic.epoch_length
            recovered_count = recover_from_chain(context, topic, oldest_nonce)
            if recovered_count:
                epochs = format_count(recovered_count, "earlier epoch")
                lines.append(f"recovered {epochs} of this worker from the chain")
        if not open_windows:
            lines.append(f"{chain_id}, height {height}: no open submission window")
            if chain.is_topic_active(topic_id):
                next_height: int | None = topic.epoch_last_ended + topic.epoch_length
                return Epoch(height, next_height, must_register, idle_reason=f"none is open at height {height}")
            return Epoch(height, None, must_register, idle_reason="the topic is not active, so it opens none")
        missed_nonces = closed_nonces(ledger, resources, topic, open_windows[-1], height)
        missed_count = record_missed(context, missed_nonces, outage)
        if missed_count:
            lines.append(f"recorded {format_count(missed_count, 'epoch')} since the last run as missed")
        window = select_window(ledger, resources, open_windows)
        lines.append(
            f"{chain_id}, height {height}: topic {topic_id} nonce {window.nonce} is open to {window.last_height}"
        )
        entry, is_on_chain = find_submission(context, window.nonce)
    is_served = entry is not None and entry.row.state in FINISHED_STATES
    if context.dry_run:
        is_served = is_on_chain or not must_sign(entry)
    newest_nonce = max(topic.epoch_last_ended, open_windows[0].nonce)
    return Epoch(
        height, newest_nonce + topic.epoch_length, must_register, window=window, entry=entry, is_served=is_served
    )


def find_submission(context: CycleContext, nonce: int) -> tuple[LedgerEntry | None, bool]:
    """An epoch's entry, and whether the ledger does not have it but the chain has this worker's forecast.

    Such a forecast is recorded, except in a dry run.
    """
    entry = context.ledger.find(context.resources.epoch_key(nonce))
    latest = context.chain.latest_inference(*context.resources.key) if entry is None else None
    if latest is None or latest.nonce != nonce:
        return entry, False
    if context.dry_run:
        return None, True
    with context.resources.signing_lock:
        account = context.chain.account(context.resources.wallet.address)
        accept_before_first_signature(context, 0 if account is None else account.sequence)
    failpoint("before recover")
    record_recovered(context, nonce, latest.value)
    return context.ledger.find(context.resources.epoch_key(nonce)), True


def fetch_candles(context: CycleContext, stage: StageTimer) -> Candles:
    """The candles for the model that is used now.

    Raises:
        RetryLater, SkipEpoch, NeedsHuman: see `Forecaster.gather_candles`.
    """
    resources = context.resources
    with stage("data") as lines:
        now, warning = reference_time(context.chain, context.clock, resources.chain_id)
        lines.extend([f"warning: {warning}"] if warning else [])
        candles, repairs = resources.forecaster.gather_candles(resources.source, context.rolling_window, now)
        lines.append(describe_candles(candles, resources.source.name, now))
        lines.extend(repairs)
    return candles


def check_model(context: CycleContext, stage: StageTimer, too_late: Callable[[], bool]) -> str:
    """Check the model's bundle; returns its sha256. See `Forecaster.check` for the errors."""
    forecaster = context.resources.forecaster
    with stage("model") as lines:
        sha256 = forecaster.check(too_late)
        lines.append(describe_model(forecaster))
        lines.extend(f"warning: {warning}" for warning in forecaster.warnings)
    return sha256


def make_forecast(
    context: CycleContext, stage: StageTimer, candles: Candles, too_late: Callable[[], bool]
) -> tuple[Candles, Forecast]:
    """The forecast, and the candles that it was made from.

    They are fetched again when a fallback model, which needs more of them, has replaced the one they were fetched for.
    """
    if len(candles) < context.resources.forecaster.required_candles:
        candles = fetch_candles(context, stage)
    try:
        return candles, _forecast(context, stage, candles, too_late)
    except TooFewCandles:  # the model was replaced during the forecast
        candles = fetch_candles(context, stage)
        return candles, _forecast(context, stage, candles, too_late)


def _forecast(context: CycleContext, stage: StageTimer, candles: Candles, too_late: Callable[[], bool]) -> Forecast:
    with stage("forecast") as lines:
        forecast = context.resources.forecaster.forecast(candles, too_late)
        lines.extend(describe_forecast(forecast))
    return forecast


def check_guards(context: CycleContext, stage: StageTimer, candles: Candles, forecast: Forecast) -> CheckedForecast:
    """Check the forecast. Raises SkipEpoch when it must not be signed."""
    forecaster = context.resources.forecaster
    with stage("guards") as lines:
        report = forecaster.check_guards(forecast, candles, network_values(context))
        lines.extend(describe_guards(report))
    synthetic = candles.provenance.synthetic or forecaster.manifest.training.synthetic
    return CheckedForecast(forecast, synthetic, (*forecaster.warnings, *report.warnings))


def network_values(context: CycleContext) -> tuple[float, ...]:
    """The latest inferences of the other workers; empty if no node answers, because they only serve a warning."""
    topic_id, address = context.resources.key
    try:
        inferences = context.chain.network_inferences(topic_id)
    except RetryLater as error:
        log.warning("%s cannot compare with the network: %s", context.label, error)
        return ()
    values_by_worker = inferences.values_by_worker if inferences else {}
    return tuple(value for worker, value in values_by_worker.items() if worker != address)


def sign_forecast(
    context: CycleContext,
    stage: StageTimer,
    window: SubmissionWindow,
    checked: CheckedForecast,
    *,
    must_register: bool = False,
) -> Submission:
    """Price the transaction, sign it and commit it; a dry run does not commit. Only a registration is sent here.

    The sequence is the account's next one that no other open submission of this wallet uses.

    Raises:
        RetryLater: no endpoint answered, or the ledger could not be written.
        NeedsHuman: the chain would refuse the transaction, it costs too much, or its data is synthetic.
    """
    resources, chain, ledger = context.resources, context.chain, context.ledger
    key, wallet = resources.epoch_key(window.nonce), resources.wallet
    with resources.signing_lock, stage("sign") as lines:
        if must_register and not chain.is_registered(*resources.key):
            cost = register_worker(context, window.nonce)
            lines.append(f"registered {wallet.address} for topic {window.topic_id}; fee {cost} uallo")
        failpoint("before sign")
        attempt_count = len(ledger.attempts(key))
        if attempt_count:
            log.info("%s signing nonce %d again, attempt %d", context.label, window.nonce, attempt_count + 1)
        version, value = chain.version(), canonical_value(checked.forecast.value)
        tx_parameters = price_transaction(
            chain, wallet,
            payload_message(wallet, version=version, topic_id=window.topic_id, nonce=window.nonce, value=value),
            resources.fee_policy, gas_factor=GAS_GROWTH**attempt_count, message_fee=chain.params().data_sending_fee,
        )  # fmt: skip
        sequence = ledger.next_free_sequence(
            key, tx_parameters.sequence, topics_of_other_threads=resources.topics_of_other_threads
        )
        submission = sign_submission(
            wallet,
            version=version,
            chain_id=resources.chain_id,
            topic_id=window.topic_id,
            nonce=window.nonce,
            value=value,
            synthetic=checked.synthetic,
            parameters=replace(tx_parameters, sequence=sequence),
            timeout_height=window.last_height,
        )
        lines.append(f"value {submission.value}, topic {window.topic_id}, nonce {window.nonce}")
        lines.append(f"sequence {submission.sequence}, gas {submission.gas}, fee {submission.fee_uallo} uallo")
        if not context.dry_run:
            failpoint("after sign")
            accept_before_first_signature(context, submission.sequence)
            ledger.commit(submission, context.clock.now())
            failpoint("after commit")
    return submission


def submit(
    context: CycleContext, stage: StageTimer, window: SubmissionWindow, submission: Submission | None
) -> LedgerEntry:
    """Deliver the epoch's submission, see `deliver`. `submission`: the one that was just committed, if any."""
    with stage("submit") as lines:
        key = context.resources.epoch_key(window.nonce)
        entry = deliver(context, key, never_sent=submission is not None)
        lines.append(describe_submission(entry))
    return entry


def reference_time(chain: ChainClient, clock: Clock, chain_id: str) -> tuple[float, str]:
    """The time for checking the age of data, in unix seconds, and a warning when this machine's clock is wrong.

    With a clock that is a day off, a forecast would silently use yesterday's candles. The chain's time is exact to a
    minute, so it is used when the two differ by more than `CLOCK_TOLERANCE_SECONDS`. A local chain uses our own clock.
    """
    now = clock.now()
    if is_local(chain_id):
        return now, ""
    block_time = chain.block_time()
    if abs(now - block_time) <= CLOCK_TOLERANCE_SECONDS:
        return now, ""
    warning = (
        f"this machine's clock is wrong: it shows {to_iso(now)}, the latest block has {to_iso(block_time)}; "
        "using the chain's time"
    )
    log.warning("%s. Correct the clock.", warning)
    return block_time, warning


# The outcome


def make_outcome(context: CycleContext, values: CycleValues) -> Outcome:
    """The outcome of a cycle whose stages all succeeded."""
    partial, epoch, entry = partial_outcome(context, values), values.epoch, values.entry
    if epoch is None or epoch.window is None:
        reason = f"no submission window of topic {context.resources.topic_id}: {epoch.idle_reason if epoch else ''}"
        return replace(partial, outcome="no_window", reason=reason)
    if context.dry_run or entry is None:
        reason = (
            "this epoch already has its submission; nothing would be signed or sent"
            if epoch.is_served
            else "nothing was sent"
        )
        return replace(partial, outcome="dry_run", reason=reason)
    row, attempts = entry.row, context.ledger.attempts(entry.key)
    outcome = replace(
        partial,
        value=None if entry.value is None else float(entry.value),
        tx_hash=attempts[-1].tx_hash if attempts else None,
        height=row.height,
        source=None if epoch.is_served else partial.source,  # the ledger does not record the source
    )
    if row.state is SubmissionState.MISSED:
        return replace(outcome, outcome="missed", reason=row.reason or "this epoch was missed")
    if row.state not in FINISHED_STATES:
        node_message = f" The node answered: {row.reason}." if row.reason else ""
        reason = f"Signed, but not confirmed yet; run again to retry the same transaction.{node_message}"
        return replace(outcome, outcome="failed", reason=reason)
    if not epoch.is_served:
        return replace(outcome, outcome="submitted", reason=_IN_BLOCK_REASONS.get(row.state, ""))
    default_reason = "this epoch already has its submission" if attempts else row.reason
    return replace(outcome, outcome="already_submitted", reason=_IN_BLOCK_REASONS.get(row.state, default_reason))


def make_failure(context: CycleContext, values: CycleValues, failure: ForecastdError) -> Outcome:
    """The outcome of a cycle that an error ended. An epoch that was retried without success is recorded as missed."""
    window = values.window
    outcome = outcome_from_error(failure, partial_outcome(context, values))
    may_give_up = context.retry_until_closed and not context.wake.is_set() and not outcome.needs_human
    if window is not None and may_give_up and record_missed(context, [window.nonce], reason=str(failure)):
        return replace(outcome, outcome="missed", reason=f"retried until the window closed: {failure}")
    return outcome


def partial_outcome(context: CycleContext, values: CycleValues) -> Outcome:
    """What the values of the stages say; the result of the cycle is not known yet."""
    resources, forecast, submission = context.resources, values.forecast, values.submission
    window = values.window
    value = None if forecast is None else forecast.value
    return Outcome(
        "failed",
        chain_id=resources.chain_id,
        topic_id=resources.topic_id,
        nonce=None if window is None else window.nonce,
        wallet=resources.wallet.address,
        value=value if submission is None else float(submission.value),
        quantiles=None if forecast is None else quantiles_at_horizon(forecast),
        source=resources.source.name,
        synthetic=None if values.candles is None else values.candles.provenance.synthetic,
        bundle=values.bundle if forecast is None else forecast.bundle_sha256,
        warnings=() if values.checked is None else values.checked.warnings,
    )


def _describe_next_window(context: CycleContext, epoch: Epoch | None, height: int) -> str:
    """When the next submission window opens, by the latest height; empty while that is not known."""
    if epoch is None or epoch.next_window_height is None:
        return ""
    blocks = epoch.next_window_height - max(epoch.height, height)
    if blocks <= 0:
        return "; the next submission window is open"
    minutes = blocks * context.block_seconds / 60
    return f"; next submission window in {format_count(blocks, 'block')}, about {minutes:.0f} min"
