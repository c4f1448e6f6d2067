"""One cycle: serve one epoch, from the open submission window to the outcome.

A stage takes and returns values. An error from `errors.py` ends the cycle; `run_cycle` turns it into the outcome.

Invariant: nothing is sent before it is in the ledger, and open entries of the ledger are settled before anything new is
signed.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from forecastd.chain.codec import canonical_value, payload_message, sign_submission
from forecastd.chain.submit import price_transaction
from forecastd.clock import to_iso
from forecastd.errors import ForecastdError, RetryLater, SkipEpoch
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
from forecastd.runtime.formatting import format_count, format_duration
from forecastd.runtime.retry import retry_while
from forecastd.submission.context import CycleContext, CycleOptions
from forecastd.submission.delivery import deliver, reconcile
from forecastd.submission.epochs import (
    OpenEpoch,
    check_account,
    find_topic,
    list_open_epochs,
    needs_registration,
    record_missed_epochs,
    recover_from_chain,
    reference_time,
    register_worker,
    select_epoch,
)
from models.base import Forecast

log = logging.getLogger(__name__)
T = TypeVar("T")

SAFETY_MARGIN_BLOCKS = 2  # before a window's end: a transaction signed later is unlikely to be included
# The latest point, as a share of the window, at which a stage may still succeed.
FETCH_SHARE, MODEL_SHARE, SIGN_SHARE = 0.5, 0.8, 1.0
MAX_OUTAGE_SECONDS = 3600.0  # how long a retrying cycle waits for the first endpoint to answer
_cycle_numbers = itertools.count(1)  # the cycles of this process


@dataclass
class _CycleRun:
    """One run of a cycle: the outcome so far, and its stages as they finish."""

    options: CycleOptions
    context: CycleContext
    on_stage_end: Callable[[StageResult], None]
    on_stage_start: Callable[[str], None]
    outcome: Outcome
    label: str  # begins each of its log lines
    stage_seconds: dict[str, float] = field(default_factory=dict)
    chain_error: str = ""  # of the last query that no endpoint answered
    height: int = 0  # the chain's latest height seen
    next_window_height: int | None = None  # at which the next submission window opens
    must_register: bool = False
    already_served: bool = False  # in a dry run: this epoch already has its submission
    synthetic: bool | None = None  # of the candles that this run fetched

    def update_outcome(self, **fields: object) -> None:
        self.outcome = replace(self.outcome, **fields)  # type: ignore[arg-type]  # Outcome's own field names

    def query_height(self) -> int:
        """The chain's height. Raises RetryLater when no endpoint answers."""
        self.height = self.context.chain.height()
        return self.height

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage. The block appends lines that describe its result; they are reported when it succeeds."""
        lines: list[str] = []
        self.on_stage_start(name)
        log.debug("%s %s starts", self.label, name)
        start = self.context.clock.monotonic()
        try:
            yield lines
        finally:
            elapsed = self.stage_seconds.get(name, 0.0) + self.context.clock.monotonic() - start
            self.stage_seconds[name] = round(elapsed, 4)
        log.info("%s %s: %s", self.label, name, "; ".join(lines))
        self.on_stage_end(StageResult(name, "\n".join(lines), self.stage_seconds[name]))


def run_cycle(
    options: CycleOptions,
    context: CycleContext,
    on_stage_end: Callable[[StageResult], None] = lambda _: None,
    on_stage_start: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Serve the newest open epoch of a topic once. An error of `errors.py` is not raised but becomes the outcome.

    `on_stage_start` is called with a stage's name when it starts, `on_stage_end` with the result of each that succeeded.
    """
    now = context.clock.now()
    run = _CycleRun(
        options,
        context,
        on_stage_end,
        on_stage_start,
        Outcome("failed", topic_id=options.topic_id, as_of=to_iso(now)),
        label=f"cycle {next(_cycle_numbers)} topic {options.topic_id}",
    )
    run.update_outcome(wallet=context.wallet.address, source=context.source.name)
    try:
        _serve_epoch(run)
    except ForecastdError as error:
        run.outcome = outcome_from_error(error, run.outcome)
    outcome = replace(run.outcome, stages=run.stage_seconds)
    log.info(
        "%s outcome: %s, exit code %d, nonce %s: %s%s",
        run.label,
        outcome.outcome,
        outcome.exit_code,
        outcome.nonce,
        outcome.reason or outcome.tx_hash,
        _describe_next_window(run),
    )
    return outcome


