"""The state of the local chain as plain data, and the effects that change it.

Every change is an `Effect`: a pure function in `rules` decides it, this module applies it to memory, `store` writes it
to disk. Amounts are in uallo. Invariant: the balances of all accounts plus `burnt` equal what the faucet has `minted`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from forecastd.chain.methods import EmissionsVersion
from forecastd.localnet.topics import DEFAULT_TOPICS, TopicSpec

INITIAL_SCORE = 0.0  # of a worker without a score
PRICE_UNIT = 10**18  # a gas price is an integer with 18 decimals, like the chain's own decimals


@dataclass(frozen=True)
class LocalAccount:
    """An account. `public_key` is empty until its first transaction."""

    address: str
    number: int
    sequence: int
    balance: int
    public_key: bytes = b""


@dataclass(frozen=True)
class StoredInference:
    """An inference that the chain stored. An evicted one no longer counts."""

    topic_id: int
    nonce: int
    worker: str
    value: str
    height: int
    extra_data: bytes = b""
    proof: str = ""
    evicted: bool = False


@dataclass(frozen=True)
class TxRecord:
    """A transaction in a block, successful or not. `kind` is payload, register or other."""

    tx_hash: str
    height: int
    time: float
    codespace: str
    code: int
    log: str
    gas_wanted: int
    gas_used: int
    fee: int
    sender: str
    kind: str
    topic_id: int
    nonce: int
    raw: bytes


@dataclass(frozen=True)
class Effect:
    """The changes by one transaction, one payment of the faucet or one closed window.

    A score is (topic, worker, score).
    """

    accounts: tuple[LocalAccount, ...] = ()
    record: TxRecord | None = None
    worker: tuple[int, str] | None = None
    inference: StoredInference | None = None
    evicted: StoredInference | None = None
    scores: tuple[tuple[int, str, float], ...] = ()
    burnt: int = 0
    minted: int = 0


@dataclass(frozen=True)
class Fees:
    """The chain's fees in uallo. `min_gas_price` is per gas, with 18 decimals."""

    min_gas_price: int = PRICE_UNIT
    registration: int = 100_000
    data_sending: int = 10


@dataclass
class ChainState:
    """The chain after its latest block. `inferences` holds the active sets by (topic, nonce)."""

    chain_id: str
    version: EmissionsVersion = "v10"
    height: int = 1
    time: float = 0.0
    gas_price: int = PRICE_UNIT
    fees: Fees = field(default_factory=Fees)
    topics: tuple[TopicSpec, ...] = DEFAULT_TOPICS
    accounts: dict[str, LocalAccount] = field(default_factory=dict)
    workers: set[tuple[int, str]] = field(default_factory=set)
    inferences: dict[tuple[int, int], dict[str, StoredInference]] = field(default_factory=dict)
    latest_inferences: dict[tuple[int, str], StoredInference] = field(default_factory=dict)
    evicted_inferences: dict[tuple[int, int], dict[str, StoredInference]] = field(default_factory=dict)
    scores: dict[tuple[int, str], float] = field(default_factory=dict)
    txs: dict[str, TxRecord] = field(default_factory=dict)
    payloads: dict[tuple[int, int], list[TxRecord]] = field(default_factory=dict)
    burnt: int = 0
    minted: int = 0

    def topic(self, topic_id: int) -> TopicSpec | None:
        return next((topic for topic in self.topics if topic.id == topic_id), None)

    def score(self, topic_id: int, worker: str) -> float:
        """A worker's score, a moving average."""
        return self.scores.get((topic_id, worker), INITIAL_SCORE)

    def apply(self, effect: Effect) -> None:
        """Apply an effect."""
        for account in effect.accounts:
            self.accounts[account.address] = account
        if effect.record is not None:
            self.add_transaction(effect.record)
        if effect.worker is not None:
            self.workers.add(effect.worker)
        if effect.evicted is not None:
            self.put_inference(replace(effect.evicted, evicted=True))
        if effect.inference is not None:
            self.put_inference(effect.inference)
        for topic_id, worker, score in effect.scores:
            self.scores[topic_id, worker] = score
        self.burnt += effect.burnt
        self.minted += effect.minted

    def add_transaction(self, record: TxRecord) -> None:
        """Add a transaction. Call it in the order of the chain."""
        self.txs[record.tx_hash] = record
        if record.kind == "payload":
            self.payloads.setdefault((record.topic_id, record.nonce), []).append(record)

    def put_inference(self, inference: StoredInference) -> None:
        """Store an inference, or move it out of the active set when it is evicted."""
        if inference.evicted:
            self.inferences.get((inference.topic_id, inference.nonce), {}).pop(inference.worker, None)
        (self.evicted_inferences if inference.evicted else self.inferences).setdefault(
            (inference.topic_id, inference.nonce), {}
        )[inference.worker] = inference
        latest = self.latest_inferences.get((inference.topic_id, inference.worker))
        if latest is None or latest.nonce <= inference.nonce:
            self.latest_inferences[inference.topic_id, inference.worker] = inference

    def inclusions(self, topic_id: int, nonce: int, sender: str | None = None) -> list[TxRecord]:
        """Every included payload transaction for a nonce, failed ones too, in the order of the chain."""
        records = self.payloads.get((topic_id, nonce), [])
        return [record for record in records if sender is None or record.sender == sender]
