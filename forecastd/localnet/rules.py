"""The chain's rules as pure functions of its state: why a transaction is refused, what it changes, what it costs.

Order and codes are those of the Cosmos SDK's ante handlers, then those of allora-chain's message server. A transaction
that fails an ante check changes nothing; one that fails later pays its fee and uses up its sequence.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from forecastd.chain.keys import address_from_public_key, is_address, verify_signature
from forecastd.chain.proto.cosmos_pb2 import SignDoc
from forecastd.localnet.active_set import admit
from forecastd.localnet.payload import INVALID_TOPIC, TxRefusal, check_bundle, payload_value
from forecastd.localnet.state import PRICE_UNIT, ChainState, Effect, LocalAccount, StoredInference, TxRecord
from forecastd.localnet.topics import TopicSpec
from forecastd.localnet.transactions import Tx, TxMessage

MAX_MEMO_LENGTH = 256
_BASE_GAS, _GAS_PER_BYTE, _SIGNATURE_GAS = 20_000, 10, 1_000  # gas
_MESSAGE_GAS = {"payload": 60_000, "register": 45_000, "other": 0}
BLOCK_GAS_TARGET = 2_000_000  # gas in a block above which the price rises


def ante_gas(tx: Tx) -> int:
    """Gas that a transaction uses before its messages run."""
    return _BASE_GAS + _GAS_PER_BYTE * len(tx.raw) + _SIGNATURE_GAS


def total_gas(tx: Tx) -> int:
    """Gas that a transaction uses in total when it succeeds."""
    return ante_gas(tx) + sum(_MESSAGE_GAS[message.kind] for message in tx.messages)


def min_fee(gas: int, gas_price: int) -> int:
    """The minimum fee in uallo for a gas limit, rounded up. `gas_price` has 18 decimals."""
    return -(-gas * gas_price // PRICE_UNIT)


def next_gas_price(gas_price: int, gas_used: int, floor: int) -> int:
    """The fee market: up by an eighth after a block above target, otherwise down by an eighth, never below the floor."""
    step = gas_price // 8
    return gas_price + step if gas_used > BLOCK_GAS_TARGET else max(floor, gas_price - step)


@dataclass(frozen=True)
class Payer:
    """The signing account, and the number of its transactions in the mempool before this one."""

    account: LocalAccount
    pending_count: int = 0


def check_ante(state: ChainState, tx: Tx, height: int, payer: Payer | None) -> TxRefusal | None:
    """The first reason why a block of `height` would not include the transaction at all, or None."""
    return (
        _check_form(state, tx)
        or _check_limits(state, tx, height)
        or _check_payer(tx, payer)
        or _check_signature(state, tx, payer)
    )


def _check_form(state: ChainState, tx: Tx) -> TxRefusal | None:
    if not tx.messages:
        return TxRefusal("sdk", 18, "must contain at least one message: invalid request")
    for message in tx.messages:
        if message.kind == "other" or message.version != state.version:
            return TxRefusal("sdk", 2, f"unable to resolve type URL {message.type_url}: tx parse error")
        if message.sender != tx.sender:
            return TxRefusal(
                "sdk", 14, "this node accepts transactions of one signer: maximum number of signatures exceeded"
            )
    if tx.signature_count == 0:
        return TxRefusal("sdk", 15, "no signatures supplied")
    if not is_address(tx.sender):
        return TxRefusal("sdk", 7, "invalid sender: invalid address")
    return None


def _check_limits(state: ChainState, tx: Tx, height: int) -> TxRefusal | None:
    if tx.timeout_height and height > tx.timeout_height:
        return TxRefusal("sdk", 30, f"block height: {height}, timeout height: {tx.timeout_height}: tx timeout height")
    if len(tx.memo) > MAX_MEMO_LENGTH:
        return TxRefusal(
            "sdk", 12, f"maximum number of characters is {MAX_MEMO_LENGTH} but received {len(tx.memo)}: memo too large"
        )
    if tx.gas < ante_gas(tx):
        return TxRefusal("sdk", 11, _out_of_gas("txSize", tx.gas, ante_gas(tx)))
    if tx.fee is None:
        return TxRefusal("sdk", 10, "fees must be in uallo: invalid coins")
    required = min_fee(tx.gas, state.gas_price)
    if tx.fee < required:
        return TxRefusal(
            "sdk", 13, f"insufficient fees; got: {tx.fee}uallo required: {required}uallo: insufficient fee"
        )
    return None


def _check_payer(tx: Tx, payer: Payer | None) -> TxRefusal | None:
    if payer is None:
        return TxRefusal("sdk", 9, f"fee payer address: {tx.sender} does not exist: unknown address")
    if tx.fee is not None and payer.account.balance < tx.fee:
        return TxRefusal(
            "sdk",
            5,
            f"spendable balance {payer.account.balance}uallo is smaller than {tx.fee}uallo: insufficient funds",
        )
    return None


def _check_signature(state: ChainState, tx: Tx, payer: Payer | None) -> TxRefusal | None:
    if payer is None or address_from_public_key(tx.public_key) != payer.account.address:
        return TxRefusal("sdk", 8, "pubKey does not match signer address: invalid pubkey")
    expected = payer.account.sequence + payer.pending_count
    if tx.sequence != expected:
        return TxRefusal(
            "sdk", 32, f"account sequence mismatch, expected {expected}, got {tx.sequence}: incorrect account sequence"
        )
    document = SignDoc(
        body_bytes=tx.body_bytes,
        auth_info_bytes=tx.auth_bytes,
        chain_id=state.chain_id,
        account_number=payer.account.number,
    )
    if not verify_signature(tx.public_key, document.SerializeToString(), tx.signature):
        return TxRefusal(
            "sdk",
            4,
            f"signature verification failed; please verify account number ({payer.account.number}), "
            f"sequence ({expected}) and chain-id ({state.chain_id}): unauthorized",
        )
    return None


def deliver(state: ChainState, tx: Tx, height: int, time: float, *, gas_factor: float = 1.0) -> Effect:
    """Execute a transaction that passed `check_ante` in a block of `height`.

    `gas_factor`: the gas it needs in relation to the simulation.
    """
    account = state.accounts[tx.sender]
    fee = tx.fee or 0
    charged = replace(account, sequence=account.sequence + 1, balance=account.balance - fee, public_key=tx.public_key)
    gas_used, refusal = int(total_gas(tx) * gas_factor), None
    outcome = Effect(accounts=(charged,), burnt=fee)
    if gas_used > tx.gas:
        refusal = TxRefusal("sdk", 11, _out_of_gas("WriteFlat", tx.gas, gas_used))
    else:
        result = run_messages(state, tx, charged, height)
        if isinstance(result, TxRefusal):
            refusal = result
        else:
            outcome = replace(result, burnt=result.burnt + fee)
    first = tx.messages[0]
    record = TxRecord(
        tx_hash=tx.hash, height=height, time=time,
        codespace=refusal.codespace if refusal else "", code=refusal.code if refusal else 0,
        log=refusal.log if refusal else "", gas_wanted=tx.gas, gas_used=gas_used, fee=fee, sender=tx.sender,
        kind=first.kind, topic_id=first.topic_id, nonce=first.nonce, raw=tx.raw,
    )  # fmt: skip
    return replace(outcome, record=record)


def run_messages(state: ChainState, tx: Tx, payer: LocalAccount, height: int) -> Effect | TxRefusal:
    """Run the message of a transaction. More than one message is refused: workers do not send that."""
    if len(tx.messages) != 1:
        return TxRefusal("sdk", 37, "this node runs one message per transaction: not supported")
    message = tx.messages[0]
    run = _register if message.kind == "register" else _insert_payload
    result = run(state, message, payer, height)
    if isinstance(result, TxRefusal):
        return replace(result, log=f"failed to execute message; message index: 0: {result.log}")
    return result


def _register(state: ChainState, message: TxMessage, payer: LocalAccount, height: int) -> Effect | TxRefusal:
    del height
    if state.topic(message.topic_id) is None:
        return INVALID_TOPIC
    if message.content.is_reputer:
        return TxRefusal("sdk", 37, "this node has no reputers: not supported")
    payer_after = _charge(payer, state.fees.registration)
    if isinstance(payer_after, TxRefusal):
        return payer_after
    return Effect(accounts=(payer_after,), worker=(message.topic_id, message.sender), burnt=state.fees.registration)


def _insert_payload(state: ChainState, message: TxMessage, payer: LocalAccount, height: int) -> Effect | TxRefusal:
    bundle = message.content.worker_data_bundle
    worker, topic_id, nonce = bundle.worker, message.topic_id, message.nonce
    topic = state.topic(topic_id)
    refusal = (
        _check_permitted(topic, worker)
        or check_bundle(message)
        or _check_open(topic, topic_id, nonce, height)
        or _check_registered(state, topic_id, worker)
    )
    if refusal is not None:
        return refusal
    payer_after = _charge(payer, state.fees.data_sending)
    if isinstance(payer_after, TxRefusal):
        return payer_after
    if any(worker in by_nonce.get((topic_id, nonce), {}) for by_nonce in (state.inferences, state.evicted_inferences)):
        return TxRefusal("undefined", 1, "Error planning inference admission: inference already submitted")
    # the worker was passive: accepted but not stored
    if any(record.code == 0 for record in state.inclusions(topic_id, nonce, worker)):
        return TxRefusal("emissions", 78, "cannot update EMA score twice within the same window")
    inference = bundle.inference_forecasts_bundle.inference
    inference_record = StoredInference(
        topic_id, nonce, worker, payload_value(message), height, inference.extra_data, inference.proof
    )
    effect = admit(state, topic, inference_record) if topic is not None else Effect()
    return replace(effect, accounts=(payer_after,), burnt=state.fees.data_sending)


def _check_permitted(topic: TopicSpec | None, worker: str) -> TxRefusal | None:
    if not is_address(worker):
        return TxRefusal("sdk", 7, "Error validating worker address: invalid address")
    if topic is not None and not topic.permits(worker):
        return TxRefusal("undefined", 1, "Worker is not permitted to submit payload")
    return None


def _check_registered(state: ChainState, topic_id: int, worker: str) -> TxRefusal | None:
    if (topic_id, worker) in state.workers:
        return None
    return TxRefusal("emissions", 13, "worker is not registered in this topic: address not registered")


def _check_open(topic: TopicSpec | None, topic_id: int, nonce: int, height: int) -> TxRefusal | None:
    """Check that block `height` may include a payload for the nonce."""
    if topic is None:
        return INVALID_TOPIC
    # A nonce opens and closes at the end of a block, so the state before this block counts.
    if not (topic.is_nonce(nonce) and nonce < height <= nonce + topic.worker_submission_window):
        return TxRefusal("emissions", 75, "unfulfilled nonce not found")
    if not topic.accepts(nonce, height):
        return TxRefusal(
            "emissions",
            67,
            f"Worker window not open for topic: {topic_id}, current block {height}, start window: {nonce}, "
            f"end window: {nonce + topic.worker_submission_window}: worker nonce window not available",
        )
    return None


def _charge(payer: LocalAccount, fee: int) -> LocalAccount | TxRefusal:
    if payer.balance < fee:
        return TxRefusal("sdk", 5, "sender has insufficient balance to cover fees: insufficient funds")
    return replace(payer, balance=payer.balance - fee)


def _out_of_gas(where: str, gas_wanted: int, gas_used: int) -> str:
    return f"out of gas in location: {where}; gasWanted: {gas_wanted}, gasUsed: {gas_used}: out of gas"
