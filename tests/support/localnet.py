"""Registering a wallet and signing a forecast on a local node, as a worker does."""

from __future__ import annotations

import threading

from forecastd.chain.codec import payload_message, sign_submission
from forecastd.chain.fees import FeePolicy
from forecastd.chain.node import Node
from forecastd.chain.submit import price_transaction, register
from forecastd.chain.wallet import Wallet
from forecastd.clock import SystemClock
from forecastd.ledger.ledger import Submission

TOPIC_ID = 67
FEE_POLICY = FeePolicy(1, "standard")
WINDOW_BLOCKS = 10  # the submission window of the topics that these tests use


def register_wallet(node: Node, wallet: Wallet, topic_id: int = TOPIC_ID) -> int:
    """Register a wallet as a worker of a topic. Returns the cost in uallo."""
    return register(
        node, wallet, topic_id, FEE_POLICY, chain_id="localnet", clock=SystemClock(), wake=threading.Event()
    )


def sign_forecast(node: Node, wallet: Wallet, *, value: float, nonce: int | None = None) -> Submission:
    """A signed payload for a nonce; None means the newest open one."""
    version = node.version()
    nonce = node.open_nonces(TOPIC_ID)[0] if nonce is None else nonce
    message = payload_message(wallet, version=version, topic_id=TOPIC_ID, nonce=nonce, value=str(value))
    parameters = price_transaction(node, wallet, message, FEE_POLICY)
    return sign_submission(
        wallet, version=version, chain_id="localnet", topic_id=TOPIC_ID, nonce=nonce, value=value, synthetic=True,
        parameters=parameters, timeout_height=nonce + WINDOW_BLOCKS - 1,
    )  # fmt: skip
