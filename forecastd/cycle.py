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
from threading import Event

from forecastd.candles import Candles
from forecastd.chain.codec import canonical_value, payload_message, sign_submission
from forecastd.chain.codes import Action, Meaning, classify
from forecastd.chain.node import Node
from forecastd.chain.submit import Spending, price, register, wait_for_tx
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.forecaster import Forecaster
from forecastd.ledger import Ledger, Row, State, Submission
from forecastd.outcome import Outcome, ended_by
from forecastd.sources.base import Source
from forecastd.stages import (
    Stage,
    describe_candles,
    describe_forecast,
    describe_guards,
    describe_model,
    quantiles_at_horizon,
)
from forecastd.window import RollingWindow
from models.base import Forecast

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 60.0


@dataclass(frozen=True)
class Job:
    """What one cycle is to do and may spend."""

    topic_id: int
    spending: Spending
    register: bool
    dry_run: bool


@dataclass(frozen=True)
class Parts:
    """What a cycle works with. `wake` is set to make it stop waiting early."""

    source: Source
    window: RollingWindow
    forecaster: Forecaster
    ledger: Ledger
    node: Node
    wallet: Wallet
    clock: Clock
    wake: Event


@dataclass
class _Run:
    """One run of a cycle: the outcome so far, and its stages as they finish."""

    job: Job
    parts: Parts
    report: Callable[[Stage], None]
    outcome: Outcome
    seconds: dict[str, float] = field(default_factory=dict)

    def know(self, **fields: object) -> None:
        self.outcome = replace(self.outcome, **fields)  # type: ignore[arg-type]  # Outcome's own field names

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; the block appends what it found, which is reported when the stage ended well."""
        told: list[str] = []
        start = self.parts.clock.monotonic()
        try:
            yield told
        finally:
            self.seconds[name] = round(self.parts.clock.monotonic() - start, 4)
        self.report(Stage(name, "\n".join(told), self.seconds[name]))


@dataclass(frozen=True)
class _Epoch:
    """The epoch to serve: `last_height` is the last block of its submission window."""

    chain_id: str
    topic_id: int
    nonce: int
    last_height: int


def run_cycle(job: Job, parts: Parts, report: Callable[[Stage], None] = lambda _: None) -> Outcome:
    """Serve the newest open epoch of a topic once; never raises an error of `errors.py`, the outcome tells it."""
    now = parts.clock.now()
    run = _Run(job, parts, report, Outcome("failed", topic_id=job.topic_id, as_of=iso(now)))
    run.know(wallet=parts.wallet.address, source=parts.source.name, synthetic=parts.source.synthetic)
    try:
        _serve(run, now)
    except ForecastdError as error:
        run.outcome = ended_by(error, run.outcome)
    return replace(run.outcome, stages=run.seconds)


def _serve(run: _Run, now: float) -> None:
    epoch = _find_epoch(run)
    if epoch is None or _settle_known(run, epoch):
        return
    candles = _fetch(run, now)
    _check_model(run)
    forecast = _forecast(run, candles)
    _guard(run, forecast, candles)
    submission = _sign(run, epoch, forecast)
    if run.job.dry_run:
        run.know(outcome="dry_run", reason="nothing was sent")
        return
    run.parts.ledger.commit(submission, run.parts.clock.now())
    _send(run, submission)


def _find_epoch(run: _Run) -> _Epoch | None:
    """The newest nonce whose submission window is open, None when there is none. Registers the worker when asked."""
    node, wallet, topic_id = run.parts.node, run.parts.wallet, run.job.topic_id
    with run.stage("chain") as told:
        chain_id = node.chain_id()
        run.know(chain_id=chain_id)
        topic = node.topic(topic_id)
        if topic is None:
            raise NeedsHuman(f"Topic {topic_id} does not exist on {chain_id}. Check --topic-id.")
        _allow(run, chain_id, told)
        height = node.height()
        nonces = [n for n in node.open_nonces(topic_id) if n <= height < n + topic.worker_submission_window]
        if not nonces:
            run.know(outcome="no_window", reason=_no_window(node, topic_id, height))
            told.append(f"{chain_id}, height {height}: no open submission window")
            return None
        nonce = max(nonces)
        run.know(nonce=nonce)
        last = nonce + topic.worker_submission_window - 1
        told.append(f"{chain_id}, height {height}: topic {topic_id} nonce {nonce} is open to block {last}")
    log.debug("epoch %s of topic %s on %s, worker %s", nonce, topic_id, chain_id, wallet.address)
    return _Epoch(chain_id, topic_id, nonce, last)


def _no_window(node: Node, topic_id: int, height: int) -> str:
    if not node.is_topic_active(topic_id):
        return f"topic {topic_id} is not active, so it opens no submission windows"
    return f"no submission window of topic {topic_id} is open at height {height}"


def _allow(run: _Run, chain_id: str, told: list[str]) -> None:
    """Make sure that the worker is registered and may submit."""
    node, wallet, topic_id = run.parts.node, run.parts.wallet, run.job.topic_id
    if not node.is_registered(topic_id, wallet.address):
        if not run.job.register:
            raise NeedsHuman(
                f"Worker {wallet.address} is not registered for topic {topic_id} on {chain_id}. "
                "Run once more with --register to register it (this costs the chain's registration fee)."
            )
        spending = run.job.spending
        fee = register(node, wallet, topic_id, spending, chain_id=chain_id, clock=run.parts.clock, wake=run.parts.wake)
        told.append(f"registered {wallet.address} for topic {topic_id}; fee {fee} uallo")
    if not node.can_submit(topic_id, wallet.address):
        raise NeedsHuman(
            f"Worker {wallet.address} is registered but not permitted to submit to topic {topic_id} on {chain_id}. "
            "Ask the topic's owner to put it on the whitelist."
        )


def _settle_known(run: _Run, epoch: _Epoch) -> bool:
    """Settle what earlier runs left open; True when this epoch is answered by it."""
    ledger, node, wallet = run.parts.ledger, run.parts.node, run.parts.wallet
    for row in ledger.open_rows(epoch.chain_id, wallet.address):
        if row.submission.nonce != epoch.nonce or row.submission.topic_id != epoch.topic_id:
            _settle(run, row)
    row_now = ledger.find(epoch.chain_id, epoch.topic_id, epoch.nonce, wallet.address)
    if row_now is None:
        latest = node.latest_inference(epoch.topic_id, wallet.address)
        if latest is not None and latest.nonce == epoch.nonce:
            run.know(outcome="already_submitted", value=latest.value, reason="the chain has it, the ledger did not")
            return True
        return False
    sent = row_now.submission
    run.know(tx_hash=sent.tx_hash, value=float(sent.value), height=row_now.height)
    if row_now.state == "signed":
        if run.job.dry_run:
            run.know(outcome="dry_run", reason="signed by an earlier run and not settled yet; nothing was sent")
            return True
        _send(run, sent)
    elif row_now.state == "confirmed":
        run.know(outcome="already_submitted", reason=f"submitted before, in block {row_now.height}")
    else:
        run.know(outcome="missed", reason=f"this epoch's submission was {row_now.state}: {row_now.reason}")
    return True


def _settle(run: _Run, row: Row) -> None:
    """Look up an open row of another epoch; record it when the chain knows, or when its time has passed."""
    sent, ledger, now = row.submission, run.parts.ledger, run.parts.clock.now()
    found = run.parts.node.find_tx(sent.tx_hash)
    if found is not None:
        state: State = "confirmed" if found.code == 0 else "rejected"
        ledger.settle(sent, state, now, height=found.height, reason=found.log)
    elif run.parts.node.height() > sent.timeout_height:
        ledger.settle(sent, "expired", now, height=None, reason="not included by the end of its window")


def _fetch(run: _Run, now: float) -> Candles:
    source = run.parts.source
    with run.stage("data") as told:
        candles, repairs = run.parts.forecaster.gather(source, run.parts.window, now)
        told.append(describe_candles(candles, source.name, now))
        told.extend(repairs)
    return candles


def _check_model(run: _Run) -> None:
    forecaster = run.parts.forecaster
    with run.stage("model") as told:
        run.know(bundle=forecaster.check())
        told.append(describe_model(forecaster))


def _forecast(run: _Run, candles: Candles) -> Forecast:
    with run.stage("forecast") as told:
        forecast = run.parts.forecaster.forecast(candles)
        run.know(value=forecast.value, quantiles=quantiles_at_horizon(forecast))
        told.extend(describe_forecast(forecast))
    return forecast


def _guard(run: _Run, forecast: Forecast, candles: Candles) -> None:
    with run.stage("guards") as told:
        report = run.parts.forecaster.guard(forecast, candles, _consensus(run))
        run.know(warnings=report.warnings)
        told.extend(describe_guards(report))


def _consensus(run: _Run) -> tuple[float, ...]:
    """The network's own latest inferences; none when the node does not give them, for they only serve a warning."""
    try:
        found = run.parts.node.network_inferences(run.job.topic_id)
    except RetryLater as error:
        log.warning("no comparison with the network: %s", error)
        return ()
    others = found.by_worker if found else {}
    return tuple(value for worker, value in others.items() if worker != run.parts.wallet.address)


