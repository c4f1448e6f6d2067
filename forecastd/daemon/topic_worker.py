"""Serves one topic with one wallet: runs the cycles, one after the other, in a thread of its own.

The one thing to know before changing it: which epoch is served, and whether it is served already, is decided by the cycle
from the chain and the ledger. What is kept here is only what has been handed over and is not settled yet, so losing it, or
being handed the same window again, does no harm.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.daemon.balance import CHECK_INTERVAL_SECONDS, WalletBalance, check_balance
from forecastd.daemon.status_registry import StatusRegistry, TopicKey
from forecastd.daemon.watcher import SubmissionWindow
from forecastd.errors import ForecastdError
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import StageResult
from forecastd.ledger.ledger import SERVED_STATES, Ledger, LedgerEntry, SubmissionState
from forecastd.ledger.outcome import Outcome
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.settings import Settings
from forecastd.submission.context import CycleContext, CycleOptions, SharedWallet
from forecastd.submission.cycle import run_cycle
from forecastd.submission.epochs import NOT_SUBMITTED_REASON

log = logging.getLogger(__name__)

STAGE_STALL_SECONDS = 900.0  # seconds that a stage may take without a sign: a model's attempts, all of them
IDLE_SECONDS = 60.0  # seconds of one wait without work
UNSEEN_RETRY_SECONDS, MAX_UNSEEN_RETRY_SECONDS = (
    1.0,
    15.0,
)  # seconds: a window that was told of and that the endpoint does not show yet
MAX_SERVED_NONCES = 100  # served windows that are remembered, to be left alone while they stay open
FAILURE_RETRY_SECONDS, MAX_FAILURE_RETRY_SECONDS = 5.0, 60.0  # seconds: a cycle that failed


@dataclass(frozen=True)
class TopicResources:
    """What a topic is served with. A reload puts another one in its place, between two cycles."""

    settings: Settings
    chain_id: str
    options: CycleOptions
    source: Source
    forecaster: Forecaster
    wallet: Wallet
    chain: EndpointPool
    signing_lock: SharedWallet

    @property
    def key(self) -> TopicKey:
        return self.settings.topic_id, self.wallet.address


class EpochReporter(Protocol):
    """Who is told what became of epochs. Every method returns at once; an empty trouble is over."""

    def report_missed(self, key: TopicKey, nonce: int, reason: str) -> None: ...
    def report_balance(self, key: TopicKey, balance: WalletBalance) -> None: ...
    def report_served(self, key: TopicKey, nonce: int) -> None: ...
    def set_attention(self, key: TopicKey, reason: str) -> None: ...


@dataclass(frozen=True)
class WorkerContext:
    """What all workers share. `reports` is told of epochs, and of what a person is needed for.

    `height` gives the chain's height as the watcher knows it, `may_start` whether a cycle may start now.
    """

    ledger: Ledger
    window: RollingWindow
    clock: Clock
    registry: StatusRegistry
    liveness: LivenessMonitor
    height: Callable[[int], int | None]
    may_start: Callable[[], bool]
    reporter: EpochReporter


class TopicWorker:
    """A worker; `start` begins its thread. `kit` may be replaced with `swap`.

    `after`: the worker that served this topic before and may still be at its last cycle; no two serve at the same time.
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
        """Begin to serve."""
        self._thread.start()

    def add_window(self, window: SubmissionWindow) -> None:
        """A window is open. Returns at once; of a window that is served already, each look at the topic tells again."""
        with self._lock:
            if window.nonce in self._pending or window.nonce in self._served:
                return
            self._pending[window.nonce] = window
            self._next_attempt = 0.0
        self._context.registry.record_window(self.key, window.nonce)
        self._work_available.set()

    def request_cycle(self) -> None:
        """Run a cycle, whether a window is known to be open or not: it settles what is open from before."""
        with self._lock:
            self._cycle_requested = True
        self._work_available.set()

    def replace_resources(self, resources: TopicResources) -> None:
        """Work with this kit from the next cycle on."""
        with self._lock:
            self._next_resources = resources
            self._next_attempt = 0.0
        self._work_available.set()

    def uses(self, resources: TopicResources) -> bool:
        """Whether it may still work with this kit."""
        return self._thread.is_alive() and (self._resources is resources or self._next_resources is resources)

    def stop(self) -> None:
        """Finish what can be finished at once, abandon the rest: what is signed is on record."""
        self._stopping = True
        self._wake.set()
        self._work_available.set()

    def drain(self) -> None:
        """End after the cycle under way."""
        self._stopping = True
        self._work_available.set()

    def join(self, seconds: float) -> bool:
        """Wait for its end; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # In its own thread

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
        """From where on misses are news."""
        topic_id, wallet = self.key
        self._missed_count = self._context.ledger.count_by_state(self._resources.chain_id, wallet, topic_id).get(
            SubmissionState.MISSED, 0
        )

    def _run_pending_or_retry(self) -> float:
        try:
            return self._run_pending()
        except ForecastdError as error:  # the disk, mostly
            log.warning("%s %s goes on in a minute.", error, self.name.capitalize(), extra={"action": "worker"})
            return MAX_FAILURE_RETRY_SECONDS

    def _run_pending(self) -> float:
        """One cycle if there is anything to do; seconds until the next turn."""
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
        cycle_context = CycleContext(
            resources.source, context.window, resources.forecaster, context.ledger, resources.chain, resources.wallet, context.clock, self._wake,
            resources.signing_lock,
        )  # fmt: skip

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
            outcome = Outcome("failed", f"unforeseen error: {outcome.reason}", topic_id=key[0], wallet=key[1])
        return outcome

    def _finish_cycle(self, resources: TopicResources, outcome: Outcome) -> None:
        """Put down how it ended, and decide when to go on."""
        context, nonce = self._context, outcome.nonce
        failed = outcome.outcome in ("failed", "skipped")
        if failed and self._stopping:
            return  # abandoned: the next start goes on with it
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
            pause = min(max_pause, first * 2 ** min(self._failures, 10)) * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
            self._failures += 1
            self._next_attempt = context.clock.monotonic() + pause
            self._cycle_requested = self._cycle_requested or failed

    def _drop_served(self, resources: TopicResources) -> bool:
        """Let go of the windows that the ledger has a served epoch for; whether there were any."""
        served = [nonce for nonce in self._pending_nonces() if _is_served(self._entry(resources, nonce))]
        with self._lock:
            for nonce in served:
                del self._pending[nonce]
            self._served = (*self._served, *served)[-MAX_SERVED_NONCES:]
        return bool(served)

    def _record_closed(self, resources: TopicResources) -> None:
        """Record as missed what was not served and whose window no block can serve any more."""
        height = self._context.height(self.key[0])
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
        """What is not told now is asked for again in an hour: it serves a warning only."""
        wallet = self.key[1]
        try:
            balance = check_balance(
                resources.chain, self._context.ledger, resources.chain_id, wallet, len(resources.signing_lock.topics)
            )
        except ForecastdError as error:
            log.debug("the balance of %s is not known: %s", wallet, error, extra={"action": "balance"})
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
        """Tell whoever is to be told of misses, of submissions, and of what needs a person."""
        self._report_missed(resources)
        if outcome.nonce is not None and outcome.outcome in ("submitted", "already_submitted"):
            self._context.reporter.report_served(self.key, outcome.nonce)
            self._reasons = {nonce: reason for nonce, reason in self._reasons.items() if nonce > outcome.nonce}
        if outcome.needs_human:
            self._context.reporter.set_attention(self.key, outcome.reason)
        elif outcome.outcome != "failed":
            self._context.reporter.set_attention(self.key, "")

    def _report_missed(self, resources: TopicResources) -> None:
        """Missed epochs that have come into the ledger since the last time, whoever put them there."""
        topic_id, wallet = self.key
        ledger = self._context.ledger
        missed_count = ledger.count_by_state(resources.chain_id, wallet, topic_id).get(SubmissionState.MISSED, 0)
        previous_count, self._missed_count = self._missed_count, missed_count
        if previous_count is None or missed_count <= previous_count:
            return
        entries = ledger.entries(resources.chain_id, wallet, topic_id=topic_id, states=(SubmissionState.MISSED,))
        for entry in sorted(entries, key=lambda entry: (entry.settled_at or 0.0, entry.nonce))[
            -(missed_count - previous_count) :
        ]:
            reason = self._reasons.pop(entry.nonce, "") if entry.row.reason == NOT_SUBMITTED_REASON else ""
            if reason:
                ledger.record(entry.key, replace(entry.row, reason=reason), self._context.clock.now())
            self._context.registry.record_missed(self.key)
            self._context.reporter.report_missed(self.key, entry.nonce, reason or entry.row.reason)


def _is_served(entry: LedgerEntry | None) -> bool:
    return entry is not None and entry.row.state in SERVED_STATES
