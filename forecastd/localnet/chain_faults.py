"""Applies the faults of the chain to payloads that arrive, wait in the mempool, or are in a block.

Separate from the chain, so that the rules stay those of a chain without faults. Faults are not stored: they end with
the node's process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

import bech32

from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.networks import ADDRESS_PREFIX
from forecastd.localnet.active_set import admit
from forecastd.localnet.faults import FaultLevel, FaultPlan, NodeFault
from forecastd.localnet.state import ChainState, Effect, LocalAccount, StoredInference, TxRecord
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.transactions import Tx


class ChainFaults:
    """The faults of one chain and their state."""

    def __init__(self) -> None:
        self.set_faults(())

    def set_faults(self, faults: Iterable[NodeFault]) -> None:
        """Replace the faults. Counters start again, and effects in progress are dropped."""
        self.plan = FaultPlan(faults)
        self._restart_seconds: float | None = None
        self._earliest_height: dict[str, int] = {}  # by hash: the first block that may include it
        self._to_drop: set[str] = set()
        self._to_overtake: set[str] = set()
        self._reverse = False
        self._jump_height = 0
        self._pending_evictions: set[tuple[int, int]] = set()

    def clear_mempool(self) -> None:
        """Forget the transactions that were pending."""
        self._earliest_height.clear()
        self._to_drop.clear()
        self._to_overtake.clear()
        self._reverse = False

    # Arrival of a payload

    def arrival_gas_price(self, state: ChainState, height: int) -> int:
        """The gas price that a payload must pay when it arrives now."""
        faults = self.plan.select((FaultLevel.ARRIVAL,), height)
        floor = state.fees.min_gas_price
        return max([state.gas_price, *(int(floor * fault.number) for fault in faults)])

    def on_payload_accepted(self, tx: Tx, topic: TopicSpec | None, height: int) -> None:
        """Apply the faults to a payload that was added to the mempool. `height` is that of the next block."""
        for fault in self.plan.select((FaultLevel.MEMPOOL,), height):
            if fault.name == "sequence":
                self._to_overtake.add(tx.hash)
            elif fault.name == "drop-from-mempool":
                self._to_drop.add(tx.hash)
            elif fault.name == "late":
                self._earliest_height[tx.hash] = height + int(fault.number)
            elif fault.name == "reorder":
                self._reverse = True
            elif fault.name == "restart":
                self._restart_seconds = fault.number
            elif fault.name == "window-closing" and topic is not None:
                nonce = tx.messages[0].nonce
                self._jump_height = self._earliest_height[tx.hash] = nonce + topic.worker_submission_window

    def take_restart(self) -> float | None:
        """Seconds for which the node must go down now, or None. Returned once."""
        seconds, self._restart_seconds = self._restart_seconds, None
        return seconds

    # Making a block

    def take_jump(self) -> int:
        """The height up to which blocks must follow at once, or 0. Returned once."""
        jump, self._jump_height = self._jump_height, 0
        return jump

    def version_at(self, height: int) -> EmissionsVersion | None:
        """The emissions version that the chain changes to with this block, if any."""
        faults = self.plan.select((FaultLevel.BLOCK,), height)
        return ("v9" if faults[0].value == "v9" else "v10") if faults else None

    def select_transactions(self, pending: list[Tx], height: int) -> tuple[list[Tx], list[Tx]]:
        """The transactions of the mempool that this block includes, in order, and those that are dropped."""
        dropped = [tx for tx in pending if tx.hash in self._to_drop]
        ready = [
            tx for tx in pending if tx.hash not in self._to_drop and self._earliest_height.get(tx.hash, 0) <= height
        ]
        if self._reverse:
            ready.reverse()
            self._reverse = False
        for tx in (*dropped, *ready):
            self._earliest_height.pop(tx.hash, None)
        self._to_drop.clear()
        return ready, dropped

    def overtaking_transaction(self, tx: Tx, account: LocalAccount | None, height: int, time: float) -> Effect | None:
        """A transaction by another program with the same key, included just before this one."""
        if tx.hash not in self._to_overtake or account is None:
            return None
        self._to_overtake.discard(tx.hash)
        return foreign_transaction(account, height, time)

    def gas_factor(self, height: int) -> float:
        """The factor for the gas of a payload in this block."""
        return max([1.0, *(fault.number for fault in self.plan.select((FaultLevel.EXECUTION,), height))])

    def competing_inferences(
        self, state: ChainState, opened_windows: Iterable[tuple[TopicSpec, int]], height: int
    ) -> list[Effect]:
        """Inferences of better workers that come with this block. Each effect assumes those before it."""
        windows_to_fill: list[tuple[TopicSpec, int]] = []
        for topic, nonce in opened_windows:
            names = {fault.name for fault in self.plan.select((FaultLevel.WINDOW,), height)}
            if "passive" in names:
                windows_to_fill.append((topic, nonce))
            if "evicted" in names:
                self._pending_evictions.add((topic.id, nonce))
        for topic_id, nonce in sorted(self._pending_evictions):
            topic_spec = state.topic(topic_id)
            if topic_spec is not None and height >= topic_spec.last_block(nonce):
                self._pending_evictions.discard((topic_id, nonce))
                windows_to_fill.append((topic_spec, nonce))
        return [effect for topic, nonce in windows_to_fill for effect in fill_active_set(state, topic, nonce, height)]


def foreign_transaction(account: LocalAccount, height: int, time: float) -> Effect:
    """The effect of a transaction that uses one sequence of an account and whose bytes this node does not know."""
    tx_hash = hashlib.sha256(f"outsider {account.address} {account.sequence} {height}".encode()).hexdigest().upper()
    record = TxRecord(
        tx_hash=tx_hash, height=height, time=time, codespace="", code=0, log="", gas_wanted=0, gas_used=0, fee=0,
        sender=account.address, kind="other", topic_id=0, nonce=0, raw=b"",
    )  # fmt: skip
    return Effect(accounts=(replace(account, sequence=account.sequence + 1),), record=record)


def fill_active_set(state: ChainState, topic: TopicSpec, nonce: int, height: int) -> list[Effect]:
    """Fill the active set with better workers.

    Each effect is applied to `state` at once, because the next one depends on it.
    """
    top_score = 1.0 + max((score for (topic_id, _), score in state.scores.items() if topic_id == topic.id), default=0.0)
    effects = []
    for number in range(topic.active_set):
        worker = competitor_address(topic.id, number)
        score_effect = Effect(scores=((topic.id, worker, top_score),))
        state.apply(score_effect)
        effects.append(score_effect)
        if worker not in state.inferences.get((topic.id, nonce), {}):
            effect = admit(state, topic, StoredInference(topic.id, nonce, worker, "0.0", height))
            state.apply(effect)
            effects.append(effect)
    return effects


def competitor_address(topic_id: int, number: int) -> str:
    """The address of a made-up worker."""
    digest = hashlib.sha256(f"rival {topic_id} {number}".encode()).digest()[:20]
    return str(bech32.bech32_encode(ADDRESS_PREFIX, bech32.convertbits(digest, 8, 5) or []))
