"""The chain's own faults at work: what they do to a payload that arrives, waits, or is in a block.

Kept apart from the chain so that its rules stay those of a chain that is well. Nothing here is on disk: a fault lasts as
long as the node's process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from forecastd.chain.networks import ADDRESS_PREFIX
from forecastd.chain.sdk import EmissionsVersion
from forecastd.localnet.activeset import admit
from forecastd.localnet.faults import Fault, Level, Plan
from forecastd.localnet.state import Account, Effect, State, Stored, TxRecord
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.txs import Tx


class Trouble:
    """The faults of one chain and what they have begun."""

    def __init__(self) -> None:
        self.set_faults(())

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Have these faults from now on, with counts that begin anew; what was begun is forgotten."""
        self.plan = Plan(faults)
        self._restart: float | None = None
        self._held: dict[str, int] = {}  # by hash: the first block that may take it
        self._doomed: set[str] = set()
        self._outrun: set[str] = set()
        self._reverse = False
        self._jump = 0
        self._evictions: set[tuple[int, int]] = set()

    def forget_mempool(self) -> None:
        """What waited is lost."""
        self._held.clear()
        self._doomed.clear()
        self._outrun.clear()
        self._reverse = False

    # A payload arrives

    def price_for(self, state: State, height: int) -> int:
        """The gas price by which a payload that arrives now is judged."""
        struck = self.plan.strike((Level.ARRIVAL,), height)
        floor = state.fees.min_gas_price
        return max([state.gas_price, *(int(floor * fault.number) for fault in struck)])

    def taken(self, tx: Tx, topic: TopicSpec | None, height: int) -> None:
        """A payload is in the mempool; `height` is the next block's."""
        for fault in self.plan.strike((Level.TAKEN,), height):
            if fault.name == "sequence":
                self._outrun.add(tx.hash)
            elif fault.name == "drop-from-mempool":
                self._doomed.add(tx.hash)
            elif fault.name == "late":
                self._held[tx.hash] = height + int(fault.number)
            elif fault.name == "reorder":
                self._reverse = True
            elif fault.name == "restart":
                self._restart = fault.number
            elif fault.name == "window-closing" and topic is not None:
                nonce = tx.messages[0].nonce
                self._jump = self._held[tx.hash] = nonce + topic.worker_submission_window

    def take_restart(self) -> float | None:
        """Seconds the node is to be down from now; None when it is not to go down. Told once."""
        seconds, self._restart = self._restart, None
        return seconds

    # A block is made

    def take_jump(self) -> int:
        """The height up to which blocks follow at once; 0 for none. Told once."""
        jump, self._jump = self._jump, 0
        return jump

    def version_at(self, height: int) -> EmissionsVersion | None:
        """The emissions version the chain changes to with this block, if any."""
        struck = self.plan.strike((Level.BLOCK,), height)
        return ("v9" if struck[0].value == "v9" else "v10") if struck else None

    def choose(self, pending: list[Tx], height: int) -> tuple[list[Tx], list[Tx]]:
        """What this block takes of the mempool, in its order, and what is dropped from it."""
        doomed = [tx for tx in pending if tx.hash in self._doomed]
        ready = [tx for tx in pending if tx.hash not in self._doomed and self._held.get(tx.hash, 0) <= height]
        if self._reverse:
            ready.reverse()
            self._reverse = False
        for tx in (*doomed, *ready):
            self._held.pop(tx.hash, None)
        self._doomed.clear()
        return ready, doomed

    def outrunner(self, tx: Tx, account: Account | None, height: int, time: float) -> Effect | None:
        """The transaction of somebody else with the same key, in the block ahead of this one."""
        if tx.hash not in self._outrun or account is None:
            return None
        self._outrun.discard(tx.hash)
        return outsider(account, height, time)

    def gas_factor(self, height: int) -> float:
        """What a payload's gas is multiplied with in this block."""
        return max([1.0, *(fault.number for fault in self.plan.strike((Level.EXECUTION,), height))])

    def rivals(self, state: State, opened: Iterable[tuple[TopicSpec, int]], height: int) -> list[Effect]:
        """Better workers' inferences that come with this block; each effect holds after those before it."""
        full: list[tuple[TopicSpec, int]] = []
        for topic, nonce in opened:
            names = {fault.name for fault in self.plan.strike((Level.WINDOW,), height)}
            if "passive" in names:
                full.append((topic, nonce))
            if "evicted" in names:
                self._evictions.add((topic.id, nonce))
        for topic_id, nonce in sorted(self._evictions):
            known = state.topic(topic_id)
            if known is not None and height >= known.last_block(nonce):
                self._evictions.discard((topic_id, nonce))
                full.append((known, nonce))
        return [effect for topic, nonce in full for effect in crowd(state, topic, nonce, height)]


def outsider(account: Account, height: int, time: float) -> Effect:
    """One sequence of an account used by a transaction this node does not know the bytes of."""
    name = hashlib.sha256(f"outsider {account.address} {account.sequence} {height}".encode()).hexdigest().upper()
    record = TxRecord(
        tx_hash=name, height=height, time=time, codespace="", code=0, log="", gas_wanted=0, gas_used=0, fee=0,
        sender=account.address, kind="other", topic_id=0, nonce=0, raw=b"",
    )  # fmt: skip
    return Effect(accounts=(replace(account, sequence=account.sequence + 1),), record=record)


def crowd(state: State, topic: TopicSpec, nonce: int, height: int) -> list[Effect]:
    """As many better workers as the active set holds. Applied to `state` as they are made, as each sees those before."""
    best = 1.0 + max((score for (topic_id, _), score in state.scores.items() if topic_id == topic.id), default=0.0)
    effects = []
    for number in range(topic.active_set):
        worker = rival(topic.id, number)
        scored = Effect(scores=((topic.id, worker, best),))
        state.apply(scored)
        effects.append(scored)
        if worker not in state.inferences.get((topic.id, nonce), {}):
            effect = admit(state, topic, Stored(topic.id, nonce, worker, "0.0", height))
            state.apply(effect)
            effects.append(effect)
    return effects


def rival(topic_id: int, number: int) -> str:
    """The address of a made-up worker."""
    import bech32

    digest = hashlib.sha256(f"rival {topic_id} {number}".encode()).digest()[:20]
    return str(bech32.bech32_encode(ADDRESS_PREFIX, bech32.convertbits(digest, 8, 5) or []))
