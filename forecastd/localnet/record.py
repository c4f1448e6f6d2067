"""The node's own record of what happened, to compare with a worker's ledger. Plain data of one height."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from forecastd.localnet.state import ChainState, LocalAccount, TxRecord


class InferenceStatus(StrEnum):
    """The result of a worker's forecast for a nonce, by the chain."""

    ADMITTED = "admitted"  # in the active set
    EVICTED = "evicted"  # removed from the active set by a better worker
    PASSIVE = "passive"  # the transaction succeeded, but nothing was stored
    NONE = "none"  # no transaction of this worker succeeded


@dataclass(frozen=True)
class WindowRecord:
    """A submission window. Blocks with `nonce` < height <= `last_block` accept payloads."""

    topic_id: int
    nonce: int
    last_block: int
    is_closed: bool


@dataclass(frozen=True)
class ChainRecord:
    """The record of a chain at `height`, from `EmbeddedNode.record()`."""

    chain_id: str
    version: str
    height: int
    transactions: tuple[TxRecord, ...]  # all included transactions in order, failed ones too
    active: dict[tuple[int, int], dict[str, str]]  # by (topic, nonce): worker -> value
    evicted: dict[tuple[int, int], dict[str, str]]
    scores: dict[tuple[int, str], float]
    accounts: dict[str, LocalAccount]
    windows_by_topic: dict[int, tuple[WindowRecord, ...]]  # by topic, oldest first

    def inclusions(self, topic_id: int, nonce: int, wallet: str) -> tuple[TxRecord, ...]:
        """Every included payload of a wallet for a nonce, failed ones too."""
        return tuple(
            record
            for record in self.transactions
            if (record.kind, record.topic_id, record.nonce, record.sender) == ("payload", topic_id, nonce, wallet)
        )

    def inference_status(self, topic_id: int, nonce: int, wallet: str) -> InferenceStatus:
        """The result of the wallet's forecast for a nonce."""
        if wallet in self.active.get((topic_id, nonce), {}):
            return InferenceStatus.ADMITTED
        if wallet in self.evicted.get((topic_id, nonce), {}):
            return InferenceStatus.EVICTED
        good = any(record.code == 0 for record in self.inclusions(topic_id, nonce, wallet))
        return InferenceStatus.PASSIVE if good else InferenceStatus.NONE

    def windows(self, topic_id: int, since: int = 0) -> tuple[WindowRecord, ...]:
        """The windows of a topic that opened at height `since` or later, oldest first."""
        return tuple(window for window in self.windows_by_topic.get(topic_id, ()) if window.nonce >= since)

    def fees_paid(self, wallet: str) -> int:
        """The fees that a wallet's transactions cost, in uallo."""
        return sum(record.fee for record in self.transactions if record.sender == wallet)


MAX_WINDOWS = 10_000  # of a topic: months on a chain that caught up


def take_record(state: ChainState) -> ChainRecord:
    """The record of a chain at its current height."""
    return ChainRecord(
        chain_id=state.chain_id,
        version=state.version,
        height=state.height,
        transactions=tuple(state.txs.values()),
        active={
            key: {inference.worker: inference.value for inference in by_worker.values()}
            for key, by_worker in state.inferences.items()
        },
        evicted={
            key: {inference.worker: inference.value for inference in by_worker.values()}
            for key, by_worker in state.evicted_inferences.items()
        },
        scores=dict(state.scores),
        accounts=dict(state.accounts),
        windows_by_topic={topic.id: _windows(state, topic.id) for topic in state.topics},
    )


def _windows(state: ChainState, topic_id: int) -> tuple[WindowRecord, ...]:
    topic = state.topic(topic_id)
    newest = topic.newest_nonce(state.height) if topic is not None else None
    if topic is None or newest is None:
        return ()
    oldest = max(topic.first_nonce, newest - (MAX_WINDOWS - 1) * topic.epoch_length)
    return tuple(
        WindowRecord(topic_id, nonce, topic.last_block(nonce), nonce + topic.worker_submission_window <= state.height)
        for nonce in range(oldest, newest + 1, topic.epoch_length)
    )
