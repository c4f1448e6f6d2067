"""From a message to a block: what it costs, sending it, and waiting for what became of it.

Waiting is on an event that a stop sets, so nothing here outlives a SIGTERM by more than one call's deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event

from forecastd.chain.answers import TxResult
from forecastd.chain.client import ChainClient
from forecastd.chain.codec import build_tx, register_message, simulated_tx, tx_hash
from forecastd.chain.codes import Action, Meaning, classify
from forecastd.chain.fees import quote
from forecastd.chain.wallet import Wallet
from forecastd.clock import Clock
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.settings import FeeTier

REGISTER_BLOCKS = 60  # blocks that may include a registration, five minutes on the real chains
REGISTER_SECONDS = 120.0
SEND_AGAIN_SECONDS = 5.0  # about a block's time
_FIRST_WAIT, _LONGEST_WAIT = 0.015, 2.0  # seconds between two looks for a transaction; each wait is 1.6 x the last

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spending:
    """What may be paid: the network's floor in uallo a gas, the tier, and the user's maximum fee in uallo."""

    floor: int
    tier: FeeTier
    most: int | None


@dataclass(frozen=True)
class Priced:
    """What a signature needs to know: the account's number and next sequence, gas limit, fee in uallo."""

    account_number: int
    sequence: int
    gas: int
    fee_uallo: int


def price(
    node: ChainClient,
    wallet: Wallet,
    message: tuple[str, bytes],
    spending: Spending,
    *,
    gas_factor: float = 1.0,
    besides: int = 0,
) -> Priced:
    """Ask the node what sending `message` takes.

    A refusal of the simulation that is certain and lasting ends here, before anything is signed and paid; any other
    leaves the decision to the chain, with the default gas. `gas_factor` raises the gas after an attempt ran out of it;
    `besides` is what the chain charges for the message itself, in uallo.

    Raises:
        NeedsHuman: the account does not exist, its balance or the user's maximum is below the fee, or the chain would
            refuse the message until a person changes something.
        RetryLater: no usable answer of the node, or the nonce is served or closed already.
    """
    account = node.account(wallet.address)
    if account is None:
        raise NeedsHuman(f"The account {wallet.address} does not exist yet. Send it some uallo for fees.")
    simulation = node.simulate(simulated_tx(wallet, message, sequence=account.sequence))
    if simulation.gas_used is None:
        meaning = classify("", -1, simulation.log)
        log.info("simulation refused: %s", simulation.log, extra={"action": "simulate"})
        if meaning.action is Action.NEEDS_HUMAN:
            raise NeedsHuman(f"The chain would refuse it: {meaning.meaning}. {meaning.advice}")
        if meaning.action in (Action.DONE, Action.WINDOW_CLOSED):
            raise RetryLater(f"The chain would refuse it now: {meaning.meaning}. Nothing was signed or paid.")
    cost = quote(
        simulation.gas_used, node.gas_price(), floor=spending.floor, tier=spending.tier, most=spending.most,
        factor=gas_factor, besides=besides,
    )  # fmt: skip
    balance, total = node.balance(wallet.address), cost.fee_uallo + besides
    if balance < total:
        raise NeedsHuman(
            f"It costs {total} uallo ({cost.fee_uallo} for gas, {besides} to the chain) and {wallet.address} has {balance}. "
            "Send it some; nothing was signed."
        )
    return Priced(account.number, account.sequence, cost.gas, cost.fee_uallo)


def _nothing(_sequence: int, _tx_hash: str) -> None:
    pass


