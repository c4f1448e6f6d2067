"""One epoch, from the open submission window to the outcome.

No stage reaches back: each gets values, returns values, or raises an error of `errors.py`, which ends the cycle and becomes
its outcome in one place. Nothing is sent before the ledger has it, and what the ledger has is settled before anything is
signed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeVar

from forecastd.candles import Candles
from forecastd.chain.codec import canonical_value, payload_message, sign_submission
from forecastd.chain.submit import price
from forecastd.clock import iso
from forecastd.delivery import deliver, reconcile
from forecastd.epoch import (
    Epoch,
    check_account,
    choose,
    enrol,
    find_topic,
    needs_registering,
    note_missed,
    open_epochs,
    rebuild,
    reference_time,
)
from forecastd.errors import ForecastdError, RetryLater, SkipEpoch
from forecastd.failpoints import failpoint
from forecastd.forecaster import TooFewCandles
from forecastd.ledger import SERVED, Entry, State, Submission
from forecastd.outcome import Outcome, ended_by
from forecastd.parts import Job, Parts
from forecastd.patience import again_while
from forecastd.stages import (
    Stage,
    describe_candles,
    describe_fate,
    describe_forecast,
    describe_guards,
    describe_model,
    quantiles_at_horizon,
)
from models.base import Forecast

log = logging.getLogger(__name__)
T = TypeVar("T")

SAFE_BLOCKS = 2  # of a window's end: what is signed later can hardly be included
FETCH_SHARE, MODEL_SHARE, SIGN_SHARE = 0.5, 0.8, 1.0  # of the window's blocks: by when a stage must have come through
BLIND_SECONDS = 3600.0  # how long a cycle that persists waits for the first endpoint to answer


@dataclass
class _Run:
    """One run of a cycle: the outcome so far, and its stages as they finish."""

    job: Job
    parts: Parts
    report: Callable[[Stage], None]
    begin: Callable[[str], None]
    outcome: Outcome
    seconds: dict[str, float] = field(default_factory=dict)
    trouble: str = ""  # why the chain could not be asked, the last time that it could not
    unregistered: bool = False
    served: bool = False  # in a dry run: this epoch has its submission already
    synthetic: bool | None = None  # of the candles that this run fetched

    def know(self, **fields: object) -> None:
        self.outcome = replace(self.outcome, **fields)  # type: ignore[arg-type]  # Outcome's own field names

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; the block appends what it found, which is reported when the stage ended well."""
        told: list[str] = []
        self.begin(name)
        log.debug("topic %d %s begins", self.job.topic_id, name)
        start = self.parts.clock.monotonic()
        try:
            yield told
        finally:
            spent = self.seconds.get(name, 0.0) + self.parts.clock.monotonic() - start
            self.seconds[name] = round(spent, 4)
        log.info("topic %d %s: %s", self.job.topic_id, name, "; ".join(told))
        self.report(Stage(name, "\n".join(told), self.seconds[name]))