def _sign(run: _Run, epoch: _Epoch, forecast: Forecast) -> Submission:
    """Price the transaction and sign it. Nothing leaves here but the bytes."""
    parts, node, wallet = run.parts, run.parts.node, run.parts.wallet
    learnt_from_synthetic = parts.forecaster.manifest.training.synthetic
    with run.stage("sign") as told:
        version, value = node.version(), canonical_value(forecast.value)
        message = payload_message(wallet, version=version, topic_id=epoch.topic_id, nonce=epoch.nonce, value=value)
        priced = price(node, wallet, message, run.job.spending)
        submission = sign_submission(
            wallet,
            version=version,
            chain_id=epoch.chain_id,
            topic_id=epoch.topic_id,
            nonce=epoch.nonce,
            value=value,
            synthetic=parts.source.synthetic or learnt_from_synthetic,
            account_number=priced.account_number,
            sequence=priced.sequence,
            gas=priced.gas,
            fee_uallo=priced.fee_uallo,
            timeout_height=epoch.last_height,
        )
        told.append(f"value {submission.value}, topic {epoch.topic_id}, nonce {epoch.nonce}, emissions {version}")
        told.append(f"sequence {submission.sequence}, gas {submission.gas}, fee {submission.fee_uallo} uallo")
        run.know(value=float(submission.value))
    return submission


