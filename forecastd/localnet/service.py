"""The gRPC methods of the local node outside the emissions module: blocks, accounts, fees, transactions.

A method is a function of the chain and the request's bytes that returns the answer as a message.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from forecastd.chain.codec import SECP256K1_KEY
from forecastd.chain.networks import DENOM
from forecastd.chain.proto import cosmos_pb2 as cosmos
from forecastd.chain.types import BroadcastResult
from forecastd.localnet.payload import TxRefusal
from forecastd.localnet.state import ChainState, LocalAccount


class ChainView(Protocol):
    """The chain as an endpoint sees it: `LocalChain` itself, or another state of it."""

    state: ChainState

    def account(self, address: str) -> LocalAccount | None: ...
    def simulate(self, raw: bytes) -> int | TxRefusal: ...
    def broadcast(self, raw: bytes) -> BroadcastResult: ...


MethodHandler = Callable[[ChainView, bytes], Message]

MONIKER = "forecastd-localnet"


class RpcStatusError(Exception):
    """A refused query. `status` is the name of the gRPC status."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


def node_info(chain: ChainView, request: bytes) -> Message:
    del request
    return cosmos.GetNodeInfoResponse(
        default_node_info=cosmos.DefaultNodeInfo(network=chain.state.chain_id, moniker=MONIKER),
        application_version=cosmos.VersionInfo(name=MONIKER, app_name=MONIKER),
    )


def latest_block(chain: ChainView, request: bytes) -> Message:
    del request
    header = cosmos.Header(chain_id=chain.state.chain_id, height=chain.state.height)
    header.time.FromDatetime(datetime.fromtimestamp(chain.state.time, tz=UTC))
    return cosmos.GetLatestBlockResponse(sdk_block=cosmos.Block(header=header))


def account_info(chain: ChainView, request: bytes) -> Message:
    address = cosmos.QueryAccountInfoRequest.FromString(request).address
    return cosmos.QueryAccountInfoResponse(info=_base_account(_find_account(chain, address)))


def account(chain: ChainView, request: bytes) -> Message:
    base_account = _base_account(_find_account(chain, cosmos.QueryAccountRequest.FromString(request).address))
    value = base_account.SerializeToString()
    return cosmos.QueryAccountResponse(account=Any(type_url="/cosmos.auth.v1beta1.BaseAccount", value=value))


def balance(chain: ChainView, request: bytes) -> Message:
    query = cosmos.QueryBalanceRequest.FromString(request)
    local_account = chain.account(query.address)
    amount = local_account.balance if local_account is not None and query.denom == DENOM else 0
    return cosmos.QueryBalanceResponse(balance=cosmos.Coin(denom=query.denom, amount=str(amount)))


def gas_price(chain: ChainView, request: bytes) -> Message:
    denom = cosmos.GasPriceRequest.FromString(request).denom
    if denom != DENOM:
        raise RpcStatusError("INVALID_ARGUMENT", f"unknown denom {denom[:32]}")
    return cosmos.GasPriceResponse(price=cosmos.DecCoin(denom=DENOM, amount=str(chain.state.gas_price)))


def simulate(chain: ChainView, request: bytes) -> Message:
    query = cosmos.SimulateRequest.FromString(request)
    result = chain.simulate(query.tx_bytes or query.tx.SerializeToString())
    if isinstance(result, TxRefusal):
        raise RpcStatusError("UNKNOWN", result.log)
    return cosmos.SimulateResponse(gas_info=cosmos.GasInfo(gas_used=result, gas_wanted=result), result=cosmos.Result())


def broadcast(chain: ChainView, request: bytes) -> Message:
    return broadcast_response(chain.broadcast(cosmos.BroadcastTxRequest.FromString(request).tx_bytes))


def broadcast_response(answer: BroadcastResult) -> Message:
    """The reply to a broadcast."""
    response = cosmos.TxResponse(
        txhash=answer.tx_hash, codespace=answer.codespace, code=answer.code, raw_log=answer.log
    )
    return cosmos.BroadcastTxResponse(tx_response=response)


def get_tx(chain: ChainView, request: bytes) -> Message:
    tx_hash = cosmos.GetTxRequest.FromString(request).hash.upper()
    record = chain.state.txs.get(tx_hash)
    if record is None:
        raise RpcStatusError("NOT_FOUND", f"tx not found: {tx_hash[:64]}")
    response = cosmos.TxResponse(
        height=record.height,
        txhash=record.tx_hash,
        codespace=record.codespace,
        code=record.code,
        raw_log=record.log,
        gas_wanted=record.gas_wanted,
        gas_used=record.gas_used,
        timestamp=datetime.fromtimestamp(record.time, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    return cosmos.GetTxResponse(tx=cosmos.Tx.FromString(record.raw), tx_response=response)


METHODS: dict[str, MethodHandler] = {
    "/cosmos.base.tendermint.v1beta1.Service/GetNodeInfo": node_info,
    "/cosmos.base.tendermint.v1beta1.Service/GetLatestBlock": latest_block,
    "/cosmos.auth.v1beta1.Query/AccountInfo": account_info,
    "/cosmos.auth.v1beta1.Query/Account": account,
    "/cosmos.bank.v1beta1.Query/Balance": balance,
    "/feemarket.feemarket.v1.Query/GasPrice": gas_price,
    "/cosmos.tx.v1beta1.Service/Simulate": simulate,
    "/cosmos.tx.v1beta1.Service/BroadcastTx": broadcast,
    "/cosmos.tx.v1beta1.Service/GetTx": get_tx,
}


def _find_account(chain: ChainView, address: str) -> LocalAccount:
    local_account = chain.account(address)
    if local_account is None:
        raise RpcStatusError("NOT_FOUND", f"account {address[:64]} not found")
    return local_account


def _base_account(local_account: LocalAccount) -> Message:
    base_account = cosmos.BaseAccount(
        address=local_account.address, account_number=local_account.number, sequence=local_account.sequence
    )
    if local_account.public_key:
        value = cosmos.PubKey(key=local_account.public_key).SerializeToString()
        base_account.pub_key.CopyFrom(Any(type_url=SECP256K1_KEY, value=value))
    return base_account
