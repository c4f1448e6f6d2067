"""The client of one Allora node, over gRPC or REST. It is synchronous; every call has a total deadline.

Invariant: the chain id of the node is checked before any other answer is used. The version of the emissions module is
found by query, and again after an `UNIMPLEMENTED`, so that the client follows an upgrade of the chain while it runs.
Every method may raise `RetryLater` (no usable answer), and `NeedsHuman` when the node is on another chain.
"""

from __future__ import annotations

import logging
from decimal import Decimal, InvalidOperation
from typing import Any, Protocol

from forecastd.chain.endpoint import Endpoint, parse_endpoint
from forecastd.chain.grpc_transport import (
    GrpcTransport,
    NoUsableResponse,
    RpcError,
    UnexpectedRefusal,
    no_usable_response,
    shorten,
    unexpected_refusal,
)
from forecastd.chain.networks import DENOM
from forecastd.chain.rest_transport import RestTransport
from forecastd.chain.sdk import EmissionsVersion, emissions, messages
from forecastd.chain.types import (
    AccountInfo,
    BroadcastResult,
    ChainParams,
    Inference,
    NetworkInferences,
    SimulationResult,
    Topic,
    TxResult,
    read_inference,
    read_network_inferences,
)
from forecastd.errors import NeedsHuman
from forecastd.runtime.closeable import Closeable

CALL_TIMEOUT_SECONDS = 10.0  # total time for one call
_VERSIONS: tuple[EmissionsVersion, ...] = ("v10", "v9")
_MAX_AMOUNT_DIGITS = 78  # of an amount: the chain's integers have 256 bits
_LATEST_INFERENCE = "GetWorkerLatestInputInferenceByTopicId"
_RENAMED = {("v9", _LATEST_INFERENCE): "GetWorkerLatestInferenceByTopicId"}  # v10 renamed only this query
_PRICE_UNIT = Decimal(10) ** 18  # the amount of a DecCoin is an integer with 18 decimals

log = logging.getLogger(__name__)


class _Transport(Protocol):
    """A connection to a node: gRPC or REST."""

    def call(self, method: str, request: Any, reply: Any) -> Any: ...
    def send(self, method: str, request: Any) -> object: ...
    def close(self) -> None: ...


class WrongChain(NeedsHuman):
    """The endpoint is on another chain than expected. `chain_id` is the chain it is on."""

    def __init__(self, message: str | None = None, *, chain_id: str = "") -> None:
        super().__init__(message)
        self.chain_id = chain_id