def _send(run: _Run, submission: Submission) -> None:
    """Send committed bytes and see what becomes of them. Sending the same bytes again is always safe."""
    node, clock = run.parts.node, run.parts.clock
    run.know(tx_hash=submission.tx_hash)
    with run.stage("submit") as told:
        answer = node.broadcast(submission.tx_bytes)
        meaning = classify(answer.codespace, answer.code, answer.log)
        log.info("sent %s: %s %s %s", submission.tx_hash, answer.codespace, answer.code, answer.log)
        told.append(f"the node says: {meaning.meaning}")
    with run.stage("confirm") as told:
        found = wait_for_tx(node, submission, clock=clock, wake=run.parts.wake, seconds=CONFIRM_SECONDS)
        if found is None:
            _not_included(run, submission, meaning, answer.log)
            return
        meaning = classify(found.codespace, found.code, found.log)
        state: State = "confirmed" if found.code == 0 else "rejected"
        run.parts.ledger.settle(submission, state, clock.now(), height=found.height, reason=found.log)
        run.know(height=found.height)
        told.append(f"in block {found.height}: {meaning.meaning}")
    if found.code == 0:
        run.know(outcome="submitted", reason="")
    else:
        run.know(outcome="missed", reason=f"included, but refused: {meaning.meaning} ({found.log}). {meaning.advice}")


def _not_included(run: _Run, submission: Submission, meaning: Meaning, node_says: str) -> None:
    """No block has the transaction: a miss when its last block has passed, else unsettled for the next run."""
    if run.parts.node.height() > submission.timeout_height:
        reason = f"the window closed before the transaction was included ({meaning.meaning})"
        run.parts.ledger.settle(submission, "expired", run.parts.clock.now(), height=None, reason=reason)
        run.know(outcome="missed", reason=reason)
        return
    told = (
        ""
        if meaning.action is Action.ACCEPTED
        else f" The node says: {meaning.meaning} ({node_says}). {meaning.advice}"
    )
    run.know(
        outcome="failed",
        needs_human=meaning.action is Action.NEEDS_HUMAN,
        reason=f"The transaction is signed and on record but in no block yet; run again to send the same bytes.{told}",
    )
