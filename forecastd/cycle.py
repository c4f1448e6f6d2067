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

from forecastd.candles import Candles, check
from forecastd.chain.codec import sign_submission
from forecastd.chain.node import Node, Topic
from forecastd.chain.register import register
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock, iso
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.features import model_input, warm_up
from forecastd.forecaster import Forecaster
from forecastd.guards import check_forecast
from forecastd.ledger import Ledger, Row, Submission
from forecastd.outcome import Outcome, ended_by
from forecastd.settings import FeeTier
from forecastd.sources.base import Source
from forecastd.window import RollingWindow, refresh
from models.base import Forecast

log = logging.getLogger(__name__)

LATE_STEPS = 3  # how many candles may be missing at the newest end before the data counts as stale
CONFIRM_SECONDS = 60.0
_FIRST_POLL, _LONGEST_POLL = 0.02, 1.0


@dataclass(frozen=True)
class Stage:
    """A finished stage: what it found, in words, and how long it took in seconds."""

    name: str
    text: str
    seconds: float


@dataclass(frozen=True)
class Job:
    """What one cycle is to do and may spend."""

    topic_id: int
    tier: FeeTier
    max_fee_uallo: int | None
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
        run.know(outcome="dry_run", reason="dry run: nothing was sent")
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
        nonces = [n for n in node.open_nonces(topic_id) if n <= height < n + topic.submission_window]
        if not nonces:
            run.know(outcome="no_window", reason=_no_window(node, topic, height))
            told.append(f"{chain_id}, height {height}: no open submission window")
            return None
        nonce = max(nonces)
        run.know(nonce=nonce)
        last = nonce + topic.submission_window - 1
        told.append(f"{chain_id}, height {height}: topic {topic_id} nonce {nonce} is open to block {last}")
    log.debug("epoch %s of topic %s on %s, worker %s", nonce, topic_id, chain_id, wallet.address)
    return _Epoch(chain_id, topic_id, nonce, last)


def _no_window(node: Node, topic: Topic, height: int) -> str:
    if not node.is_topic_active(topic.id):
        return f"topic {topic.id} is not active, so it opens no submission windows"
    return f"no submission window of topic {topic.id} is open at height {height}"


def _allow(run: _Run, chain_id: str, told: list[str]) -> None:
    """Make sure that the worker is registered and may submit."""
    node, wallet, topic_id = run.parts.node, run.parts.wallet, run.job.topic_id
    if not node.is_registered(topic_id, wallet.address):
        if not run.job.register or run.job.dry_run:
            raise NeedsHuman(
                f"Worker {wallet.address} is not registered for topic {topic_id} on {chain_id}. "
                "Run once more with --register to register it (this costs the chain's registration fee)."
            )
        fee = register(node, wallet, chain_id=chain_id, topic_id=topic_id, tier=run.job.tier, wake=run.parts.wake,
                       clock=run.parts.clock, max_fee_uallo=run.job.max_fee_uallo)  # fmt: skip
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
        state = "confirmed" if found.code == 0 else "rejected"
        ledger.settle(sent, state, now, height=found.height, reason=found.log)
    elif run.parts.node.height() > sent.timeout_height:
        ledger.settle(sent, "expired", now, height=None, reason="not included by the end of its window")


def _fetch(run: _Run, now: float) -> Candles:
    """The candles that the forecast needs, fetched where missing and checked."""
    source, manifest, features = run.parts.source, run.parts.forecaster.manifest, run.parts.forecaster.features
    if source.step != manifest.step:
        raise NeedsHuman(
            f"The model wants candles of {manifest.step} s, {source.name} gives {source.step} s. "
            "Choose another source, or train a model on this one."
        )
    needed = manifest.encoder_length + warm_up(features.past, manifest.step)
    with run.stage("data") as told:
        candles = refresh(run.parts.window, source, now=now, length=needed)
        candles, repairs = check(candles, now=now, needed=needed, max_age=LATE_STEPS * source.step)
        minutes = (now - candles.end) / 60
        kind = "synthetic, " if source.synthetic else ""
        told.append(f"{source.name}: {kind}{len(candles)} candles to {iso(candles.end)}, {minutes:.0f} min old")
        told.extend(repairs)
    return candles


def _check_model(run: _Run) -> None:
    forecaster = run.parts.forecaster
    manifest = forecaster.manifest
    with run.stage("model") as told:
        run.know(bundle=forecaster.check())
        told.append(f"{manifest.name} ({manifest.sha256[:12]}): hashes, weights and canary are right")


def _forecast(run: _Run, candles: Candles) -> Forecast:
    forecaster = run.parts.forecaster
    manifest = forecaster.manifest
    with run.stage("forecast") as told:
        inputs = model_input(forecaster.features, candles, manifest.encoder_length, manifest.horizon)
        forecast = forecaster.predict(inputs)
        quantiles = dict(zip((f"{level:g}" for level in forecast.levels), forecast.quantiles[-1].tolist(), strict=False))
        run.know(value=forecast.value, quantiles=quantiles)
        hours = forecast.step * manifest.horizon / 3600
        told.append(f"log-return over {hours:g} h: {forecast.value:+.5f}")
        told.append("  ".join(f"{100 * float(level):g}% {value:+.4f}" for level, value in quantiles.items()))
    return forecast


def _guard(run: _Run, forecast: Forecast, candles: Candles) -> None:
    manifest = run.parts.forecaster.manifest
    with run.stage("guards") as told:
        trained = None if candles.provenance.synthetic else float(manifest.training.end)
        report = check_forecast(
            forecast, candles, horizon=manifest.horizon, trained_until=trained, consensus=_consensus(run)
        )
        run.know(warnings=report.warnings)
        told.append(f"{len(report.passed)} passed; plausible within {report.bound:.4f} either way")
        told.extend(f"warning: {warning}" for warning in report.warnings)


def _consensus(run: _Run) -> tuple[float, ...]:
    """The network's own latest inferences; none when the node does not give them, for they only serve a warning."""
    try:
        return run.parts.node.network_inferences(run.job.topic_id)
    except RetryLater as error:
        log.warning("no comparison with the network: %s", error)
        return ()


def _sign(run: _Run, epoch: _Epoch, forecast: Forecast) -> Submission:
    parts, job = run.parts, run.job
    manifest = parts.forecaster.manifest
    with run.stage("sign") as told:
        account = parts.node.account(parts.wallet.address)
        if account is None or account.balance_uallo == 0:
            raise NeedsHuman(f"The account {parts.wallet.address} on {epoch.chain_id} has no uallo. Send it some for fees.")
        submission = sign_submission(
            parts.node,
            parts.wallet,
            chain_id=epoch.chain_id,
            topic_id=epoch.topic_id,
            nonce=epoch.nonce,
            value=forecast.value,
            timeout_height=epoch.last_height,
            synthetic=parts.source.synthetic or manifest.training.synthetic,
        )
    return submission
