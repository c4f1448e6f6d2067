"""The queries that a worker sends to the chain, each written once. `Node` (one endpoint) and `EndpointPool` (several)
send them.

Every method has a total deadline and may raise `RetryLater` (no usable answer now) or `NeedsHuman` (the wrong chain).
Invariant: only identical bytes may be sent twice. `broadcast` of a pool sends the same bytes to several nodes at once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from operator import attrgetter
from typing import Any, NoReturn, TypeVar

from google.protobuf.message import Message

from forecastd.chain.grpc_transport import RpcError, UnusableReply, shorten
from forecastd.chain.methods import EmissionsVersion
from forecastd.chain.networks import DENOM
from forecastd.chain.proto import cosmos_pb2 as cosmos
from forecastd.chain.proto import emissions_pb2 as emissions
from forecastd.chain.types import (
    AccountInfo,
    BroadcastResult,
    ChainParams,
    Inference,
    NetworkInferences,
    SimulationResult,
    Topic,
    TxResult,
)
from forecastd.runtime.closeable import Closeable

_MAX_AMOUNT_DIGITS = 78  # of an amount: the chain's integers have 256 bits
_PRICE_UNIT = Decimal(10) ** 18  # the amount of a DecCoin is an integer with 18 decimals
T = TypeVar("T")

log = logging.getLogger(__name__)


def raise_refusal(error: RpcError) -> NoReturn:
    """For a query that a working node never refuses."""
    raise error


def _none(error: RpcError) -> None:
    log.debug("refused: %s", error, extra={"action": "query"})


def _none_if_not_found(error: RpcError) -> None:
    if not error.is_not_found:
        raise error


class ChainClient(Closeable):
    """The chain as the submission cycle sees it. Safe to use from several threads.

    A kind of client implements `ask`, `chain_id`, `version` and `close`.
    """

    def ask(
        self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T] = raise_refusal
    ) -> T:
        """Send a request to the method it belongs to, and return what the reply means.

        `read` takes the reply and may raise `UnusableReply`. `read_refusal` takes the node's refusal, and raises it
        again when a working node never refuses so.
        """
        raise NotImplementedError

    # The chain

    def chain_id(self) -> str:
        """The chain id of the node. Raises NeedsHuman when it is not the expected one."""
        raise NotImplementedError

    def version(self) -> EmissionsVersion:
        """The version of the emissions module. Raises NeedsHuman when this program does not support it."""
        raise NotImplementedError

    def height(self) -> int:
        """Height of the latest block."""
        return self.ask(cosmos.GetLatestBlockRequest(), _read_height)

    def block_time(self) -> float:
        """The time of the latest block by the chain's clock, in unix seconds."""
        return self.ask(cosmos.GetLatestBlockRequest(), _read_block_time)

    # Topics and nonces

    def topic(self, topic_id: int) -> Topic | None:
        """A topic, or None when there is no such topic."""
        return self.ask(emissions.GetTopicRequest(topic_id=topic_id), _read_topic, _read_topic_refusal)

    def is_topic_active(self, topic_id: int) -> bool:
        """Whether the topic issues nonces at present."""
        return self.ask(emissions.IsTopicActiveRequest(topic_id=topic_id), _flag("is_active"))

    def open_nonces(self, topic_id: int) -> list[int]:
        """The worker nonces that are still open, newest first. May be empty."""
        return self.ask(emissions.GetUnfulfilledWorkerNoncesRequest(topic_id=topic_id), _read_nonces)

    def is_nonce_unfulfilled(self, topic_id: int, nonce: int) -> bool:
        """Whether the chain still accepts forecasts for this nonce."""
        request = emissions.IsWorkerNonceUnfulfilledRequest(topic_id=topic_id, block_height=nonce)
        return self.ask(request, _flag("is_worker_nonce_unfulfilled"))

    def is_registered(self, topic_id: int, address: str) -> bool:
        """Whether the address is a registered worker of the topic."""
        request = emissions.IsWorkerRegisteredInTopicIdRequest(topic_id=topic_id, address=address)
        return self.ask(request, _flag("is_registered"))

    def can_submit(self, topic_id: int, address: str) -> bool:
        """Whether the topic permits this address to submit. Registration is a separate check."""
        request = emissions.CanSubmitWorkerPayloadRequest(topic_id=topic_id, address=address)
        return self.ask(request, _flag("can_submit_worker_payload"))

    def params(self) -> ChainParams:
        """The fees that the chain charges in addition to gas."""
        return self.ask(emissions.GetParamsRequest(), _read_params)

    # Inferences

    def latest_inference(self, topic_id: int, address: str) -> Inference | None:
        """The worker's latest inference for the topic, or None."""
        request = emissions.GetWorkerLatestInputInferenceByTopicIdRequest(topic_id=topic_id, worker_address=address)
        return self.ask(request, _read_latest_inference, _none_if_not_found)

    def inferences_at(self, topic_id: int, nonce: int) -> list[Inference]:
        """The inferences that the chain stored for a nonce. May be empty."""
        request = emissions.GetInferencesAtBlockRequest(topic_id=topic_id, block_height=nonce)
        return self.ask(request, _read_inferences, _none_if_not_found) or []

    def network_inferences(self, topic_id: int) -> NetworkInferences | None:
        """The network's own inferences, or None when there are none yet."""
        request = emissions.GetLatestNetworkInferencesRequest(topic_id=topic_id)
        return self.ask(request, _read_network_inferences, _none)

    # Accounts and fees

    def account(self, address: str) -> AccountInfo | None:
        """Number and sequence of an account, or None when the account does not exist."""
        return self.ask(cosmos.QueryAccountInfoRequest(address=address), _read_account, _none_if_not_found)

    def balance(self, address: str) -> int:
        """The account's balance in uallo; 0 when it does not exist."""
        return self.ask(cosmos.QueryBalanceRequest(address=address, denom=DENOM), _read_balance)

    def gas_price(self) -> Decimal | None:
        """The fee market's price in uallo per gas, or None when the chain has no fee market."""
        return self.ask(cosmos.GasPriceRequest(denom=DENOM), _read_gas_price, _none)

    # Transactions

    def simulate(self, tx_bytes: bytes) -> SimulationResult:
        """Run a transaction on the node without sending it. Returns the gas used, or the node's reason for a refusal."""
        return self.ask(cosmos.SimulateRequest(tx_bytes=tx_bytes), _read_simulation, _read_simulation_refusal)

    def broadcast(self, tx_bytes: bytes) -> BroadcastResult:
        """Send a transaction. The answer is that of the node's own check (CheckTx), not of a block."""
        request = cosmos.BroadcastTxRequest(tx_bytes=tx_bytes, mode=cosmos.BROADCAST_MODE_SYNC)
        return self.ask(request, _read_broadcast)

    def find_tx(self, tx_hash: str) -> TxResult | None:
        """The result of a transaction in a block, or None when no block has it yet."""
        return self.ask(cosmos.GetTxRequest(hash=tx_hash), _read_tx, _none_if_not_found)


