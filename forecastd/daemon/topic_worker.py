"""Serves one topic of one wallet: runs the cycles, one after the other, in its own thread.

Invariant: the cycle decides from the chain and the ledger which epoch to serve and whether it is already served. The
worker only remembers the windows that were reported and are not settled yet, so losing one, or getting it again, does
no harm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from forecastd.clock import Clock
from forecastd.daemon.alert_reporter import AlertReporter
from forecastd.daemon.balance import CHECK_INTERVAL_SECONDS, check_balance
from forecastd.daemon.schedule import DEFAULT_BLOCK_SECONDS
from forecastd.daemon.status_registry import StatusRegistry
from forecastd.daemon.watcher import TopicView
from forecastd.errors import ForecastdError
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import FINISHED_STATES, Ledger, LedgerEntry
from forecastd.ledger.outcome import Outcome
from forecastd.market.window import RollingWindow
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.retry import backoff_seconds
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.submission.context import CycleContext, TopicResources
from forecastd.submission.cycle import run_cycle
from forecastd.submission.window import SubmissionWindow

log = logging.getLogger(__name__)

STAGE_STALL_SECONDS = 900.0  # limit of a stage without a heartbeat; all attempts of a model take longest
IDLE_SECONDS = 60.0  # of one wait without work
UNSEEN_RETRY_SECONDS, MAX_UNSEEN_RETRY_SECONDS = 1.0, 15.0  # after a cycle that did not see the reported window yet
MAX_SERVED_NONCES = 100  # served windows to remember, which are ignored while they stay open
FAILURE_RETRY_SECONDS, MAX_FAILURE_RETRY_SECONDS = 5.0, 60.0  # after a failed cycle


class TopicWorker:
    """The worker of one topic of one wallet; `start` starts its thread.

    `view`: what the watcher knows of a topic. `may_start`: whether a cycle may start. `predecessor`: the previous worker
    of this topic, which may still run its last cycle; two never run at the same time.
    """

    def __init__(
        self,
        resources: TopicResources,
        ledger: Ledger,
        rolling_window: RollingWindow,
        clock: Clock,
        *,
        registry: StatusRegistry,
        reporter: AlertReporter,
        liveness: LivenessMonitor,
        view: Callable[[int], TopicView | None],
        may_start: Callable[[], bool],
        predecessor: TopicWorker | None = None,
    ) -> None:
        self.key = resources.key
        self.name = f"topic {resources.key[0]} of {resources.key[1]}"
        self._resources, self._next_resources = resources, resources
        self._ledger, self._rolling_window, self._clock = ledger, rolling_window, clock
        self._registry, self._reporter, self._liveness = registry, reporter, liveness
        self._view, self._may_start, self._predecessor = view, may_start, predecessor
        self._lock = threading.Lock()
        self._pending: dict[int, SubmissionWindow] = {}
        self._served: tuple[int, ...] = ()
        self._failure_reasons: dict[int, str] = {}
        self._cycle_requested = True
        self._next_attempt = 0.0
        self._failures = 0
        self._balance_checked_at = float("-inf")
        self._stopping = False
        self._wake = HeartbeatEvent(liveness, self.name, STAGE_STALL_SECONDS)
        self._work_available = HeartbeatEvent(liveness, self.name, STAGE_STALL_SECONDS)
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
        self._registry.record_window(self.key, window.nonce)
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
        while not self._stopping:
            pause = run_guarded(self.name, self._run_pending)
            self._work_available.wait(MAX_FAILURE_RETRY_SECONDS if isinstance(pause, UnexpectedError) else pause)
            self._work_available.clear()
        self._liveness.remove(self.name)

    def _run_pending(self) -> float:
        """Run one cycle if there is work. Returns the seconds to wait."""
        now = self._clock.monotonic()
        with self._lock:
            self._resources = resources = self._next_resources
            windows = list(self._pending.values())
            has_work = self._cycle_requested or bool(windows)
            wait = max(0.0, self._next_attempt - now)
        if not has_work or not self._may_start():
            return IDLE_SECONDS
        if wait > 0:
            return min(wait, IDLE_SECONDS)
        with self._lock:
            self._cycle_requested = False
        try:
            self._finish_cycle(resources, self._run_cycle(resources, windows))
        except ForecastdError as error:  # usually the disk
            log.warning("%s The worker of %s retries in 1 min.", error, self.name, extra={"action": "worker"})
            return MAX_FAILURE_RETRY_SECONDS
        if now - self._balance_checked_at >= CHECK_INTERVAL_SECONDS and not self._stopping:
            self._balance_checked_at = now
            self._check_balance(resources)
        return 0.0

    def _run_cycle(self, resources: TopicResources, windows: list[SubmissionWindow]) -> Outcome:
        view = self._view(self.key[0])
        context = CycleContext(
            resources,
            self._ledger,
            self._rolling_window,
            self._clock,
            self._wake,
            retry_until_closed=True,
            confirmation_seconds=None,
            block_seconds=DEFAULT_BLOCK_SECONDS if view is None else view.block_timer.estimate,
            failures=self._failure_reasons,
            on_stage_start=self._on_stage_start,
            on_stage_end=self._on_stage_end,
            on_missed=self._on_missed,
        )
        outcome = run_guarded(f"the cycle of {self.name}", lambda: run_cycle(context, windows))
        if isinstance(outcome, UnexpectedError):
            return Outcome("failed", f"unexpected error: {outcome.reason}", topic_id=self.key[0], wallet=self.key[1])
        return outcome

    def _on_stage_start(self, stage: str) -> None:
        self._liveness.beat(self.name, STAGE_STALL_SECONDS)
        newest, now = max(self._pending_nonces(), default=None), self._clock.now()
        self._registry.update(self.key, lambda topic: replace(topic, phase=stage, phase_since=now, nonce=newest))

    def _on_stage_end(self, _: StageResult) -> None:
        self._liveness.beat(self.name, STAGE_STALL_SECONDS)

    def _on_missed(self, entry: LedgerEntry) -> None:
        if entry.key[1] == self.key[0]:  # not of a topic that is no longer served
            self._registry.record_missed(self.key)
            self._reporter.report_missed(self.key, entry.nonce, entry.row.reason)

    def _finish_cycle(self, resources: TopicResources, outcome: Outcome) -> None:
        """Record the outcome, and decide when to run the next cycle."""
        failed = outcome.outcome in ("failed", "skipped")
        if failed and self._stopping:
            return  # abandoned: the next start resumes it
        self._registry.record_outcome(self.key, outcome, self._clock.now())
        if failed:
            nonces = self._pending_nonces() if outcome.nonce is None else [outcome.nonce]
            self._failure_reasons.update(dict.fromkeys(nonces, outcome.reason))
        settled = self._drop_settled(resources)
        self._report(outcome)
        with self._lock:
            if settled or not (self._pending or failed):
                self._failures, self._next_attempt = 0, 0.0
                return
            first, max_pause = (
                (FAILURE_RETRY_SECONDS, MAX_FAILURE_RETRY_SECONDS)
                if failed
                else (UNSEEN_RETRY_SECONDS, MAX_UNSEEN_RETRY_SECONDS)
            )
            self._failures += 1
            pause = backoff_seconds(self._failures, first, max_pause)
            self._next_attempt = self._clock.monotonic() + pause
            self._cycle_requested = self._cycle_requested or failed

    def _drop_settled(self, resources: TopicResources) -> bool:
        """Forget the pending windows that need no more work; return whether there were any.

        They are served or missed according to the ledger, or have closed with a submission that a later cycle settles.
        """
        view, settled = self._view(self.key[0]), []
        height = None if view is None else view.height
        with self._lock:
            windows = list(self._pending.values())
        for window in windows:
            entry = self._ledger.find(resources.epoch_key(window.nonce))
            has_closed = height is not None and height >= window.last_height
            if entry is not None and (has_closed or entry.row.state in FINISHED_STATES):
                settled.append(window.nonce)
        with self._lock:
            for nonce in settled:
                del self._pending[nonce]
            self._served = (*self._served, *settled)[-MAX_SERVED_NONCES:]
        return bool(settled)

    def _check_balance(self, resources: TopicResources) -> None:
        """Report the wallet's balance. A failure waits for the next check: the balance only serves a warning."""
        wallet = self.key[1]
        try:
            balance = check_balance(
                resources.chain, self._ledger, resources.chain_id, wallet, len(resources.wallet_topics)
            )
        except ForecastdError as error:
            log.debug("cannot query the balance of %s: %s", wallet, error, extra={"action": "balance"})
            return
        self._registry.update(
            self.key, lambda topic: replace(topic, balance_uallo=balance.uallo, runway_epochs=balance.epochs)
        )
        self._reporter.report_balance(self.key, balance)

    def _pending_nonces(self) -> list[int]:
        with self._lock:
            return list(self._pending)

    def _report(self, outcome: Outcome) -> None:
        """Report the submission, and whether a person is needed."""
        if outcome.nonce is not None and outcome.outcome in ("submitted", "already_submitted"):
            self._reporter.report_served(self.key, outcome.nonce)
            self._failure_reasons = {
                nonce: reason for nonce, reason in self._failure_reasons.items() if nonce > outcome.nonce
            }
        if outcome.needs_human:
            self._reporter.set_attention(self.key, outcome.reason)
        elif outcome.outcome != "failed":
            self._reporter.set_attention(self.key, "")