class Node(Closeable):
    """The client of one endpoint.

    `chain_id` is the expected chain; None accepts any. Safe to use from several threads.
    """

    def __init__(
        self, endpoint: str | Endpoint, *, chain_id: str | None = None, deadline: float = CALL_TIMEOUT_SECONDS
    ) -> None:
        """Create the client. Nothing is sent yet.

        Raises:
            NeedsHuman: `endpoint` is not a valid endpoint.
        """
        self.endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._transport: _Transport = _open_transport(self.endpoint, deadline)
        self._expected_chain_id = chain_id
        self._chain_checked = chain_id is None
        self._version: EmissionsVersion | None = None

    def close(self) -> None:
        """Close the connection. A later call opens a new one."""
        self._transport.close()

    # The chain

    def chain_id(self) -> str:
        """The chain id of the node. Raises NeedsHuman when it is not the expected one."""
        tm = messages("cosmos.base.tendermint.v1beta1")
        method = "cosmos.base.tendermint.v1beta1.Service/GetNodeInfo"
        try:
            reply = self._transport.call(method, b"", tm.GetNodeInfoResponse)
        except RpcError as error:
            raise self._unexpected(method, error) from error
        chain_id = str(reply.default_node_info.network) if reply.default_node_info else ""
        if not chain_id:
            raise self._unusable(method, "an answer without a chain id")
        if self._expected_chain_id is not None and chain_id != self._expected_chain_id:
            self._chain_checked = False
            shown_chain_id = shorten(chain_id)
            raise WrongChain(
                f"The node {self.endpoint} is on chain {shown_chain_id}, not on {self._expected_chain_id}. "
                "Correct RPC_ENDPOINTS or ALLORA_NETWORK; no transaction was sent to it.",
                chain_id=shown_chain_id,
            )
        self._chain_checked = True
        return chain_id

    def height(self) -> int:
        """Height of the node's latest block."""
        return int(self._latest_header().height)

    def block_time(self) -> float:
        """The time of the node's latest block by the chain's clock, in unix seconds."""
        time = self._latest_header().time
        if time is None:
            raise self._unusable("GetLatestBlock", "an answer without a time")
        return float(time.timestamp())

    def _latest_header(self) -> Any:
        tm = messages("cosmos.base.tendermint.v1beta1")
        method = "cosmos.base.tendermint.v1beta1.Service/GetLatestBlock"
        reply = self._ask_or_raise(method, b"", tm.GetLatestBlockResponse)
        for block in (reply.sdk_block, reply.block):
            if block is not None and block.header is not None and block.header.height:
                return block.header
        raise self._unusable(method, "an answer without a height")

    def version(self, *, refresh: bool = False) -> EmissionsVersion:
        """The emissions version of the node.

        Raises NeedsHuman when this program does not support it. The version is cached; `refresh` queries the node
        again.
        """
        if self._version is not None and not refresh:
            return self._version
        self._check_chain()
        for version in _VERSIONS:
            try:
                self._transport.send(f"emissions.{version}.QueryService/GetNextTopicId", b"")
            except RpcError as error:
                if error.status == "UNIMPLEMENTED":
                    continue
            self._version = version
            return version
        raise NeedsHuman(
            f"The node {self.endpoint} supports neither emissions v10 nor v9.  "
            "It is not an Allora node, or the chain was upgraded: install a newer forecastd."
        )

    # Topics and nonces

    def topic(self, topic_id: int) -> Topic | None:
        """A topic, or None when there is no such topic."""
        try:
            topic = self._emissions("GetTopic", topic_id=topic_id).topic
        except RpcError as error:
            if error.is_not_found or "invalid topic" in error.details.lower():
                return None
            raise self._unexpected("GetTopic", error) from error
        if topic is None:
            return None
        return Topic(
            id=int(topic.id),
            metadata=str(topic.metadata),
            epoch_length=int(topic.epoch_length),
            worker_submission_window=int(topic.worker_submission_window),
            ground_truth_lag=int(topic.ground_truth_lag),
            epoch_last_ended=int(topic.epoch_last_ended),
        )

    def is_topic_active(self, topic_id: int) -> bool:
        """Whether the topic issues nonces at present."""
        return bool(self._emissions_or_raise("IsTopicActive", topic_id=topic_id).is_active)

    def open_nonces(self, topic_id: int) -> list[int]:
        """The worker nonces that are still open, newest first. May be empty."""
        reply = self._emissions_or_raise("GetUnfulfilledWorkerNonces", topic_id=topic_id)
        nonces = reply.nonces.nonces if reply.nonces is not None else []
        return sorted({int(nonce.block_height) for nonce in nonces}, reverse=True)

    def is_nonce_unfulfilled(self, topic_id: int, nonce: int) -> bool:
        """Whether the chain still accepts forecasts for this nonce."""
        reply = self._emissions_or_raise("IsWorkerNonceUnfulfilled", topic_id=topic_id, block_height=nonce)
        return bool(reply.is_worker_nonce_unfulfilled)

    def is_registered(self, topic_id: int, address: str) -> bool:
        """Whether the address is a registered worker of the topic."""
        reply = self._emissions_or_raise("IsWorkerRegisteredInTopicId", topic_id=topic_id, address=address)
        return bool(reply.is_registered)

    def can_submit(self, topic_id: int, address: str) -> bool:
        """Whether the topic permits this address to submit. Registration is a separate check."""
        reply = self._emissions_or_raise("CanSubmitWorkerPayload", topic_id=topic_id, address=address)
        return bool(reply.can_submit_worker_payload)

    def params(self) -> ChainParams:
        """The fees that the chain charges in addition to gas."""
        params = self._emissions_or_raise("GetParams").params
        if params is None:
            raise self._unusable("GetParams", "an answer without parameters")
        fees = [self._parse_amount("GetParams", text) for text in (params.registration_fee, params.data_sending_fee)]
        return ChainParams(*fees)

    # Inferences

    def latest_inference(self, topic_id: int, address: str) -> Inference | None:
        """The worker's latest inference for the topic, or None."""
        try:
            reply = self._emissions(_LATEST_INFERENCE, topic_id=topic_id, worker_address=address)
        except RpcError as error:
            if error.is_not_found:
                return None
            raise self._unexpected(_LATEST_INFERENCE, error) from error
        inference = getattr(reply, "latest_input_inference", None) or getattr(reply, "latest_inference", None)
        return read_inference(inference) if inference is not None and inference.inferer else None

    def inferences_at(self, topic_id: int, nonce: int) -> list[Inference]:
        """The inferences that the chain stored for a nonce. May be empty."""
        try:
            reply = self._emissions("GetInferencesAtBlock", topic_id=topic_id, block_height=nonce)
        except RpcError as error:
            if error.is_not_found:
                return []
            raise self._unexpected("GetInferencesAtBlock", error) from error
        return (
            [read_inference(inference) for inference in reply.inferences.inferences]
            if reply.inferences is not None
            else []
        )

    def network_inferences(self, topic_id: int) -> NetworkInferences | None:
        """The network's own inferences, or None when there are none yet."""
        try:
            return read_network_inferences(self._emissions("GetLatestNetworkInferences", topic_id=topic_id))
        except RpcError as error:
            log.debug("no network inferences: %s", error, extra={"action": "network_inferences"})
            return None

    # Accounts and fees

    def account(self, address: str) -> AccountInfo | None:
        """Number and sequence of an account, or None when the account does not exist."""
        auth = messages("cosmos.auth.v1beta1")
        request = auth.QueryAccountInfoRequest(address=address)
        try:
            reply = self._ask("cosmos.auth.v1beta1.Query/AccountInfo", request, auth.QueryAccountInfoResponse)
        except RpcError as error:
            if error.is_not_found:
                return None
            raise self._unexpected("AccountInfo", error) from error
        return AccountInfo(int(reply.info.account_number), int(reply.info.sequence)) if reply.info is not None else None

    def balance(self, address: str) -> int:
        """The account's balance in uallo; 0 when it does not exist."""
        bank = messages("cosmos.bank.v1beta1")
        request = bank.QueryBalanceRequest(address=address, denom=DENOM)
        reply = self._ask_or_raise("cosmos.bank.v1beta1.Query/Balance", request, bank.QueryBalanceResponse)
        return self._parse_amount("Balance", reply.balance.amount) if reply.balance is not None else 0

    def gas_price(self) -> Decimal | None:
        """The fee market's price in uallo per gas, or None when the chain has no fee market."""
        market = messages("feemarket.feemarket.v1")
        request = market.GasPriceRequest(denom=DENOM)
        try:
            reply = self._ask("feemarket.feemarket.v1.Query/GasPrice", request, market.GasPriceResponse)
            amount = str(reply.price.amount) if reply.price is not None else ""
            price = Decimal(amount) if "." in amount else Decimal(amount) / _PRICE_UNIT
        except (RpcError, InvalidOperation):
            return None
        return price if price.is_finite() and price >= 0 else None

    # Transactions

    def simulate(self, tx_bytes: bytes) -> SimulationResult:
        """Run a transaction on the node without sending it. Returns the gas used, or the node's reason for a refusal."""
        tx = messages("cosmos.tx.v1beta1")
        request = tx.SimulateRequest(tx_bytes=tx_bytes)
        try:
            reply = self._ask("cosmos.tx.v1beta1.Service/Simulate", request, tx.SimulateResponse)
        except RpcError as error:
            return SimulationResult(None, shorten(error.details))
        return SimulationResult(int(reply.gas_info.gas_used) if reply.gas_info is not None else None, "")

    def broadcast(self, tx_bytes: bytes) -> BroadcastResult:
        """Send a transaction. The answer is that of the node's own check (CheckTx), not of a block."""
        tx = messages("cosmos.tx.v1beta1")
        request = tx.BroadcastTxRequest(tx_bytes=tx_bytes, mode=tx.BroadcastMode.SYNC)
        response = self._ask_or_raise(
            "cosmos.tx.v1beta1.Service/BroadcastTx", request, tx.BroadcastTxResponse
        ).tx_response
        if response is None:
            raise self._unusable("BroadcastTx", "an empty answer")
        return BroadcastResult(
            str(response.codespace), int(response.code), shorten(response.raw_log), str(response.txhash)
        )

    def find_tx(self, tx_hash: str) -> TxResult | None:
        """The result of a transaction in a block, or None when no block has it yet."""
        tx = messages("cosmos.tx.v1beta1")
        request = tx.GetTxRequest(hash=tx_hash)
        try:
            response = self._ask("cosmos.tx.v1beta1.Service/GetTx", request, tx.GetTxResponse).tx_response
        except RpcError as error:
            if error.is_not_found:
                return None
            raise self._unexpected("GetTx", error) from error
        if response is None:
            return None
        return TxResult(
            tx_hash=str(response.txhash),
            height=int(response.height),
            codespace=str(response.codespace),
            code=int(response.code),
            log=shorten(response.raw_log),
            gas_used=int(response.gas_used),
        )

    # Calls

    def _unusable(self, method: str, reason: str) -> NoUsableResponse:
        return no_usable_response(self.endpoint, method, reason)

    def _unexpected(self, method: str, error: RpcError) -> UnexpectedRefusal:
        return unexpected_refusal(self.endpoint, method, error)

    def _parse_amount(self, method: str, text: str) -> int:
        """Parse an amount as the chain writes it; empty text is 0."""
        if not text:
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_AMOUNT_DIGITS):
            raise self._unusable(method, "an answer with an invalid amount")
        return int(text)

    def _check_chain(self) -> None:
        if not self._chain_checked:
            self.chain_id()

    def _ask(self, method: str, request: Any, reply: Any) -> Any:
        """Call a method after the chain of the node was checked. May raise RpcError."""
        self._check_chain()
        return self._transport.call(method, request, reply)

    def _ask_or_raise(self, method: str, request: Any, reply: Any) -> Any:
        """Like `_ask`, for calls that a working node never refuses."""
        try:
            return self._ask(method, request, reply)
        except RpcError as error:
            raise self._unexpected(method, error) from error

    def _emissions_or_raise(self, method: str, **fields: object) -> Any:
        try:
            return self._emissions(method, **fields)
        except RpcError as error:
            raise self._unexpected(method, error) from error

    def _emissions(self, method: str, **fields: object) -> Any:
        """Query the emissions module in the node's version. May raise RpcError."""
        version = self.version()
        try:
            return self._query(version, method, fields)
        except RpcError as error:
            if error.status != "UNIMPLEMENTED":
                raise
            self._version = None
            current_version = self.version()
            if current_version == version:
                raise
        log.warning("%s now speaks emissions %s", self.endpoint, current_version, extra={"action": "chain_upgraded"})
        return self._query(current_version, method, fields)

    def _query(self, version: EmissionsVersion, method: str, fields: dict[str, object]) -> Any:
        em, method = emissions(version), _RENAMED.get((version, method), method)
        request = getattr(em, f"{method}Request")(**fields)
        return self._transport.call(
            f"emissions.{version}.QueryService/{method}", request, getattr(em, f"{method}Response")
        )


def _open_transport(endpoint: Endpoint, deadline: float) -> _Transport:
    if not endpoint.is_rest:
        return GrpcTransport(endpoint, deadline)
    return RestTransport(endpoint, deadline)
