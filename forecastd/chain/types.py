"""What a node answers, as plain values. Heights are in blocks, fees and balances in uallo, gas in gas units."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    """A topic. The worker nonce H opens at block H, the start of an epoch."""

    id: int
    metadata: str
    epoch_length: int
    worker_submission_window: int
    ground_truth_lag: int
    epoch_last_ended: int

    def last_block(self, nonce: int) -> int:
        """The last block that may include a payload for `nonce`: the window is nonce <= height < nonce + window."""
        return nonce + self.worker_submission_window - 1


@dataclass(frozen=True)
class AccountInfo:
    """The fields of an account that a signature needs. `sequence` is that of the next transaction."""

    number: int
    sequence: int


@dataclass(frozen=True)
class BroadcastResult:
    """A node's answer to a broadcast. It is the result of the node's own check (CheckTx), not of a block."""

    codespace: str
    code: int
    log: str
    tx_hash: str


@dataclass(frozen=True)
class TxResult:
    """The result of a transaction in a block."""

    tx_hash: str
    height: int
    codespace: str
    code: int
    log: str
    gas_used: int


@dataclass(frozen=True)
class SimulationResult:
    """The gas a transaction would use. When the node refused to run it, `gas_used` is None and `log` says why."""

    gas_used: int | None
    log: str


@dataclass(frozen=True)
class Inference:
    """One worker's inference as the chain stores it. `value` is the chain's canonical decimal text."""

    worker: str
    topic_id: int
    nonce: int
    value: str


@dataclass(frozen=True)
class NetworkInferences:
    """The network's inferences for a nonce: the combined value, and the value of each worker."""

    nonce: int
    combined: float | None
    values_by_worker: dict[str, float]


@dataclass(frozen=True)
class ChainParams:
    """Fees that the chain charges in addition to gas, in uallo."""

    registration_fee: int
    data_sending_fee: int
