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

from forecastd.chain.endpoints import Endpoints
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.cycle import run_cycle
from forecastd.daemon.beats import BeatingEvent, Beats
from forecastd.daemon.book import Book, Key
from forecastd.daemon.guarded import Unforeseen, guarded
from forecastd.daemon.money import ASK_EVERY, Money, count
from forecastd.daemon.watcher import Opening
from forecastd.epoch import UNSERVED
from forecastd.errors import ForecastdError
from forecastd.forecaster import Forecaster
from forecastd.ledger import SERVED, Entry, Ledger, State
from forecastd.outcome import Outcome
from forecastd.parts import Account, Job, Parts
from forecastd.settings import Settings
from forecastd.sources.base import Source
from forecastd.stages import Stage
from forecastd.window import RollingWindow

log = logging.getLogger(__name__)

IN_WORK = 900.0  # seconds that a stage may take without a sign: a model's attempts, all of them
IDLE = 60.0  # seconds of one wait without work
UNSEEN_AGAIN, UNSEEN_MOST = 1.0, 15.0  # seconds: a window that was told of and that the endpoint does not show yet
MOST_SERVED = 100  # served windows that are remembered, to be left alone while they stay open
FAILED_AGAIN, FAILED_MOST = 5.0, 60.0  # seconds: a cycle that failed


@dataclass(frozen=True)
class Kit:
    """What a topic is served with. A reload puts another one in its place, between two cycles."""

    settings: Settings
    chain_id: str
    job: Job
    source: Source
    forecaster: Forecaster
    wallet: Wallet
    chain: Endpoints
    account: Account

    @property
    def key(self) -> Key:
        return self.settings.topic_id, self.wallet.address


class Reports(Protocol):
    """Who is told what became of epochs. Every method returns at once; an empty trouble is over."""

    def missed(self, key: Key, nonce: int, reason: str) -> None: ...
    def money(self, key: Key, money: Money) -> None: ...
    def served(self, key: Key, nonce: int) -> None: ...
    def trouble_of(self, key: Key, reason: str) -> None: ...


@dataclass(frozen=True)
class Shared:
    """What all workers share. `reports` is told of epochs, and of what a person is needed for.

    `height` gives the chain's height as the watcher knows it, `may_start` whether a cycle may start now.
    """

    ledger: Ledger
    window: RollingWindow
    clock: Clock
    book: Book
    beats: Beats
    height: Callable[[int], int | None]
    may_start: Callable[[], bool]
    reports: Reports