def _describe_next_window(run: _CycleRun) -> str:
    """When the next submission window opens; empty while that is not known."""
    if run.next_window_height is None:
        return ""
    blocks = run.next_window_height - max(run.height, run.outcome.height or 0)
    if blocks <= 0:
        return "; the next submission window is open"
    duration = format_duration(blocks * run.context.block_seconds)
    return f"; next submission window in {format_count(blocks, 'block')}, about {duration}"


def _serve_epoch(run: _CycleRun) -> None:
    epoch = _find_epoch_with_retry(run)
    if epoch is None or _finish_existing_submission(run, epoch):
        return
    if _make_submission(run, epoch) is not None and not run.options.dry_run:
        _deliver(run, epoch, never_sent=True)


def _prepare_and_find_epoch(run: _CycleRun) -> OpenEpoch | None:
    """Settle, recover or record earlier epochs; return the epoch to serve, None when no window is open."""
    context, options, address = run.context, run.options, run.context.wallet.address
    with run.stage("chain") as lines:
        chain_id = context.chain.chain_id()
        run.update_outcome(chain_id=chain_id)
        topic = find_topic(context.chain, chain_id, options.topic_id)
        reconcile(
            context.delivery_context,
            chain_id,
            address,
            topics_of_other_threads=context.shared_wallet.topics - {options.topic_id},
        )
        with context.shared_wallet.signing_lock:
            is_new_account = check_account(context.chain, context.ledger, chain_id, address)
        run.must_register = needs_registration(context.chain, chain_id, topic.id, address, allowed=options.register)
        height, epochs = list_open_epochs(context.chain, topic, chain_id, address)
        newest_nonce = max(topic.epoch_last_ended, epochs[0].nonce if epochs else 0)
        run.height, run.next_window_height = height, newest_nonce + topic.epoch_length
        before_nonce = epochs[-1].nonce if epochs else topic.epoch_last_ended + topic.epoch_length
        if is_new_account:
            recovered_count = recover_from_chain(
                context.chain,
                context.ledger,
                topic,
                chain_id,
                address,
                before_nonce=before_nonce,
                now=context.clock.now(),
            )
            if recovered_count:
                lines.append(
                    f"recovered {format_count(recovered_count, 'earlier epoch')} of this worker from the chain"
                )
        if not epochs:
            active = context.chain.is_topic_active(topic.id)
            reason = f"none is open at height {height}" if active else "the topic is not active, so it opens none"
            if not active:
                run.next_window_height = None
            run.update_outcome(outcome="no_window", reason=f"no submission window of topic {topic.id}: {reason}")
            lines.append(f"{chain_id}, height {height}: no open submission window")
            return None
        now = context.clock.now()
        missed_count = record_missed_epochs(
            context.ledger, topic, chain_id, address, before_nonce=before_nonce, now=now, chain_error=run.chain_error
        )
        if missed_count:
            lines.append(f"recorded {format_count(missed_count, 'epoch')} since the last run as missed")
        epoch = select_epoch(context.ledger, epochs)
        run.update_outcome(nonce=epoch.nonce)
        lines.append(
            f"{chain_id}, height {height}: topic {topic.id} nonce {epoch.nonce} is open to {epoch.last_height}"
        )
    return epoch


