"""The local chain: mempool, blocks and time. It does no networking; only one thread at a time may use it.

Heights follow the given clock, also for the time in which the chain did not run. `advance` makes blocks on demand. A
block can also be sealed as soon as a transaction arrives, so that a chain with a stopped clock still makes progress.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from forecastd.chain.keys import is_address
from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.types import BroadcastResult
from forecastd.clock import Clock
from forecastd.errors import RetryLater
from forecastd.localnet.active_set import settle_scores
from forecastd.localnet.chain_faults import ChainFaults, foreign_transaction
from forecastd.localnet.faults import NodeFault
from forecastd.localnet.payload import TxRefusal
from forecastd.localnet.rules import Payer, check_ante, deliver, next_gas_price, run_messages, total_gas
from forecastd.localnet.state import ChainState, Effect, Fees, LocalAccount, TxRecord
from forecastd.localnet.store import ChainStore
from forecastd.localnet.topics import DEFAULT_TOPICS, TopicSpec
from forecastd.localnet.transactions import Tx, UnreadableTx, read_tx

FAUCET_UALLO = 10**24  # a million ALLO: enough for years, even at the prices of mainnet
MEMPOOL_SIZE = 5_000  # transactions
MAX_CATCH_UP_BLOCKS = 100  # made one by one after a pause; further missing blocks are skipped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainConfig:
    """The configuration of a local chain.

    `topics`: None keeps the chain's topics. `block_time`: seconds, None for blocks on demand.
    """

    chain_id: str = LOCAL_CHAIN_ID
    version: EmissionsVersion = "v10"
    topics: tuple[TopicSpec, ...] | None = None
    block_time: float | None = 5.0
    faucet: bool = True
    fees: Fees = field(default_factory=Fees)
    mempool_size: int = MEMPOOL_SIZE


@dataclass(frozen=True)
class ChainBlock:
    """A block with the records of its transactions. `opened_windows` and `closed_windows` hold (topic, nonce)."""

    height: int
    time: float
    records: tuple[TxRecord, ...]
    opened_windows: tuple[tuple[TopicSpec, int], ...]
    closed_windows: tuple[tuple[TopicSpec, int], ...]


class LocalChain:
    """One chain. `listeners` are called with every block, except those skipped while the node was down."""

    def __init__(self, config: ChainConfig, store: ChainStore, clock: Clock) -> None:
        self.config = config
        self.listeners: list[Callable[[ChainBlock], None]] = []
        self.faults = ChainFaults()
        self._store = store
        self._clock = clock
        self._mempool: dict[str, Tx] = {}
        self._included_hashes: set[str] = set()  # hashes of successful transactions of this run, like CometBFT's cache
        self.state = store.load() or _new_state(config, clock.now())
        self._configure()
        self.catch_up()

    @property
    def pending_count(self) -> int:
        """Number of transactions in the mempool."""
        return len(self._mempool)

    # Time

    def seconds_to_next_block(self) -> float | None:
        """Seconds until the next block by the clock, or None when blocks are made on demand."""
        if self.config.block_time is None:
            return None
        return max(0.0, self.state.time + self.config.block_time - self._clock.now())

    def tick(self) -> None:
        """Make the blocks that are due by the clock."""
        block_time = self.config.block_time
        if block_time is None:
            return
        behind = self._clock.now() - self.state.time
        if behind < -block_time:  # the clock was set back: continue from its time instead of waiting for it
            self.state.time = self._clock.now()
            return
        for _ in range(min(int(behind / block_time), MAX_CATCH_UP_BLOCKS)):
            self._make_blocks(self.state.time + block_time)
        self.catch_up()

    def catch_up(self) -> None:
        """Skip the empty blocks of a time in which no node ran. Costs the same for a minute and a year."""
        block_time, now = self.config.block_time, self._clock.now()
        if block_time is None:
            return
        blocks = int((now - self.state.time) / block_time)
        if blocks > 0:
            self.state.height += blocks
            self.state.time += blocks * block_time
            self.state.gas_price = self.config.fees.min_gas_price
            self._save()

    def seal(self) -> ChainBlock:
        """Make a block of the pending transactions now."""
        return self._make_blocks(max(self.state.time, self._clock.now()))

    def advance(self, blocks: int) -> None:
        """Make blocks on demand. The first includes the pending transactions. With a block time, time advances too."""
        step = self.config.block_time or 0.0
        for _ in range(blocks):
            self._make_blocks(self.state.time + step)

    def now(self) -> float:
        """The time of the clock, not of the last block."""
        return self._clock.now()

    # Faults

    def inject(self, *faults: NodeFault) -> None:
        """Replace the faults of the chain. Without arguments, the chain has no faults.

        Raises:
            ValueError: one of them is a fault of an endpoint.
        """
        misplaced = [str(fault) for fault in faults if fault.kind.is_endpoint_fault]
        if misplaced:
            raise ValueError(f"faults of an endpoint, not of the chain: {', '.join(misplaced)}")
        self.faults.set_faults(faults)

    def add_foreign_transaction(self, address: str) -> None:
        """Use up a sequence of an account, as another program with the same key does.

        It takes effect in the next block.
        """
        account = self.account(address)
        if account is None:
            raise ValueError(f"{address} is not an account")
        effect = foreign_transaction(account, self.state.height, self.state.time)
        self.state.apply(effect)
        self._save((effect,))

    def set_score(self, topic_id: int, worker: str, score: float) -> None:
        """Set the score of a worker."""
        effect = Effect(scores=((topic_id, worker, score),))
        self.state.apply(effect)
        self._save((effect,))

    def clear_mempool(self) -> None:
        """Drop the mempool and the cache of transaction hashes, as a node that restarts does."""
        self._mempool.clear()
        self._included_hashes.clear()
        self.faults.clear_mempool()

    # Transactions

    def broadcast(self, raw: bytes) -> BroadcastResult:
        """Check a transaction and add it to the mempool, or return the reason for a refusal."""
        try:
            tx = read_tx(raw)
        except UnreadableTx as error:
            return BroadcastResult("sdk", 2, f"{error}: tx parse error", "")
        refusal = self._check_duplicate(tx) or self._check(tx)
        if refusal is not None:
            log.info("refused %s: %s %d %s", tx.hash, refusal.codespace, refusal.code, refusal.log)
            return BroadcastResult(refusal.codespace, refusal.code, refusal.log, tx.hash)
        self._mempool[tx.hash] = tx
        if tx.is_payload:
            self.faults.on_payload_accepted(tx, self.state.topic(tx.messages[0].topic_id), self.state.height + 1)
        return BroadcastResult("", 0, "", tx.hash)

    def simulate(self, raw: bytes, state: ChainState | None = None) -> int | TxRefusal:
        """The gas a transaction would use in the next block, or the reason for a refusal. Signatures are not checked.

        `state`: the chain as an endpoint sees it; None for the current state.
        """
        state = state or self.state
        try:
            tx = read_tx(raw)
        except UnreadableTx as error:
            return TxRefusal("sdk", 2, f"{error}: tx parse error")
        account = state.accounts.get(tx.sender) or self.account(tx.sender)
        if account is None:
            return TxRefusal("sdk", 9, f"account {tx.sender} does not exist: unknown address")
        result = run_messages(state, tx, account, state.height + 1)
        return result if isinstance(result, TxRefusal) else total_gas(tx)

    def account(self, address: str) -> LocalAccount | None:
        """An account. With the faucet, a valid address gets its funds on first use."""
        account = self.state.accounts.get(address)
        if account is None and self.config.faucet and is_address(address):
            self.fund(address, FAUCET_UALLO)
            account = self.state.accounts[address]
        return account

    def fund(self, address: str, uallo: int) -> None:
        """Add newly minted uallo to an account."""
        account = self.state.accounts.get(address)
        if account is None:
            account = LocalAccount(address, number=len(self.state.accounts), sequence=0, balance=0)
        effect = Effect(accounts=(replace(account, balance=account.balance + uallo),), minted=uallo)
        self.state.apply(effect)
        self._save((effect,))

    def configure(self, config: ChainConfig) -> None:
        """Change the configuration from the next block on: emissions version, fees or topics."""
        self.config = config
        self._configure()

    def _configure(self) -> None:
        state, config = self.state, self.config
        state.version, state.fees = config.version, config.fees
        state.gas_price = max(state.gas_price, config.fees.min_gas_price)
        if config.topics is not None:
            existing = {topic.id: topic for topic in state.topics}
            state.topics = tuple(self._with_epochs(topic, existing.get(topic.id)) for topic in config.topics)
        self._save()

    def _with_epochs(self, topic: TopicSpec, existing: TopicSpec | None) -> TopicSpec:
        """The topic with the epochs it already has on this chain, or with new ones."""
        if existing is not None and existing.epoch_length == topic.epoch_length:
            return replace(topic, first_nonce=existing.first_nonce)
        return topic.starting_at(self.state.height)

    def _check_duplicate(self, tx: Tx) -> TxRefusal | None:
        if tx.hash in self._mempool:
            return TxRefusal("sdk", 19, "tx already in mempool")
        if tx.hash in self._included_hashes:
            return TxRefusal("sdk", 19, "tx already exists in cache: tx already in mempool")
        return None

    def _check(self, tx: Tx) -> TxRefusal | None:
        if len(self._mempool) >= self.config.mempool_size:
            return TxRefusal(
                "sdk", 20, f"number of txs {len(self._mempool)} (max: {self.config.mempool_size}): mempool is full"
            )
        account = self.account(tx.sender)
        payer = self._mempool_payer(account) if account is not None else None
        if tx.is_payload:
            self.state.gas_price = self.faults.arrival_gas_price(self.state, self.state.height + 1)
        return check_ante(self.state, tx, self.state.height + 1, payer)

    def _mempool_payer(self, account: LocalAccount) -> Payer:
        """The account as the mempool sees it: pending transactions have used up sequences and fees."""
        pending = [tx for tx in self._mempool.values() if tx.sender == account.address]
        reserved = sum(tx.fee or 0 for tx in pending)
        return Payer(replace(account, balance=account.balance - reserved), len(pending))

    def _make_blocks(self, time: float) -> ChainBlock:
        jump = self.faults.take_jump()
        while self.state.height + 1 < jump:
            self._next_block(time)
        return self._next_block(time)

    def _next_block(self, time: float) -> ChainBlock:
        state = self.state
        height = state.height + 1
        effects = self._execute(height, time)
        records = tuple(effect.record for effect in effects if effect.record is not None)
        state.height, state.time = height, time
        used = sum(record.gas_used for record in records)
        state.gas_price = next_gas_price(state.gas_price, used, state.fees.min_gas_price)
        block = ChainBlock(height, time, records, self._nonces_of_age(height, 0), self._nonces_of_age(height, 1))
        for topic, nonce in block.closed_windows:
            effects.append(settle_scores(state, topic, nonce))
            state.apply(effects[-1])
        effects += self.faults.competing_inferences(state, block.opened_windows, height)
        self._save(effects)
        self._included_hashes.update(record.tx_hash for record in records if record.code == 0)
        for listener in self.listeners:
            listener(block)
        return block

    def _execute(self, height: int, time: float) -> list[Effect]:
        """The effects of the transactions of the next block. They are applied, but not on disk yet."""
        state, effects = self.state, list[Effect]()
        version = self.faults.version_at(height)
        if version is not None and version != state.version:
            self.config = replace(self.config, version=version)
            state.version = version
        ready, dropped = self.faults.select_transactions(list(self._mempool.values()), height)
        for tx in (*dropped, *ready):
            del self._mempool[tx.hash]
        for tx in ready:
            foreign = self.faults.overtaking_transaction(tx, state.accounts.get(tx.sender), height, time)
            if foreign is not None:
                state.apply(foreign)
                effects.append(foreign)
            account = state.accounts.get(tx.sender)
            refusal = check_ante(state, tx, height, Payer(account) if account else None)
            if refusal is not None:  # valid on arrival but no longer: dropped, as a recheck does
                log.info("dropped %s: %s %d %s", tx.hash, refusal.codespace, refusal.code, refusal.log)
                continue
            factor = self.faults.gas_factor(height) if tx.is_payload else 1.0
            effects.append(deliver(state, tx, height, time, gas_factor=factor))
            state.apply(effects[-1])
        return effects

    def _nonces_of_age(self, height: int, window_count: int) -> tuple[tuple[TopicSpec, int], ...]:
        """The nonces that are `window_count` submission windows old at this height."""
        starts = ((topic, height - window_count * topic.worker_submission_window) for topic in self.state.topics)
        return tuple((topic, nonce) for topic, nonce in starts if topic.is_nonce(nonce))

    def _save(self, effects: Sequence[Effect] = ()) -> None:
        """Write the changes to disk.

        On failure the state in memory is loaded from disk again, as if the changes never happened.
        """
        try:
            self._store.save(self.state, effects)
        except RetryLater:
            self.state = self._store.load() or self.state
            raise


def _new_state(config: ChainConfig, now: float) -> ChainState:
    """A new chain.

    It starts at the height it would have if it had always run. So the nonces of a deleted chain never return, and
    epochs of an hour start on the hour.
    """
    height = max(1, int(now / config.block_time)) if config.block_time is not None else 1
    topics = tuple(topic.starting_at(height) for topic in config.topics or DEFAULT_TOPICS)
    return ChainState(config.chain_id, height=height, time=now, topics=topics)