# What the replies mean


def _latest_header(reply: Any) -> Any:
    header = reply.sdk_block.header if reply.sdk_block.header.height else reply.block.header
    if not header.height:
        raise UnusableReply("an answer without a height")
    return header


def _read_height(reply: Any) -> int:
    return int(_latest_header(reply).height)


def _read_block_time(reply: Any) -> float:
    header = _latest_header(reply)
    if not header.HasField("time"):
        raise UnusableReply("an answer without a time")
    return float(header.time.seconds + header.time.nanos / 1e9)


def _flag(name: str) -> Callable[[Any], bool]:
    return attrgetter(name)


def _read_topic(reply: Any) -> Topic | None:
    topic = reply.topic
    if not reply.HasField("topic"):
        return None
    return Topic(
        id=topic.id,
        metadata=topic.metadata,
        epoch_length=topic.epoch_length,
        worker_submission_window=topic.worker_submission_window,
        ground_truth_lag=topic.ground_truth_lag,
        epoch_last_ended=topic.epoch_last_ended,
    )


def _read_topic_refusal(error: RpcError) -> None:
    if not (error.is_not_found or "invalid topic" in error.details.lower()):
        raise error


def _read_nonces(reply: Any) -> list[int]:
    return sorted({nonce.block_height for nonce in reply.nonces.nonces}, reverse=True)