def _finish_existing_submission(run: _CycleRun, epoch: OpenEpoch) -> bool:
    """Deliver the submission that this epoch already has, if it is open; return whether there was one."""
    entry = run.context.ledger.find(epoch.key)
    latest = run.context.chain.latest_inference(epoch.topic_id, epoch.wallet) if entry is None else None
    on_chain = latest is not None and latest.nonce == epoch.nonce
    if run.options.dry_run:
        run.already_served = on_chain or (entry is not None and entry.row.state is not SubmissionState.ABANDONED)
        return False
    if entry is None:
        if latest is None or not on_chain:
            return False
        reason = "on the chain, but not in the ledger"
        failpoint("before recover")
        run.context.ledger.record_unsigned(
            epoch.key, SubmissionState.ADMITTED, run.context.clock.now(), reason=reason, value=latest.value
        )
        run.update_outcome(outcome="already_submitted", value=float(latest.value), reason=reason, source=None)
        return True
    if entry.row.state in FINISHED_STATES:
        _set_final_outcome(run, entry, settled_earlier=True)
        return True
    if entry.row.state is SubmissionState.ABANDONED:
        return False
    _deliver(run, epoch, never_sent=False)
    return True


def _make_submission(run: _CycleRun, epoch: OpenEpoch) -> Submission | None:
    """Fetch candles, forecast, check the guards, sign and commit. None when the window closed before that.

    A dry run signs but does not commit.
    """
    try:
        candles = _retry_within_window(run, epoch, FETCH_SHARE, lambda: _fetch_candles(run))
        forecast = _retry_within_window(run, epoch, MODEL_SHARE, lambda: _forecast_with_refetch(run, epoch, candles))
        if run.already_served:
            run.update_outcome(
                outcome="dry_run", reason="this epoch already has its submission; nothing would be signed or sent"
            )
            return None
        return _retry_within_window(run, epoch, SIGN_SHARE, lambda: _sign_and_commit(run, epoch, forecast))
    except (RetryLater, SkipEpoch) as error:
        if not run.options.retry_until_closed or run.context.wake.is_set():
            raise
        run.context.ledger.record_unsigned(
            epoch.key, SubmissionState.MISSED, run.context.clock.now(), reason=str(error)
        )
        check = error.check if isinstance(error, SkipEpoch) else None
        run.update_outcome(outcome="missed", check=check, reason=f"retried until the window closed: {error}")
        return None


def _find_epoch_with_retry(run: _CycleRun) -> OpenEpoch | None:
    """See `_prepare_and_find_epoch`; retried while no endpoint answers.

    The end of the window is unknown then, so retry for at most an hour.
    """
    clock = run.context.clock
    deadline = clock.monotonic() + MAX_OUTAGE_SECONDS

    def find() -> OpenEpoch | None:
        try:
            return _prepare_and_find_epoch(run)
        except RetryLater as error:
            run.chain_error = str(error)
            raise

    return retry_while(lambda: run.options.retry_until_closed and clock.monotonic() < deadline, find, run.context.wake)


def _retry_within_window(run: _CycleRun, epoch: OpenEpoch, window_share: float, operation: Callable[[], T]) -> T:
    """Run `operation`, retried while it fails temporarily and its share of the window lasts."""
    first_height, last_height = epoch.nonce, epoch.last_height
    height_limit = min(first_height + window_share * (last_height - first_height), last_height - SAFETY_MARGIN_BLOCKS)
    clock = run.context.clock
    last_answer_time = clock.monotonic()

    def time_left() -> bool:
        nonlocal last_answer_time
        try:
            height = run.query_height()
        except RetryLater:  # while the height is not known, the window counts as open; the chain decides in the end
            return clock.monotonic() - last_answer_time < MAX_OUTAGE_SECONDS
        last_answer_time = clock.monotonic()
        return height < height_limit

    return retry_while(lambda: run.options.retry_until_closed and time_left(), operation, run.context.wake)


def _fetch_candles(run: _CycleRun) -> Candles:
    source = run.context.source
    with run.stage("data") as lines:
        now, warning = reference_time(run.context.chain, run.context.clock, run.outcome.chain_id or "")
        lines.extend([f"warning: {warning}"] if warning else [])
        candles, repairs = run.context.forecaster.gather_candles(source, run.context.window, now)
        run.synthetic = candles.provenance.synthetic
        run.update_outcome(synthetic=run.synthetic)
        lines.append(describe_candles(candles, source.name, now))
        lines.extend(repairs)
    return candles