def register(
    node: ChainClient,
    wallet: Wallet,
    topic_id: int,
    spending: Spending,
    *,
    chain_id: str,
    clock: Clock,
    wake: Event,
    free: Callable[[int], int] = lambda sequence: sequence,
    commit: Callable[[int, str], None] = _nothing,
) -> int:
    """Register the wallet as a worker of the topic, and return what it cost in uallo: gas fee and registration fee.

    `free` gives the first sequence from the account's next one on that nothing else of ours has taken.
    `commit(sequence, tx_hash)` is called before the bytes are sent, to put on record that the sequence is used.

    Raises:
        NeedsHuman: the chain refuses, or the balance does not cover it.
        RetryLater: no block took it in time. It may still be taken: the next call looks first.
    """
    version, fee = node.version(), node.params().registration_fee
    message = register_message(wallet, version=version, topic_id=topic_id)
    cost = price(node, wallet, message, spending, besides=fee)
    afterwards = cost.fee_uallo + node.params().data_sending_fee  # a submission costs about as much gas
    if node.balance(wallet.address) < cost.fee_uallo + fee + afterwards:
        raise NeedsHuman(
            f"Registering {wallet.address} costs {cost.fee_uallo + fee} uallo, and a submission about {afterwards} more. "
            "Send it that much; nothing was paid."
        )
    last, sequence = node.height() + REGISTER_BLOCKS, free(cost.sequence)
    raw = build_tx(
        wallet, message, chain_id=chain_id, account_number=cost.account_number, sequence=sequence,
        gas=cost.gas, fee_uallo=cost.fee_uallo, timeout_height=last,
    )  # fmt: skip
    commit(sequence, tx_hash(raw))
    log.info("registering %s for topic %d", wallet.address, topic_id, extra={"action": "register"})
    try:
        answer = node.broadcast(raw)
    except RetryLater as error:  # the bytes may have arrived all the same
        log.info("no answer to the registration: %s", error, extra={"action": "register"})
    else:
        meaning = classify(answer.codespace, answer.code, answer.log)
        if meaning.action not in (Action.ACCEPTED, Action.PENDING):
            raise _not_registered(topic_id, meaning, answer.log)
    found = wait_for_hash(
        node, tx_hash(raw), timeout_height=last, clock=clock, wake=wake, seconds=REGISTER_SECONDS,
        send_again=lambda: node.broadcast(raw),
    )  # fmt: skip
    if found is None:
        raise RetryLater(f"The registration for topic {topic_id} is in no block yet. The next run looks again.")
    if found.code != 0:
        raise _not_registered(topic_id, classify(found.codespace, found.code, found.log), found.log)
    return cost.fee_uallo + fee


def wait_for_hash(
    node: ChainClient,
    name: str,
    *,
    timeout_height: int,
    clock: Clock,
    wake: Event,
    seconds: float,
    send_again: Callable[[], object] = lambda: None,
) -> TxResult | None:
    """What a block made of a transaction, by its hash; None when none has it within `seconds`, or none can any more.

    A node that fails meanwhile is asked again. `send_again` is called every `SEND_AGAIN_SECONDS`: what was taken may be
    lost on its way, and the same bytes do no harm; what it says does not count.

    Ends early, after one more look, when `wake` is set or the chain is past `timeout_height`.
    """
    end, pause, last_look = clock.monotonic() + seconds, _FIRST_WAIT, False
    again = clock.monotonic() + SEND_AGAIN_SECONDS
    while True:
        try:
            found = node.find_tx(name)
            if found is not None or last_look:
                return found
            last_look = node.height() > timeout_height
            if not last_look and clock.monotonic() >= again:
                again = clock.monotonic() + SEND_AGAIN_SECONDS
                send_again()
        except RetryLater as error:
            log.info("still looking for %s: %s", name, error, extra={"action": "confirm"})
            if last_look:
                return None
        if not last_look:
            remaining = end - clock.monotonic()
            last_look = remaining <= 0 or wake.wait(min(pause, remaining))
            pause = min(pause * 1.6, _LONGEST_WAIT)


def _not_registered(topic_id: int, meaning: Meaning, said: str) -> ForecastdError:
    told = (
        f"The registration for topic {topic_id} was refused: {meaning.meaning}. {meaning.advice} The node says: {said}"
    )
    return NeedsHuman(told) if meaning.action is Action.NEEDS_HUMAN else RetryLater(told)
