"""Serves one topic of one wallet: runs the cycles, one after the other, in its own thread.

Invariant: the cycle decides from the chain and the ledger which epoch to serve and whether it is already served. The
worker only remembers the windows that were reported and are not settled yet, so losing one, or getting it again, does
no harm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.daemon.balance import CHECK_INTERVAL_SECONDS, WalletBalance, check_balance
from forecastd.daemon.schedule import DEFAULT_BLOCK_SECONDS
from forecastd.daemon.status_registry import StatusRegistry, TopicKey
from forecastd.daemon.watcher import SubmissionWindow, TopicView
from forecastd.errors import ForecastdError
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import FINISHED_STATES, Ledger, LedgerEntry, SubmissionState
from forecastd.ledger.outcome import Outcome
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.retry import backoff_seconds
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.settings import Settings
from forecastd.submission.context import CycleContext, CycleOptions, SharedWallet
from forecastd.submission.cycle import run_cycle
from forecastd.submission.epochs import NOT_SUBMITTED_REASON

log = logging.getLogger(__name__)

STAGE_STALL_SECONDS = 900.0  # limit of a stage without a heartbeat; all attempts of a model take longest
IDLE_SECONDS = 60.0  # of one wait without work
UNSEEN_RETRY_SECONDS, MAX_UNSEEN_RETRY_SECONDS = 1.0, 15.0  # after a cycle that did not see the reported window yet
MAX_SERVED_NONCES = 100  # served windows to remember, which are ignored while they stay open
FAILURE_RETRY_SECONDS, MAX_FAILURE_RETRY_SECONDS = 5.0, 60.0  # after a failed cycle


@dataclass(frozen=True)
class TopicResources:
    """The resources of one topic of one wallet. A reload replaces them between two cycles."""

    settings: Settings
    chain_id: str
    options: CycleOptions
    source: Source
    forecaster: Forecaster
    wallet: Wallet
    chain: EndpointPool
    shared_wallet: SharedWallet

    @property
    def key(self) -> TopicKey:
        return self.settings.topic.id, self.wallet.address


class EpochReporter(Protocol):
    """Receives the results of epochs. Every method returns immediately; an empty `reason` clears the attention."""

    def report_missed(self, key: TopicKey, nonce: int, reason: str) -> None: ...
    def report_balance(self, key: TopicKey, balance: WalletBalance) -> None: ...
    def report_served(self, key: TopicKey, nonce: int) -> None: ...
    def set_attention(self, key: TopicKey, reason: str) -> None: ...


@dataclass(frozen=True)
class WorkerContext:
    """What all workers share. `view`: what the watcher knows of a topic. `may_start`: whether a cycle may start."""

    ledger: Ledger
    window: RollingWindow
    clock: Clock
    registry: StatusRegistry
    liveness: LivenessMonitor
    view: Callable[[int], TopicView | None]
    may_start: Callable[[], bool]
    reporter: EpochReporter


class TopicWorker:
    """The worker of one topic of one wallet; `start` starts its thread.

    `predecessor`: the previous worker of this topic, which may still run its last cycle; two never run at the same
    time.
    """

    def __init__(
        self, resources: TopicResources, context: WorkerContext, *, predecessor: TopicWorker | None = None
    ) -> None:
        self.key = resources.key
        self.name = f"topic {resources.key[0]} of {resources.key[1]}"
        self._resources, self._next_resources = resources, resources
        self._context, self._predecessor = context, predecessor
        self._lock = threading.Lock()
        self._pending: dict[int, SubmissionWindow] = {}
        self._served: tuple[int, ...] = ()
        self._reasons: dict[int, str] = {}
        self._cycle_requested = True
        self._next_attempt = 0.0
        self._failures = 0
        self._missed_count: int | None = None
        self._balance_checked_at = float("-inf")
        self._stopping = False
        self._wake = HeartbeatEvent(context.liveness, self.name, STAGE_STALL_SECONDS)
        self._work_available = HeartbeatEvent(context.liveness, self.name, STAGE_STALL_SECONDS)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    # From other threads

    def start(self) -> None:
        """Start to serve."""
        self._thread.start()

    def add_window(self, window: SubmissionWindow) -> None:
        """A window is open. Returns immediately. Each poll reports the window again, also when it is already served."""
        with self._lock:
            if window.nonce in self._pending or window.nonce in self._served:
                return
            self._pending[window.nonce] = window
            self._next_attempt = 0.0
        self._context.registry.record_window(self.key, window.nonce)
        self._work_available.set()

    def request_cycle(self) -> None:
        """Run a cycle even if no open window is known: it settles the open submissions of earlier cycles."""
        with self._lock:
            self._cycle_requested = True
        self._work_available.set()

    def replace_resources(self, resources: TopicResources) -> None:
        """Use these resources from the next cycle on."""
        with self._lock:
            self._next_resources = resources
            self._next_attempt = 0.0
        self._work_available.set()

    def uses(self, resources: TopicResources) -> bool:
        """Whether the worker may still use these resources."""
        return self._thread.is_alive() and (self._resources is resources or self._next_resources is resources)

    def stop(self) -> None:
        """Finish what can be finished immediately and abandon the rest; signed submissions are in the ledger."""
        self._stopping = True
        self._wake.set()
        self._work_available.set()

    def drain(self) -> None:
        """Stop after the current cycle."""
        self._stopping = True
        self._work_available.set()

    def join(self, seconds: float) -> bool:
        """Wait up to `seconds` for the thread to end; return whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # In the worker's thread

    def _run(self) -> None:
        while self._predecessor is not None and not self._predecessor.join(IDLE_SECONDS) and not self._stopping:
            self._wake.beat()
        self._predecessor = None
        run_guarded(self.name, self._load_missed_count)
        while not self._stopping:
            pause = run_guarded(self.name, self._run_pending_or_retry)
            wait = MAX_FAILURE_RETRY_SECONDS if isinstance(pause, UnexpectedError) else pause
            self._work_available.wait(wait)
            self._work_available.clear()
        self._context.liveness.remove(self.name)

    def _load_missed_count(self) -> None:
        """Count the missed epochs in the ledger; only later ones are reported."""
        topic_id, wallet = self.key
        self._missed_count = self._context.ledger.count_by_state(self._resources.chain_id, wallet, topic_id).get(
            SubmissionState.MISSED, 0
        )

    def _run_pending_or_retry(self) -> float:
        try:
            return self._run_pending()
        except ForecastdError as error:  # usually the disk
            log.warning("%s The worker of %s retries in 1 min.", error, self.name, extra={"action": "worker"})
            return MAX_FAILURE_RETRY_SECONDS

    def _run_pending(self) -> float:
        """Run one cycle if there is work. Returns the seconds to wait."""
        with self._lock:
            self._resources = resources = self._next_resources
        self._record_closed(resources)
        now = self._context.clock.monotonic()
        with self._lock:
            has_work = self._cycle_requested or bool(self._pending)
            wait = max(0.0, self._next_attempt - now)
        if not has_work or not self._context.may_start():
            return IDLE_SECONDS
        if wait > 0:
            return min(wait, IDLE_SECONDS)
        with self._lock:
            self._cycle_requested = False
        self._finish_cycle(resources, self._run_cycle(resources))
        if now - self._balance_checked_at >= CHECK_INTERVAL_SECONDS and not self._stopping:
            self._balance_checked_at = now
            self._check_balance(resources)
        return 0.0

    def _run_cycle(self, resources: TopicResources) -> Outcome:
        context, key = self._context, self.key
        view = context.view(key[0])
        cycle_context = CycleContext(
            resources.source,
            context.window,
            resources.forecaster,
            context.ledger,
            resources.chain,
            resources.wallet,
            context.clock,
            self._wake,
            resources.shared_wallet,
            DEFAULT_BLOCK_SECONDS if view is None else view.block_timer.estimate,
        )

        def on_stage_start(stage: str) -> None:
            context.liveness.beat(self.name, STAGE_STALL_SECONDS)
            newest = max(self._pending_nonces(), default=None)
            now = context.clock.now()
            context.registry.update(key, lambda topic: replace(topic, phase=stage, phase_since=now, nonce=newest))

        def on_stage_end(_: StageResult) -> None:
            context.liveness.beat(self.name, STAGE_STALL_SECONDS)

        outcome = run_guarded(
            f"the cycle of {self.name}",
            lambda: run_cycle(resources.options, cycle_context, on_stage_end, on_stage_start),
        )
        if isinstance(outcome, UnexpectedError):
            outcome = Outcome("failed", f"unexpected error: {outcome.reason}", topic_id=key[0], wallet=key[1])
        return outcome

    def _finish_cycle(self, resources: TopicResources, outcome: Outcome) -> None:
        """Record the outcome, and decide when to run the next cycle."""
        context, nonce = self._context, outcome.nonce
        failed = outcome.outcome in ("failed", "skipped")
        if failed and self._stopping:
            return  # abandoned: the next start resumes it
        context.registry.record_outcome(self.key, outcome, context.clock.now())
        if failed:
            for failed_nonce in self._pending_nonces() if nonce is None else [nonce]:
                self._reasons[failed_nonce] = outcome.reason
        served = self._drop_served(resources)
        self._report(resources, outcome)
        with self._lock:
            if served or not (self._pending or failed):
                self._failures, self._next_attempt = 0, 0.0
                return
            first, max_pause = (
                (FAILURE_RETRY_SECONDS, MAX_FAILURE_RETRY_SECONDS)
                if failed
                else (UNSEEN_RETRY_SECONDS, MAX_UNSEEN_RETRY_SECONDS)
            )
            self._failures += 1
            pause = backoff_seconds(self._failures, first, max_pause)
            self._next_attempt = context.clock.monotonic() + pause
            self._cycle_requested = self._cycle_requested or failed

    def _drop_served(self, resources: TopicResources) -> bool:
        """Forget the pending windows whose epoch is served according to the ledger; return whether there were any."""
        served = [nonce for nonce in self._pending_nonces() if _is_served(self._entry(resources, nonce))]
        with self._lock:
            for nonce in served:
                del self._pending[nonce]
            self._served = (*self._served, *served)[-MAX_SERVED_NONCES:]
        return bool(served)

    def _record_closed(self, resources: TopicResources) -> None:
        """Record epochs as missed whose window has closed and that were not served."""
        view = self._context.view(self.key[0])
        height = None if view is None else view.height
        with self._lock:
            closed = [
                window for window in self._pending.values() if height is not None and height >= window.last_height
            ]
        for window in closed:
            if self._entry(resources, window.nonce) is None:
                reason = self._reasons.get(window.nonce, NOT_SUBMITTED_REASON)
                key = (resources.chain_id, window.topic_id, window.nonce, resources.wallet.address)
                self._context.ledger.record_unsigned(
                    key, SubmissionState.MISSED, self._context.clock.now(), reason=reason
                )
            with self._lock:
                del self._pending[window.nonce]
        if closed:
            self._report_missed(resources)

    def _check_balance(self, resources: TopicResources) -> None:
        """Report the wallet's balance. A failure waits for the next check: the balance only serves a warning."""
        wallet = self.key[1]
        try:
            balance = check_balance(
                resources.chain, self._context.ledger, resources.chain_id, wallet, len(resources.shared_wallet.topics)
            )
        except ForecastdError as error:
            log.debug("cannot query the balance of %s: %s", wallet, error, extra={"action": "balance"})
            return
        self._context.registry.update(
            self.key, lambda topic: replace(topic, balance_uallo=balance.uallo, runway_epochs=balance.epochs)
        )
        self._context.reporter.report_balance(self.key, balance)

    def _pending_nonces(self) -> list[int]:
        with self._lock:
            return list(self._pending)

    def _entry(self, resources: TopicResources, nonce: int) -> LedgerEntry | None:
        return self._context.ledger.find((resources.chain_id, self.key[0], nonce, resources.wallet.address))

    def _report(self, resources: TopicResources, outcome: Outcome) -> None:
        """Report missed epochs, the submission, and whether a person is needed."""
        self._report_missed(resources)
        if outcome.nonce is not None and outcome.outcome in ("submitted", "already_submitted"):
            self._context.reporter.report_served(self.key, outcome.nonce)
            self._reasons = {nonce: reason for nonce, reason in self._reasons.items() if nonce > outcome.nonce}
        if outcome.needs_human:
            self._context.reporter.set_attention(self.key, outcome.reason)
        elif outcome.outcome != "failed":
            self._context.reporter.set_attention(self.key, "")

    def _report_missed(self, resources: TopicResources) -> None:
        """Report the missed epochs that were added to the ledger since the last call, by whichever code."""
        topic_id, wallet = self.key
        ledger = self._context.ledger
        missed_count = ledger.count_by_state(resources.chain_id, wallet, topic_id).get(SubmissionState.MISSED, 0)
        previous_count, self._missed_count = self._missed_count, missed_count
        if previous_count is None or missed_count <= previous_count:
            return
        entries = ledger.entries(resources.chain_id, wallet, topic_id=topic_id, states=(SubmissionState.MISSED,))
        newest = sorted(entries, key=lambda entry: (entry.settled_at or 0.0, entry.nonce))
        for entry in newest[-(missed_count - previous_count) :]:
            reason = self._reasons.pop(entry.nonce, "") if entry.row.reason == NOT_SUBMITTED_REASON else ""
            if reason:
                ledger.record(entry.key, replace(entry.row, reason=reason), self._context.clock.now())
            self._context.registry.record_missed(self.key)
            self._context.reporter.report_missed(self.key, entry.nonce, reason or entry.row.reason)


def _is_served(entry: LedgerEntry | None) -> bool:
    return entry is not None and entry.row.state in FINISHED_STATES
