"""The gRPC methods of the local node outside the emissions module: blocks, accounts, fees, transactions.

A method is a function of the chain and the request that returns the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.any_pb2 import Any as ProtoAny
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


MethodHandler = Callable[[ChainView, Any], Message]
"""Takes the chain and the request; returns the answer. It may raise RpcStatusError."""

MONIKER = "forecastd-localnet"


class RpcStatusError(Exception):
    """A refused query. `status` is the name of the gRPC status."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


def node_info(chain: ChainView, request: Any) -> Message:
    del request
    return cosmos.GetNodeInfoResponse(
        default_node_info=cosmos.DefaultNodeInfo(network=chain.state.chain_id, moniker=MONIKER),
        application_version=cosmos.VersionInfo(name=MONIKER, app_name=MONIKER),
    )


def latest_block(chain: ChainView, request: Any) -> Message:
    del request
    header = cosmos.Header(chain_id=chain.state.chain_id, height=chain.state.height)
    header.time.FromDatetime(datetime.fromtimestamp(chain.state.time, tz=UTC))
    return cosmos.GetLatestBlockResponse(sdk_block=cosmos.Block(header=header))


def account_info(chain: ChainView, request: Any) -> Message:
    return cosmos.QueryAccountInfoResponse(info=_base_account(_find_account(chain, request.address)))


def account(chain: ChainView, request: Any) -> Message:
    value = _base_account(_find_account(chain, request.address)).SerializeToString()
    return cosmos.QueryAccountResponse(account=ProtoAny(type_url="/cosmos.auth.v1beta1.BaseAccount", value=value))


def balance(chain: ChainView, request: Any) -> Message:
    local_account = chain.account(request.address)
    amount = local_account.balance if local_account is not None and request.denom == DENOM else 0
    return cosmos.QueryBalanceResponse(balance=cosmos.Coin(denom=request.denom, amount=str(amount)))


def gas_price(chain: ChainView, request: Any) -> Message:
    if request.denom != DENOM:
        raise RpcStatusError("INVALID_ARGUMENT", f"unknown denom {request.denom[:32]}")
    return cosmos.GasPriceResponse(price=cosmos.DecCoin(denom=DENOM, amount=str(chain.state.gas_price)))


def simulate(chain: ChainView, request: Any) -> Message:
    result = chain.simulate(request.tx_bytes or request.tx.SerializeToString())
    if isinstance(result, TxRefusal):
        raise RpcStatusError("UNKNOWN", result.log)
    return cosmos.SimulateResponse(gas_info=cosmos.GasInfo(gas_used=result, gas_wanted=result), result=cosmos.Result())


def broadcast(chain: ChainView, request: Any) -> Message:
    return broadcast_response(chain.broadcast(request.tx_bytes))


def broadcast_response(answer: BroadcastResult) -> Message:
    """The reply to a broadcast."""
    response = cosmos.TxResponse(
        txhash=answer.tx_hash, codespace=answer.codespace, code=answer.code, raw_log=answer.log
    )
    return cosmos.BroadcastTxResponse(tx_response=response)


def get_tx(chain: ChainView, request: Any) -> Message:
    tx_hash = request.hash.upper()
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


HANDLERS: dict[str, MethodHandler] = {
    "GetNodeInfo": node_info,
    "GetLatestBlock": latest_block,
    "AccountInfo": account_info,
    "Account": account,
    "Balance": balance,
    "GasPrice": gas_price,
    "Simulate": simulate,
    "BroadcastTx": broadcast,
    "GetTx": get_tx,
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
        base_account.pub_key.CopyFrom(ProtoAny(type_url=SECP256K1_KEY, value=value))
    return base_account