def run_cycle(
    job: Job,
    parts: Parts,
    report: Callable[[Stage], None] = lambda _: None,
    begin: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Serve the newest open epoch of a topic once; never raises an error of `errors.py`, the outcome tells it.

    `begin` is called with a stage's name as it begins, `report` with each stage that ended well.
    """
    now = parts.clock.now()
    run = _Run(job, parts, report, begin, Outcome("failed", topic_id=job.topic_id, as_of=iso(now)))
    run.know(wallet=parts.wallet.address, source=parts.source.name)
    try:
        _serve(run)
    except ForecastdError as error:
        run.outcome = ended_by(error, run.outcome)
    ended = replace(run.outcome, stages=run.seconds)
    log.info("outcome: %s, exit code %d, topic %d nonce %s: %s", ended.outcome, ended.exit_code, job.topic_id, ended.nonce,
             ended.reason or ended.tx_hash)  # fmt: skip
    return ended


def _serve(run: _Run) -> None:
    epoch = _await_epoch(run)
    if epoch is None or _known(run, epoch):
        return
    if _prepare(run, epoch) is not None and not run.job.dry_run:
        _deliver(run, epoch, fresh=True)


def _find_epoch(run: _Run) -> Epoch | None:
    """The epoch to serve, None when no window is open. Settles what earlier runs left; registers when asked."""
    parts, job, address = run.parts, run.job, run.parts.wallet.address
    with run.stage("chain") as told:
        chain_id = parts.chain.chain_id()
        run.know(chain_id=chain_id)
        topic = find_topic(parts.chain, chain_id, job.topic_id)
        reconcile(parts.delivery, chain_id, address, besides=parts.account.topics - {job.topic_id})
        with parts.account.signing:
            new = check_account(parts.chain, parts.ledger, chain_id, address)
        run.unregistered = needs_registering(parts.chain, chain_id, topic.id, address, may=job.register)
        height, epochs = open_epochs(parts.chain, topic, chain_id, address)
        before = epochs[-1].nonce if epochs else topic.epoch_last_ended + topic.epoch_length
        if new:
            found = rebuild(parts.chain, parts.ledger, topic, chain_id, address, before=before, now=parts.clock.now())
            told.extend([f"{found} earlier epochs of this worker were found on the chain"] if found else [])
        if not epochs:
            active = parts.chain.is_topic_active(topic.id)
            why = f"none is open at height {height}" if active else "the topic is not active, so it opens none"
            run.know(outcome="no_window", reason=f"no submission window of topic {topic.id}: {why}")
            told.append(f"{chain_id}, height {height}: no open submission window")
            return None
        now, why = parts.clock.now(), run.trouble
        missed = note_missed(parts.ledger, topic, chain_id, address, newest=before, now=now, trouble=why)
        if missed:
            told.append(f"{missed} epochs went by since the last run; they are recorded as missed")
        epoch = choose(parts.ledger, epochs)
        run.know(nonce=epoch.nonce)
        told.append(f"{chain_id}, height {height}: topic {topic.id} nonce {epoch.nonce} is open to {epoch.last_height}")
    return epoch


def _known(run: _Run, epoch: Epoch) -> bool:
    """Whether this epoch is answered by the ledger or by the chain; brings what is open to its end."""
    entry = run.parts.ledger.find(epoch.key)
    latest = run.parts.chain.latest_inference(epoch.topic_id, epoch.wallet) if entry is None else None
    on_chain = latest is not None and latest.nonce == epoch.nonce
    if run.job.dry_run:
        run.served = on_chain or (entry is not None and entry.row.state is not State.DEAD)
        return False
    if entry is None:
        if latest is None or not on_chain:
            return False
        reason = "the chain has it, the ledger did not"
        failpoint("before adopt")
        run.parts.ledger.adopt(epoch.key, State.ADMITTED, run.parts.clock.now(), reason=reason, value=latest.value)
        run.know(outcome="already_submitted", value=float(latest.value), reason=reason, source=None)
        return True
    if entry.row.state in SERVED:
        _conclude(run, entry, before=True)
        return True
    if entry.row.state is State.DEAD:
        return False
    _deliver(run, epoch, fresh=False)
    return True


def _prepare(run: _Run, epoch: Epoch) -> Submission | None:
    """Data, model, forecast, guards and a signature that is on disk; None when the window closed before that.

    In a dry run nothing is put on disk.
    """
    try:
        candles = _persist(run, epoch, FETCH_SHARE, lambda: _fetch(run))
        forecast = _persist(run, epoch, MODEL_SHARE, lambda: _forecast(run, epoch, candles))
        if run.served:
            run.know(outcome="dry_run", reason="this epoch has its submission already; nothing would be signed or sent")
            return None
        return _persist(run, epoch, SIGN_SHARE, lambda: _sign(run, epoch, forecast))
    except (RetryLater, SkipEpoch) as error:
        if not run.job.persist or run.parts.wake.is_set():
            raise
        run.parts.ledger.adopt(epoch.key, State.MISSED, run.parts.clock.now(), reason=str(error))
        check = error.check if isinstance(error, SkipEpoch) else None
        run.know(outcome="missed", check=check, reason=f"tried until the window's end: {error}")
        return None


def _await_epoch(run: _Run) -> Epoch | None:
    """As `_find_epoch`, again while no endpoint helps: without one no window's end is known, so for an hour at most."""
    clock = run.parts.clock
    end = clock.monotonic() + BLIND_SECONDS

    def find() -> Epoch | None:
        try:
            return _find_epoch(run)
        except RetryLater as error:
            run.trouble = str(error)
            raise

    return again_while(lambda: run.job.persist and clock.monotonic() < end, find, run.parts.wake)


def _persist(run: _Run, epoch: Epoch, share: float, work: Callable[[], T]) -> T:
    """`work`, again and again while it fails for a passing reason and its share of the window lasts."""
    first, last = epoch.nonce, epoch.last_height
    limit = min(first + share * (last - first), last - SAFE_BLOCKS)
    clock = run.parts.clock
    heard = clock.monotonic()

    def time_left() -> bool:
        nonlocal heard
        try:
            height = run.parts.chain.height()
        except RetryLater:  # while no endpoint tells the height the window counts as open; the chain decides in the end
            return clock.monotonic() - heard < BLIND_SECONDS
        heard = clock.monotonic()
        return height < limit

    return again_while(lambda: run.job.persist and time_left(), work, run.parts.wake)


def _fetch(run: _Run) -> Candles:
    source = run.parts.source
    with run.stage("data") as told:
        now, warning = reference_time(run.parts.chain, run.parts.clock, run.outcome.chain_id or "")
        told.extend([f"warning: {warning}"] if warning else [])
        candles, repairs = run.parts.forecaster.gather(source, run.parts.window, now)
        run.synthetic = candles.provenance.synthetic
        run.know(synthetic=run.synthetic)
        told.append(describe_candles(candles, source.name, now))
        told.extend(repairs)
    return candles


def _forecast(run: _Run, epoch: Epoch, candles: Candles) -> Forecast:
    """The model's check, its forecast, and the guards."""
    forecaster = run.parts.forecaster
    with run.stage("model") as told:
        run.know(bundle=forecaster.check(lambda: _is_over(run, epoch)))
        told.append(describe_model(forecaster))
        told.extend(f"warning: {remark}" for remark in forecaster.remarks)
    if len(candles) < forecaster.needed:  # another model stands in for the one that the candles were fetched for
        candles = _fetch(run)
    try:
        return _forecast_from(run, epoch, candles)
    except TooFewCandles:  # it was replaced by one that wants more while it was at work
        return _forecast_from(run, epoch, _fetch(run))


def _forecast_from(run: _Run, epoch: Epoch, candles: Candles) -> Forecast:
    """The model's forecast from these candles, and the guards."""
    forecaster = run.parts.forecaster
    with run.stage("forecast") as told:
        forecast = forecaster.forecast(candles, lambda: _is_over(run, epoch))
        quantiles = quantiles_at_horizon(forecast)
        run.know(value=forecast.value, quantiles=quantiles, bundle=forecast.bundle_sha256)
        told.extend(describe_forecast(forecast))
    with run.stage("guards") as told:
        report = forecaster.guard(forecast, candles, _consensus(run))
        run.know(warnings=(*forecaster.remarks, *report.warnings))
        told.extend(describe_guards(report))
    return forecast


def _is_over(run: _Run, epoch: Epoch) -> bool:
    """Whether nobody needs this epoch's forecast any more: its last safe block has passed, or this process is to end."""
    try:
        return run.parts.wake.is_set() or run.parts.chain.height() >= epoch.last_height - SAFE_BLOCKS
    except RetryLater:
        return False


def _consensus(run: _Run) -> tuple[float, ...]:
    """The network's own latest inferences; none when no node gives them, for they only serve a warning."""
    try:
        found = run.parts.chain.network_inferences(run.job.topic_id)
    except RetryLater as error:
        log.warning("no comparison with the network: %s", error)
        return ()
    others = found.by_worker if found else {}
    return tuple(value for worker, value in others.items() if worker != run.parts.wallet.address)


def _sign(run: _Run, epoch: Epoch, forecast: Forecast) -> Submission:
    """Price the transaction, sign it and put it on disk. Nothing is sent here but a registration."""
    with run.parts.account.signing, run.stage("sign") as told:
        if run.unregistered:
            parts, job = run.parts, run.job
            paid = enrol(
                parts.chain, parts.wallet, parts.ledger, epoch, spending=job.spending, clock=parts.clock,
                wake=parts.wake, elsewhere=parts.account.topics - {epoch.topic_id},
            )  # fmt: skip
            run.unregistered = False
            told.append(f"registered {epoch.wallet} for topic {epoch.topic_id}; fee {paid} uallo")
        failpoint("before sign")
        submission = _sign_value(run, epoch, canonical_value(forecast.value))
        told.append(f"value {submission.value}, topic {epoch.topic_id}, nonce {epoch.nonce}")
        told.append(f"sequence {submission.sequence}, gas {submission.gas}, fee {submission.fee_uallo} uallo")
        run.know(value=float(submission.value))
        if run.job.dry_run:
            run.know(outcome="dry_run", reason="nothing was sent")
        else:
            _commit(run, submission)
    return submission


def _commit(run: _Run, submission: Submission) -> None:
    failpoint("after sign")
    run.parts.ledger.commit(submission, run.parts.clock.now())
    failpoint("after commit")


def _sign_value(run: _Run, epoch: Epoch, value: str, *, gas_factor: float = 1.0) -> Submission:
    """Sign with the account's next sequence that no other open submission of this wallet has taken."""
    parts = run.parts
    version = parts.chain.version()
    message = payload_message(parts.wallet, version=version, topic_id=epoch.topic_id, nonce=epoch.nonce, value=value)
    charged = parts.chain.params().data_sending_fee
    priced = price(parts.chain, parts.wallet, message, run.job.spending, gas_factor=gas_factor, besides=charged)
    return sign_submission(
        parts.wallet,
        version=version,
        chain_id=epoch.chain_id,
        topic_id=epoch.topic_id,
        nonce=epoch.nonce,
        value=value,
        synthetic=run.synthetic is not False or parts.forecaster.manifest.training.synthetic,
        account_number=priced.account_number,
        sequence=parts.ledger.free_sequence(
            epoch.key, priced.sequence, elsewhere=parts.account.topics - {epoch.topic_id}
        ),
        gas=priced.gas,
        fee_uallo=priced.fee_uallo,
        timeout_height=epoch.last_height,
    )


def _deliver(run: _Run, epoch: Epoch, *, fresh: bool) -> None:
    """Send what is committed and follow it to its end; new bytes only where the outbox asks for them."""
    ledger = run.parts.ledger

    def sign_again() -> None:
        attempts = ledger.attempts(epoch.key)
        log.info("signing nonce %d again, attempt %d", epoch.nonce, len(attempts) + 1)
        if run.synthetic is None:  # signed by an earlier run, whose candles are not known here: forecast anew
            if _prepare(run, epoch) is None:
                raise RetryLater("No new forecast could be made for the one that the chain refused.")
            return
        value, factor = attempts[-1].value, 1.5 ** len(attempts)

        def again() -> None:
            with run.parts.account.signing:
                _commit(run, _sign_value(run, epoch, value, gas_factor=factor))

        _persist(run, epoch, SIGN_SHARE, again)

    with run.stage("submit") as told:
        seconds = float("inf") if run.job.seconds is None else run.job.seconds
        entry = deliver(run.parts.delivery, epoch.key, seconds=seconds, sign_again=sign_again, fresh=fresh)
        told.append(describe_fate(entry))
    _conclude(run, entry, before=False)


def _conclude(run: _Run, entry: Entry, *, before: bool) -> None:
    """The outcome that an epoch's entry means. `before`: it was settled by an earlier run."""
    row, attempts = entry.row, run.parts.ledger.attempts(entry.key)
    run.know(
        value=None if entry.value is None else float(entry.value),
        tx_hash=attempts[-1].tx_hash if attempts else None,
        height=row.height,
    )
    if before:
        run.know(source=None)  # what it was made from is not on record
    if row.state is State.MISSED:
        run.know(outcome="missed", reason=row.reason or "this epoch was missed")
    elif row.state in SERVED:
        passive = {State.PASSIVE: "accepted, but outside the active set", State.EVICTED: "evicted from the active set"}
        earlier = "it has its submission already" if before else ""
        run.know(outcome="already_submitted" if before else "submitted", reason=passive.get(row.state, earlier))
    else:
        told = f" The node says: {row.reason}." if row.reason else ""
        run.know(
            outcome="failed",
            reason=f"Signed and on record, but its fate is not known yet; run again to go on with the same bytes.{told}",
        )