class TopicWorker:
    """A worker; `start` begins its thread. `kit` may be replaced with `swap`.

    `after`: the worker that served this topic before and may still be at its last cycle; no two serve at the same time.
    """

    def __init__(self, kit: Kit, shared: Shared, *, after: TopicWorker | None = None) -> None:
        self.key = kit.key
        self.name = f"topic {kit.key[0]} of {kit.key[1]}"
        self._kit, self._next = kit, kit
        self._shared, self._before = shared, after
        self._lock = threading.Lock()
        self._pending: dict[int, Opening] = {}
        self._served: tuple[int, ...] = ()
        self._reasons: dict[int, str] = {}
        self._look = True
        self._again_at = 0.0
        self._failures = 0
        self._missed: int | None = None
        self._counted = float("-inf")
        self._stopping = False
        self._wake = BeatingEvent(shared.beats, self.name, IN_WORK)
        self._posted = BeatingEvent(shared.beats, self.name, IN_WORK)
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    # From other threads

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def post(self, opening: Opening) -> None:
        """A window is open. Returns at once; of a window that is served already, each look at the topic tells again."""
        with self._lock:
            if opening.nonce in self._pending or opening.nonce in self._served:
                return
            self._pending[opening.nonce] = opening
            self._again_at = 0.0
        self._shared.book.opened(self.key, opening.nonce)
        self._posted.set()

    def look(self) -> None:
        """Run a cycle, whether a window is known to be open or not: it settles what is open from before."""
        with self._lock:
            self._look = True
        self._posted.set()

    def swap(self, kit: Kit) -> None:
        """Work with this kit from the next cycle on."""
        with self._lock:
            self._next = kit
            self._again_at = 0.0
        self._posted.set()

    def uses(self, kit: Kit) -> bool:
        """Whether it may still work with this kit."""
        return self._thread.is_alive() and (self._kit is kit or self._next is kit)

    def stop(self) -> None:
        """Finish what can be finished at once, abandon the rest: what is signed is on record."""
        self._stopping = True
        self._wake.set()
        self._posted.set()

    def retire(self) -> None:
        """End after the cycle under way."""
        self._stopping = True
        self._posted.set()

    def join(self, seconds: float) -> bool:
        """Wait for its end; whether it has ended."""
        if self._thread.ident is not None:
            self._thread.join(seconds)
        return not self._thread.is_alive()

    # In its own thread

    def _run(self) -> None:
        while self._before is not None and not self._before.join(IDLE) and not self._stopping:
            self._wake.beat()
        self._before = None
        guarded(self.name, self._count_missed)
        while not self._stopping:
            pause = guarded(self.name, self._try_turn)
            wait = FAILED_MOST if isinstance(pause, Unforeseen) else pause
            self._posted.wait(wait)
            self._posted.clear()
        self._shared.beats.end(self.name)

    def _count_missed(self) -> None:
        """From where on misses are news."""
        topic_id, wallet = self.key
        self._missed = self._shared.ledger.counts(self._kit.chain_id, wallet, topic_id).get(State.MISSED, 0)

    def _try_turn(self) -> float:
        try:
            return self._turn()
        except ForecastdError as error:  # the disk, mostly
            log.warning("%s %s goes on in a minute.", error, self.name.capitalize(), extra={"action": "worker"})
            return FAILED_MOST

    def _turn(self) -> float:
        """One cycle if there is anything to do; seconds until the next turn."""
        with self._lock:
            self._kit = kit = self._next
        self._give_up_closed(kit)
        now = self._shared.clock.monotonic()
        with self._lock:
            wanted = self._look or bool(self._pending)
            wait = max(0.0, self._again_at - now)
        if not wanted or not self._shared.may_start():
            return IDLE
        if wait > 0:
            return min(wait, IDLE)
        with self._lock:
            self._look = False
        self._after(kit, self._cycle(kit))
        if now - self._counted >= ASK_EVERY and not self._stopping:
            self._counted = now
            self._count_money(kit)
        return 0.0

    def _cycle(self, kit: Kit) -> Outcome:
        shared, key = self._shared, self.key
        parts = Parts(
            kit.source, shared.window, kit.forecaster, shared.ledger, kit.chain, kit.wallet, shared.clock, self._wake,
            kit.account,
        )  # fmt: skip

        def begun(stage: str) -> None:
            shared.beats.beat(self.name, IN_WORK)
            newest = max(self._nonces(), default=None)
            now = shared.clock.now()
            shared.book.change(key, lambda topic: replace(topic, phase=stage, phase_since=now, nonce=newest))

        def told(_: Stage) -> None:
            shared.beats.beat(self.name, IN_WORK)

        ended = guarded(f"the cycle of {self.name}", lambda: run_cycle(kit.job, parts, told, begun))
        if isinstance(ended, Unforeseen):
            ended = Outcome("failed", f"unforeseen error: {ended.reason}", topic_id=key[0], wallet=key[1])
        return ended

    def _after(self, kit: Kit, outcome: Outcome) -> None:
        """Put down how it ended, and decide when to go on."""
        shared, nonce = self._shared, outcome.nonce
        failed = outcome.outcome in ("failed", "skipped")
        if failed and self._stopping:
            return  # abandoned: the next start goes on with it
        shared.book.ended(self.key, outcome, shared.clock.now())
        if failed:
            for one in self._nonces() if nonce is None else [nonce]:
                self._reasons[one] = outcome.reason
        settled = self._settle(kit)
        self._tell(kit, outcome)
        with self._lock:
            if settled or not (self._pending or failed):
                self._failures, self._again_at = 0, 0.0
                return
            first, most = (FAILED_AGAIN, FAILED_MOST) if failed else (UNSEEN_AGAIN, UNSEEN_MOST)
            pause = min(most, first * 2 ** min(self._failures, 10)) * random.uniform(0.9, 1.1)  # noqa: S311 - jitter
            self._failures += 1
            self._again_at = shared.clock.monotonic() + pause
            self._look = self._look or failed

    def _settle(self, kit: Kit) -> bool:
        """Let go of the windows that the ledger has a served epoch for; whether there were any."""
        served = [nonce for nonce in self._nonces() if _is_served(self._entry(kit, nonce))]
        with self._lock:
            for nonce in served:
                del self._pending[nonce]
            self._served = (*self._served, *served)[-MOST_SERVED:]
        return bool(served)

    def _give_up_closed(self, kit: Kit) -> None:
        """Record as missed what was not served and whose window no block can serve any more."""
        height = self._shared.height(self.key[0])
        with self._lock:
            closed = [one for one in self._pending.values() if height is not None and height >= one.last_height]
        for one in closed:
            if self._entry(kit, one.nonce) is None:
                reason = self._reasons.get(one.nonce, UNSERVED)
                key = (kit.chain_id, one.topic_id, one.nonce, kit.wallet.address)
                self._shared.ledger.adopt(key, State.MISSED, self._shared.clock.now(), reason=reason)
            with self._lock:
                del self._pending[one.nonce]
        if closed:
            self._tell_missed(kit)

    def _count_money(self, kit: Kit) -> None:
        """What is not told now is asked for again in an hour: it serves a warning only."""
        wallet = self.key[1]
        try:
            money = count(kit.chain, self._shared.ledger, kit.chain_id, wallet, len(kit.account.topics))
        except ForecastdError as error:
            log.debug("the balance of %s is not known: %s", wallet, error, extra={"action": "balance"})
            return
        self._shared.book.change(
            self.key, lambda topic: replace(topic, balance_uallo=money.balance, runway_epochs=money.epochs)
        )
        self._shared.reports.money(self.key, money)

    def _nonces(self) -> list[int]:
        with self._lock:
            return list(self._pending)

    def _entry(self, kit: Kit, nonce: int) -> Entry | None:
        return self._shared.ledger.find((kit.chain_id, self.key[0], nonce, kit.wallet.address))

    def _tell(self, kit: Kit, outcome: Outcome) -> None:
        """Tell whoever is to be told of misses, of submissions, and of what needs a person."""
        self._tell_missed(kit)
        if outcome.nonce is not None and outcome.outcome in ("submitted", "already_submitted"):
            self._shared.reports.served(self.key, outcome.nonce)
            self._reasons = {nonce: why for nonce, why in self._reasons.items() if nonce > outcome.nonce}
        if outcome.needs_human:
            self._shared.reports.trouble_of(self.key, outcome.reason)
        elif outcome.outcome != "failed":
            self._shared.reports.trouble_of(self.key, "")

    def _tell_missed(self, kit: Kit) -> None:
        """Missed epochs that have come into the ledger since the last time, whoever put them there."""
        topic_id, wallet = self.key
        ledger = self._shared.ledger
        missed = ledger.counts(kit.chain_id, wallet, topic_id).get(State.MISSED, 0)
        before, self._missed = self._missed, missed
        if before is None or missed <= before:
            return
        found = ledger.entries(kit.chain_id, wallet, topic_id=topic_id, states=(State.MISSED,))
        for entry in sorted(found, key=lambda one: (one.settled_at or 0.0, one.nonce))[-(missed - before) :]:
            reason = self._reasons.pop(entry.nonce, "") if entry.row.reason == UNSERVED else ""
            if reason:
                ledger.record(entry.key, replace(entry.row, reason=reason), self._shared.clock.now())
            self._shared.book.missed(self.key)
            self._shared.reports.missed(self.key, entry.nonce, reason or entry.row.reason)


def _is_served(entry: Entry | None) -> bool:
    return entry is not None and entry.row.state in SERVED
