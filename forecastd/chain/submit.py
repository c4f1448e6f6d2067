"""Prices a transaction, sends it, and waits for its result in a block.

Every wait ends when the stop event is set, so nothing here outlives a SIGTERM by more than the deadline of one call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from threading import Event

from forecastd.chain.client import ChainClient
from forecastd.chain.codec import TxParameters, build_tx, register_message, tx_hash, unsigned_tx
from forecastd.chain.codes import Action, Classification, classify
from forecastd.chain.fees import FeePolicy
from forecastd.chain.types import TxResult
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater

REGISTRATION_BLOCKS = 60  # blocks that may include a registration, five minutes on the real chains
REGISTRATION_SECONDS = 120.0
RESEND_SECONDS = 5.0  # about one block
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.015, 2.0  # pause between two lookups of a transaction; 1.6 x the last one

log = logging.getLogger(__name__)


def price_transaction(
    node: ChainClient,
    wallet: Wallet,
    message: tuple[str, bytes],
    fee_policy: FeePolicy,
    *,
    gas_factor: float = 1.0,
    message_fee: int = 0,
) -> TxParameters:
    """Query the node for the parameters of a transaction with `message`.

    If the simulation is refused for a certain and permanent reason, this raises before anything is signed or paid. Any
    other refusal leaves the decision to the chain, with the default gas. `gas_factor` raises the gas after an attempt
    ran out of it. `message_fee` is what the chain charges for the message itself, in uallo.

    Raises:
        NeedsHuman: the account does not exist, its balance or the user's maximum is below the fee, or the chain would
            refuse the message until a person changes something.
        RetryLater: no usable answer of the node, or the nonce is already served or closed.
    """
    account = node.account(wallet.address)
    if account is None:
        raise NeedsHuman(f"The account {wallet.address} does not exist. Send it uallo for the fees.")
    simulation = node.simulate(unsigned_tx(wallet, message, sequence=account.sequence))
    if simulation.gas_used is None:
        classification = classify("", -1, simulation.log)
        log.info("simulation refused: %s", simulation.log, extra={"action": "simulate"})
        if classification.action is Action.NEEDS_HUMAN:
            raise NeedsHuman(
                f"The chain would refuse the transaction: {classification.description}. {classification.advice}"
            )
        if classification.action in (Action.DONE, Action.WINDOW_CLOSED):
            raise RetryLater(
                f"The chain would refuse the transaction now: {classification.description}. Nothing was signed or paid."
            )
    fee_quote = fee_policy.quote(simulation.gas_used, node.gas_price(), gas_factor=gas_factor, message_fee=message_fee)
    balance, total = node.balance(wallet.address), fee_quote.fee_uallo + message_fee
    if balance < total:
        raise NeedsHuman(
            f"The transaction costs {total} uallo ({fee_quote.fee_uallo} for gas, {message_fee} for the message), "
            f"but {wallet.address} has {balance}. "
            "Send uallo to the wallet; nothing was signed."
        )
    return TxParameters(account.number, account.sequence, fee_quote.gas, fee_quote.fee_uallo)


def register(
    node: ChainClient,
    wallet: Wallet,
    topic_id: int,
    fee_policy: FeePolicy,
    *,
    chain_id: str,
    clock: Clock,
    wake: Event,
    next_free_sequence: Callable[[int], int] = int,
    commit: Callable[[int, str], object] = lambda *_: None,
) -> int:
    """Register the wallet as a worker of the topic. Returns the cost in uallo: gas fee plus registration fee.

    `next_free_sequence` returns the first sequence, from the account's next one on, that no other transaction of this
    program uses. `commit(sequence, tx_hash)` is called before the bytes are sent, to record that the sequence is used.

    Raises:
        NeedsHuman: the chain refuses, or the balance is too low.
        RetryLater: no block included it in time. It may still be included: the next call checks first.
    """
    version, registration_fee = node.version(), node.params().registration_fee
    message = register_message(wallet, version=version, topic_id=topic_id)
    parameters = price_transaction(node, wallet, message, fee_policy, message_fee=registration_fee)
    submission_cost = parameters.fee_uallo + node.params().data_sending_fee  # a submission uses about as much gas
    if node.balance(wallet.address) < parameters.fee_uallo + registration_fee + submission_cost:
        raise NeedsHuman(
            f"Registering {wallet.address} costs {parameters.fee_uallo + registration_fee} uallo, "
            f"and a submission about {submission_cost} more. "
            "Send uallo to the wallet; nothing was paid."
        )
    parameters = replace(parameters, sequence=next_free_sequence(parameters.sequence))
    timeout_height = node.height() + REGISTRATION_BLOCKS
    tx_bytes = build_tx(wallet, message, parameters, chain_id=chain_id, timeout_height=timeout_height)
    commit(parameters.sequence, tx_hash(tx_bytes))
    log.info("registering %s for topic %d", wallet.address, topic_id, extra={"action": "register"})
    try:
        answer = node.broadcast(tx_bytes)
    except RetryLater as error:  # the bytes may have arrived anyway
        log.info("no answer to the registration: %s", error, extra={"action": "register"})
    else:
        classification = classify(answer.codespace, answer.code, answer.log)
        if classification.action not in (Action.ACCEPTED, Action.PENDING):
            raise _registration_error(topic_id, classification, answer.log)
    result = wait_for_transaction(
        node, tx_hash(tx_bytes), timeout_height=timeout_height, clock=clock, wake=wake,
        timeout_seconds=REGISTRATION_SECONDS, resend=lambda: node.broadcast(tx_bytes),
    )  # fmt: skip
    if result is None:
        raise RetryLater(f"The registration for topic {topic_id} is not in a block yet. The next run checks again.")
    if result.code != 0:
        raise _registration_error(topic_id, classify(result.codespace, result.code, result.log), result.log)
    return parameters.fee_uallo + registration_fee


def wait_for_transaction(
    node: ChainClient,
    transaction_hash: str,
    *,
    timeout_height: int,
    clock: Clock,
    wake: Event,
    timeout_seconds: float,
    resend: Callable[[], object] = lambda: None,
) -> TxResult | None:
    """Wait for the result of a transaction in a block.

    Returns None when no block has it within `timeout_seconds`, or when a block can no longer include it. Errors of the node
    are retried. `resend` is called every `RESEND_SECONDS`: an accepted transaction can be lost, and sending the same
    bytes again is harmless. Its result is ignored. The wait ends early, after one more lookup, when `wake` is set or
    the chain is past `timeout_height`.
    """
    deadline, pause, last_look = clock.monotonic() + timeout_seconds, _MIN_POLL_SECONDS, False
    resend_at = clock.monotonic() + RESEND_SECONDS
    while True:
        try:
            result = node.find_tx(transaction_hash)
            if result is not None or last_look:
                return result
            last_look = node.height() > timeout_height
            if not last_look and clock.monotonic() >= resend_at:
                resend_at = clock.monotonic() + RESEND_SECONDS
                resend()
        except RetryLater as error:
            log.info("still looking for %s: %s", transaction_hash, error, extra={"action": "confirm"})
            if last_look:
                return None
        if not last_look:
            remaining = deadline - clock.monotonic()
            last_look = remaining <= 0 or wake.wait(min(pause, remaining))
            pause = min(pause * 1.6, _MAX_POLL_SECONDS)


def _registration_error(topic_id: int, classification: Classification, node_log: str) -> ForecastdError:
    message = (
        f"The registration for topic {topic_id} was refused: {classification.description}. "
        f"{classification.advice} Answer of the node: {node_log}"
    )
    return NeedsHuman(message) if classification.action is Action.NEEDS_HUMAN else RetryLater(message)
