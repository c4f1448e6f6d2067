"""The node's own record of what happened, for whoever compares a worker's ledger with it. Plain data, taken at one height."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from forecastd.localnet.state import Account, State, TxRecord


class Standing(StrEnum):
    """What a worker's forecast came to for a nonce, by the chain."""

    ADMITTED = "admitted"  # in the active set
    EVICTED = "evicted"  # it was, until a better worker came
    PASSIVE = "passive"  # the transaction succeeded, and nothing was stored
    NONE = "none"  # no transaction of this worker succeeded


@dataclass(frozen=True)
class Window:
    """A submission window. A payload is taken in blocks `nonce` < height <= `last`; `closed` by now."""

    topic_id: int
    nonce: int
    last: int
    closed: bool


@dataclass(frozen=True)
class Record:
    """A chain as it is at `height`. Take it with `Embedded.record()`."""

    chain_id: str
    version: str
    height: int
    transactions: tuple[TxRecord, ...]  # every one in a block, in order, failed ones too
    active: dict[tuple[int, int], dict[str, str]]  # by (topic, nonce): worker -> value
    evicted: dict[tuple[int, int], dict[str, str]]
    scores: dict[tuple[int, str], float]
    accounts: dict[str, Account]
    topics: dict[int, tuple[Window, ...]]  # by topic, oldest first

    def inclusions(self, topic_id: int, nonce: int, wallet: str) -> tuple[TxRecord, ...]:
        """Every payload of a wallet for a nonce that a block included, failed ones too."""
        return tuple(
            one
            for one in self.transactions
            if (one.kind, one.topic_id, one.nonce, one.sender) == ("payload", topic_id, nonce, wallet)
        )

    def standing(self, topic_id: int, nonce: int, wallet: str) -> Standing:
        """What the wallet's forecast for a nonce came to."""
        if wallet in self.active.get((topic_id, nonce), {}):
            return Standing.ADMITTED
        if wallet in self.evicted.get((topic_id, nonce), {}):
            return Standing.EVICTED
        good = any(one.code == 0 for one in self.inclusions(topic_id, nonce, wallet))
        return Standing.PASSIVE if good else Standing.NONE

    def windows(self, topic_id: int, since: int = 0) -> tuple[Window, ...]:
        """The windows of a topic that opened at or after height `since`, oldest first."""
        return tuple(window for window in self.topics.get(topic_id, ()) if window.nonce >= since)

    def paid(self, wallet: str) -> int:
        """The uallo of fees a wallet's transactions cost."""
        return sum(one.fee for one in self.transactions if one.sender == wallet)


MOST_WINDOWS = 10_000  # of a topic: months on a chain that caught up


def take(state: State) -> Record:
    """The record of a chain now."""
    return Record(
        chain_id=state.chain_id,
        version=state.version,
        height=state.height,
        transactions=tuple(state.txs.values()),
        active={key: {one.worker: one.value for one in found.values()} for key, found in state.inferences.items()},
        evicted={key: {one.worker: one.value for one in found.values()} for key, found in state.evicted.items()},
        scores=dict(state.scores),
        accounts=dict(state.accounts),
        topics={topic.id: _windows(state, topic.id) for topic in state.topics},
    )


def _windows(state: State, topic_id: int) -> tuple[Window, ...]:
    topic = state.topic(topic_id)
    newest = topic.newest_nonce(state.height) if topic is not None else None
    if topic is None or newest is None:
        return ()
    oldest = max(topic.first_nonce, newest - (MOST_WINDOWS - 1) * topic.epoch_length)
    return tuple(
        Window(topic_id, nonce, topic.last_block(nonce), nonce + topic.worker_submission_window <= state.height)
        for nonce in range(oldest, newest + 1, topic.epoch_length)
    )