def _read_params(reply: Any) -> ChainParams:
    if not reply.HasField("params"):
        raise UnusableReply("an answer without parameters")
    return ChainParams(_read_amount(reply.params.registration_fee), _read_amount(reply.params.data_sending_fee))


def _read_latest_inference(reply: Any) -> Inference | None:
    is_v9 = isinstance(reply, emissions.GetWorkerLatestInferenceByTopicIdResponse)
    inference = reply.latest_inference if is_v9 else reply.latest_input_inference
    return _read_inference(inference) if inference.inferer else None


def _read_inferences(reply: Any) -> list[Inference]:
    return [_read_inference(inference) for inference in reply.inferences.inferences]


def _read_inference(message: Any) -> Inference:
    """An inference of either version: v9 has one `value`; v10 has `values`, with or without labels."""
    value = _first_decimal(message.values) if message.values else message.value
    return Inference(message.inferer, message.topic_id, message.block_height, value)


def _read_network_inferences(reply: Any) -> NetworkInferences | None:
    """The reply of either version, or None when it is empty."""
    if not reply.HasField("network_inferences"):
        return None
    bundle = reply.network_inferences
    if isinstance(bundle, emissions.ValueBundle):
        combined = bundle.combined_value
        texts = {inference.worker: inference.value for inference in bundle.inferer_values}
    else:
        combined = _first_decimal(bundle.combined_value)
        texts = {inference.worker: _first_decimal(inference.values) for inference in bundle.inferer_values}
    values = {worker: _finite_float(text) for worker, text in texts.items()}
    return NetworkInferences(
        nonce=reply.inference_block_height,
        combined=_finite_float(combined),
        values_by_worker={worker: value for worker, value in values.items() if value is not None},
    )


def _first_decimal(values: Any) -> str:
    """The first decimal of a list of strings, or of labeled values. Empty when there is none."""
    return str(getattr(values[0], "value", values[0])) if values else ""


def _finite_float(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _read_account(reply: Any) -> AccountInfo | None:
    return AccountInfo(reply.info.account_number, reply.info.sequence) if reply.HasField("info") else None


def _read_balance(reply: Any) -> int:
    return _read_amount(reply.balance.amount)


def _read_amount(text: str) -> int:
    """An amount as the chain writes it; empty text is 0."""
    if text and not (text.isascii() and text.isdigit() and len(text) <= _MAX_AMOUNT_DIGITS):
        raise UnusableReply("an answer with an invalid amount")
    return int(text or 0)


def _read_gas_price(reply: Any) -> Decimal | None:
    amount = reply.price.amount
    try:
        price = Decimal(amount) if "." in amount else Decimal(amount) / _PRICE_UNIT
    except InvalidOperation:
        return None
    return price if price.is_finite() and price >= 0 else None


def _read_simulation(reply: Any) -> SimulationResult:
    return SimulationResult(reply.gas_info.gas_used if reply.HasField("gas_info") else None, "")


def _read_simulation_refusal(error: RpcError) -> SimulationResult:
    return SimulationResult(None, shorten(error.details))


def _read_broadcast(reply: Any) -> BroadcastResult:
    if not reply.HasField("tx_response"):
        raise UnusableReply("an empty answer")
    response = reply.tx_response
    return BroadcastResult(response.codespace, response.code, shorten(response.raw_log), response.txhash)


def _read_tx(reply: Any) -> TxResult | None:
    if not reply.HasField("tx_response"):
        return None
    response = reply.tx_response
    return TxResult(
        tx_hash=response.txhash,
        height=response.height,
        codespace=response.codespace,
        code=response.code,
        log=shorten(response.raw_log),
        gas_used=response.gas_used,
    )
