"""The local chain at work: mempool, blocks, time. Knows nothing of sockets; used from one thread at a time.

Heights follow the clock it is given, also over the time it was not running. `advance` makes blocks by hand, and a block
can be sealed as soon as a transaction arrives, which is what lets a chain whose clock stands still go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from forecastd.chain.keys import is_address
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.chain.sdk import EmissionsVersion
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

FAUCET_UALLO = 10**24  # a million ALLO: enough for years, even at mainnet's prices
MEMPOOL_SIZE = 5_000  # transactions
MAX_CATCH_UP_BLOCKS = 100  # made one by one after a pause; what is missing beyond them is skipped over

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChainConfig:
    """How a local chain is run. `topics` of None keeps those it has; `block_time` in seconds, None makes blocks by hand."""

    chain_id: str = LOCAL_CHAIN_ID
    version: EmissionsVersion = "v10"
    topics: tuple[TopicSpec, ...] | None = None
    block_time: float | None = 5.0
    faucet: bool = True
    fees: Fees = field(default_factory=Fees)
    mempool_size: int = MEMPOOL_SIZE


@dataclass(frozen=True)
class ChainBlock:
    """A block with the records of what it included; `opened` and `closed` are (topic, nonce)."""

    height: int
    time: float
    records: tuple[TxRecord, ...]
    opened_windows: tuple[tuple[TopicSpec, int], ...]
    closed_windows: tuple[tuple[TopicSpec, int], ...]


class LocalChain:
    """One chain. `listeners` are called with every block that was not skipped over while the node was down."""

    def __init__(self, config: ChainConfig, store: ChainStore, clock: Clock) -> None:
        self.config = config
        self.listeners: list[Callable[[ChainBlock], None]] = []
        self.faults = ChainFaults()
        self._store = store
        self._clock = clock
        self._mempool: dict[str, Tx] = {}
        self._included_hashes: set[str] = (
            set()
        )  # hashes of good transactions of this run, as CometBFT's cache keeps them
        self.state = store.load() or _new_state(config, clock.now())
        self._configure()
        self.catch_up()

    @property
    def pending_count(self) -> int:
        """Transactions in the mempool."""
        return len(self._mempool)

    # Time

    def seconds_to_next_block(self) -> float | None:
        """Seconds until the next block by the clock; None when blocks are made by hand."""
        if self.config.block_time is None:
            return None
        return max(0.0, self.state.time + self.config.block_time - self._clock.now())

    def tick(self) -> None:
        """Make the blocks that are due by the clock."""
        block_time = self.config.block_time
        if block_time is None:
            return
        behind = self._clock.now() - self.state.time
        if behind < -block_time:  # the clock was set back: go on from here instead of waiting for it
            self.state.time = self._clock.now()
            return
        for _ in range(min(int(behind / block_time), MAX_CATCH_UP_BLOCKS)):
            self._make_blocks(self.state.time + block_time)
        self.catch_up()

    def catch_up(self) -> None:
        """Skip over the empty blocks of a time without a node. Costs the same for a minute and a year."""
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
        """Make a block now of what waits."""
        return self._make_blocks(max(self.state.time, self._clock.now()))

    def advance(self, blocks: int) -> None:
        """Make blocks by hand; the first takes what waits. Time moves with them where the chain has a block time."""
        step = self.config.block_time or 0.0
        for _ in range(blocks):
            self._make_blocks(self.state.time + step)

    def now(self) -> float:
        """The time by the clock, not by the last block."""
        return self._clock.now()

    # Faults

    def inject(self, *faults: NodeFault) -> None:
        """Have these faults of the chain from now on, in place of those before; none ends them.

        Raises:
            ValueError: one of them is an endpoint's.
        """
        misplaced = [str(fault) for fault in faults if fault.kind.is_endpoint_fault]
        if misplaced:
            raise ValueError(f"faults of an endpoint, not of the chain: {', '.join(misplaced)}")
        self.faults.set_faults(faults)

    def add_foreign_transaction(self, address: str) -> None:
        """Use a sequence of an account, as somebody else with the same key does. It shows in the next block."""
        account = self.account(address)
        if account is None:
            raise ValueError(f"{address} is no account")
        effect = foreign_transaction(account, self.state.height, self.state.time)
        self.state.apply(effect)
        self._save((effect,))

    def set_score(self, topic_id: int, worker: str, score: float) -> None:
        """Give a worker a score."""
        effect = Effect(scores=((topic_id, worker, score),))
        self.state.apply(effect)
        self._save((effect,))

    def clear_mempool(self) -> None:
        """Lose what waits and what the cache knows, as a node that restarts does."""
        self._mempool.clear()
        self._included_hashes.clear()
        self.faults.clear_mempool()

    # Transactions

    def broadcast(self, raw: bytes) -> BroadcastResult:
        """Check a transaction and put it into the mempool, or say why not."""
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
        """The gas a transaction would use in the next block, or why it would be refused. Signatures do not count.

        `state`: the chain as an endpoint knows it, None as it is.
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
        """An account. With the faucet on, a well-formed address is given its funds when it is first seen."""
        account = self.state.accounts.get(address)
        if account is None and self.config.faucet and is_address(address):
            self.fund(address, FAUCET_UALLO)
            account = self.state.accounts[address]
        return account

    def fund(self, address: str, uallo: int) -> None:
        """Give an account some uallo, made for it."""
        account = self.state.accounts.get(address)
        if account is None:
            account = LocalAccount(address, number=len(self.state.accounts), sequence=0, balance=0)
        effect = Effect(accounts=(replace(account, balance=account.balance + uallo),), minted=uallo)
        self.state.apply(effect)
        self._save((effect,))

    def configure(self, config: ChainConfig) -> None:
        """Run the chain by other rules from the next block on: another emissions version, other fees or topics."""
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
        """A topic as given, with the epochs it has on this chain already, or new ones."""
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
        """The account as the mempool sees it: what waits has used up sequences and fees."""
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
        """What the transactions of the next block change; it is applied, and not yet on disk."""
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
            if refusal is not None:  # it was good when it came, and is not any more: dropped, as a recheck does
                log.info("dropped %s: %s %d %s", tx.hash, refusal.codespace, refusal.code, refusal.log)
                continue
            factor = self.faults.gas_factor(height) if tx.is_payload else 1.0
            effects.append(deliver(state, tx, height, time, gas_factor=factor))
            state.apply(effects[-1])
        return effects

    def _nonces_of_age(self, height: int, window_count: int) -> tuple[tuple[TopicSpec, int], ...]:
        """The nonces that are so many submission windows old at this height."""
        starts = ((topic, height - window_count * topic.worker_submission_window) for topic in self.state.topics)
        return tuple((topic, nonce) for topic, nonce in starts if topic.is_nonce(nonce))

    def _save(self, effects: Sequence[Effect] = ()) -> None:
        """Put what changed on disk. When that fails it has not happened: memory goes back to what the disk has."""
        try:
            self._store.save(self.state, effects)
        except RetryLater:
            self.state = self._store.load() or self.state
            raise


def _new_state(config: ChainConfig, now: float) -> ChainState:
    """A new chain. It begins at the height it would have had it always run, so no nonce of a chain that was deleted comes
    again, and epochs of an hour begin on the hour."""
    height = max(1, int(now / config.block_time)) if config.block_time is not None else 1
    topics = tuple(topic.starting_at(height) for topic in config.topics or DEFAULT_TOPICS)
    return ChainState(config.chain_id, height=height, time=now, topics=topics)