def _forecast_with_refetch(run: _CycleRun, epoch: OpenEpoch, candles: Candles) -> Forecast:
    """Check the model, forecast and check the guards; fetch again when a fallback model needs more candles."""
    forecaster = run.context.forecaster
    with run.stage("model") as lines:
        run.update_outcome(bundle=forecaster.check(lambda: _should_stop_forecast(run, epoch)))
        lines.append(describe_model(forecaster))
        lines.extend(f"warning: {warning}" for warning in forecaster.warnings)
    if len(candles) < forecaster.required_candles:  # a fallback model replaced the one the candles were fetched for
        candles = _fetch_candles(run)
    try:
        return _forecast_and_guard(run, epoch, candles)
    except TooFewCandles:  # during the forecast, a fallback model that needs more candles replaced it
        return _forecast_and_guard(run, epoch, _fetch_candles(run))


def _forecast_and_guard(run: _CycleRun, epoch: OpenEpoch, candles: Candles) -> Forecast:
    """Forecast from these candles and check the guards."""
    forecaster = run.context.forecaster
    with run.stage("forecast") as lines:
        forecast = forecaster.forecast(candles, lambda: _should_stop_forecast(run, epoch))
        quantiles = quantiles_at_horizon(forecast)
        run.update_outcome(value=forecast.value, quantiles=quantiles, bundle=forecast.bundle_sha256)
        lines.extend(describe_forecast(forecast))
    with run.stage("guards") as lines:
        report = forecaster.check_guards(forecast, candles, _network_inferences(run))
        run.update_outcome(warnings=(*forecaster.warnings, *report.warnings))
        lines.extend(describe_guards(report))
    return forecast


def _should_stop_forecast(run: _CycleRun, epoch: OpenEpoch) -> bool:
    """Whether the forecast is useless now: the epoch's last safe block has passed, or this process is stopping."""
    try:
        return run.context.wake.is_set() or run.query_height() >= epoch.last_height - SAFETY_MARGIN_BLOCKS
    except RetryLater:
        return False


def _network_inferences(run: _CycleRun) -> tuple[float, ...]:
    """The latest inferences of the other workers; empty if no node answers, because they only serve a warning."""
    try:
        inferences = run.context.chain.network_inferences(run.options.topic_id)
    except RetryLater as error:
        log.warning("%s cannot compare with the network: %s", run.label, error)
        return ()
    values_by_worker = inferences.values_by_worker if inferences else {}
    return tuple(value for worker, value in values_by_worker.items() if worker != run.context.wallet.address)


def _sign_and_commit(run: _CycleRun, epoch: OpenEpoch, forecast: Forecast) -> Submission:
    """Price the transaction, sign it and commit it. Only a registration is sent here."""
    with run.context.shared_wallet.signing_lock, run.stage("sign") as lines:
        if run.must_register:
            context, options = run.context, run.options
            registration_cost = register_worker(
                context.chain, context.wallet, context.ledger, epoch, spending=options.spending, clock=context.clock,
                wake=context.wake, topics_of_other_threads=context.shared_wallet.topics - {epoch.topic_id},
            )  # fmt: skip
            run.must_register = False
            lines.append(f"registered {epoch.wallet} for topic {epoch.topic_id}; fee {registration_cost} uallo")
        failpoint("before sign")
        submission = _sign_value(run, epoch, canonical_value(forecast.value))
        lines.append(f"value {submission.value}, topic {epoch.topic_id}, nonce {epoch.nonce}")
        lines.append(f"sequence {submission.sequence}, gas {submission.gas}, fee {submission.fee_uallo} uallo")
        run.update_outcome(value=float(submission.value))
        if run.options.dry_run:
            run.update_outcome(outcome="dry_run", reason="nothing was sent")
        else:
            _commit(run, submission)
    return submission


def _commit(run: _CycleRun, submission: Submission) -> None:
    failpoint("after sign")
    run.context.ledger.commit(submission, run.context.clock.now())
    failpoint("after commit")


def _sign_value(run: _CycleRun, epoch: OpenEpoch, value: str, *, gas_factor: float = 1.0) -> Submission:
    """Sign with the account's next sequence that no other open submission of this wallet uses."""
    context = run.context
    version = context.chain.version()
    message = payload_message(context.wallet, version=version, topic_id=epoch.topic_id, nonce=epoch.nonce, value=value)
    submission_fee = context.chain.params().data_sending_fee
    tx_price = price_transaction(
        context.chain, context.wallet, message, run.options.spending, gas_factor=gas_factor, message_fee=submission_fee
    )
    return sign_submission(
        context.wallet,
        version=version,
        chain_id=epoch.chain_id,
        topic_id=epoch.topic_id,
        nonce=epoch.nonce,
        value=value,
        synthetic=run.synthetic is not False or context.forecaster.manifest.training.synthetic,
        account_number=tx_price.account_number,
        sequence=context.ledger.next_free_sequence(
            epoch.key, tx_price.sequence, topics_of_other_threads=context.shared_wallet.topics - {epoch.topic_id}
        ),
        gas=tx_price.gas,
        fee_uallo=tx_price.fee_uallo,
        timeout_height=epoch.last_height,
    )


def _deliver(run: _CycleRun, epoch: OpenEpoch, *, never_sent: bool) -> None:
    """Send the committed bytes and follow them until they are settled; sign again only when the state machine says so."""
    ledger = run.context.ledger

    def sign_again() -> None:
        attempts = ledger.attempts(epoch.key)
        log.info("%s signing nonce %d again, attempt %d", run.label, epoch.nonce, len(attempts) + 1)
        if run.synthetic is None:  # an earlier run signed it, and its candles are not known here: forecast again
            if _make_submission(run, epoch) is None:
                raise RetryLater("Cannot replace the submission that the chain refused: the window closed first.")
            return
        value, gas_factor = attempts[-1].value, 1.5 ** len(attempts)

        def sign_same_value() -> None:
            with run.context.shared_wallet.signing_lock:
                _commit(run, _sign_value(run, epoch, value, gas_factor=gas_factor))

        _retry_within_window(run, epoch, SIGN_SHARE, sign_same_value)

    with run.stage("submit") as lines:
        timeout_seconds = float("inf") if run.options.timeout_seconds is None else run.options.timeout_seconds
        entry = deliver(
            replace(run.context.delivery_context, label=run.label),
            epoch.key,
            timeout_seconds=timeout_seconds,
            sign_again=sign_again,
            never_sent=never_sent,
        )
        lines.append(describe_submission(entry))
    _set_final_outcome(run, entry, settled_earlier=False)


def _set_final_outcome(run: _CycleRun, entry: LedgerEntry, *, settled_earlier: bool) -> None:
    """Set the outcome from an epoch's entry. `settled_earlier`: by an earlier run."""
    row, attempts = entry.row, run.context.ledger.attempts(entry.key)
    run.update_outcome(
        value=None if entry.value is None else float(entry.value),
        tx_hash=attempts[-1].tx_hash if attempts else None,
        height=row.height,
    )
    if settled_earlier:
        run.update_outcome(source=None)  # the ledger does not record the source
    if row.state is SubmissionState.MISSED:
        run.update_outcome(outcome="missed", reason=row.reason or "this epoch was missed")
    elif row.state in FINISHED_STATES:
        reason_by_state = {
            SubmissionState.PASSIVE: "accepted, but outside the active set",
            SubmissionState.EVICTED: "evicted from the active set",
        }
        default_reason = "this epoch already has its submission" if settled_earlier else ""
        run.update_outcome(
            outcome="already_submitted" if settled_earlier else "submitted",
            reason=reason_by_state.get(row.state, default_reason),
        )
    else:
        node_message = f" The node answered: {row.reason}." if row.reason else ""
        run.update_outcome(
            outcome="failed",
            reason=f"Signed, but not confirmed yet; run again to retry the same transaction.{node_message}",
        )
