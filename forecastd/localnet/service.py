"""The gRPC methods of the local node outside the emissions module: blocks, accounts, fees, transactions.

A method is a function of the chain and the request's bytes that returns the answer as a message. Message classes are
loaded when a method is first called, so that a node starts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from forecastd.chain.networks import DENOM
from forecastd.chain.sdk import messages
from forecastd.chain.types import BroadcastResult
from forecastd.localnet.payload import TxRefusal
from forecastd.localnet.state import ChainState, LocalAccount, TxRecord


class ChainView(Protocol):
    """The chain as an endpoint sees it: `LocalChain` itself, or another state of it."""

    state: ChainState

    def account(self, address: str) -> LocalAccount | None: ...
    def simulate(self, raw: bytes) -> int | TxRefusal: ...
    def broadcast(self, raw: bytes) -> BroadcastResult: ...


Method = Callable[[ChainView, bytes], Any]

MONIKER = "forecastd-localnet"


class RpcStatusError(Exception):
    """A refused query. `status` is the name of the gRPC status."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


def node_info(chain: ChainView, request: bytes) -> Any:
    del request
    tm, p2p = messages("cosmos.base.tendermint.v1beta1"), messages("tendermint.p2p")
    info = p2p.DefaultNodeInfo(network=chain.state.chain_id, moniker=MONIKER)
    return tm.GetNodeInfoResponse(
        default_node_info=info, application_version=tm.VersionInfo(name=MONIKER, app_name=MONIKER)
    )


def latest_block(chain: ChainView, request: bytes) -> Any:
    del request
    tm = messages("cosmos.base.tendermint.v1beta1")
    header = tm.Header(chain_id=chain.state.chain_id, height=chain.state.height, time=_to_datetime(chain.state.time))
    return tm.GetLatestBlockResponse(sdk_block=tm.Block(header=header))


def account_info(chain: ChainView, request: bytes) -> Any:
    auth = messages("cosmos.auth.v1beta1")
    address = auth.QueryAccountInfoRequest.parse(request).address
    return auth.QueryAccountInfoResponse(info=_base_account(_find_account(chain, address)))


def account(chain: ChainView, request: bytes) -> Any:
    auth, any_message = messages("cosmos.auth.v1beta1"), messages("google.protobuf").Any
    base_account = _base_account(_find_account(chain, auth.QueryAccountRequest.parse(request).address))
    return auth.QueryAccountResponse(
        account=any_message(type_url="/cosmos.auth.v1beta1.BaseAccount", value=bytes(base_account))
    )


def balance(chain: ChainView, request: bytes) -> Any:
    bank, base = messages("cosmos.bank.v1beta1"), messages("cosmos.base.v1beta1")
    query = bank.QueryBalanceRequest.parse(request)
    local_account = chain.account(query.address)
    amount = local_account.balance if local_account is not None and query.denom == DENOM else 0
    return bank.QueryBalanceResponse(balance=base.Coin(denom=query.denom, amount=str(amount)))


def gas_price(chain: ChainView, request: bytes) -> Any:
    market, base = messages("feemarket.feemarket.v1"), messages("cosmos.base.v1beta1")
    denom = market.GasPriceRequest.parse(request).denom
    if denom != DENOM:
        raise RpcStatusError("INVALID_ARGUMENT", f"unknown denom {denom[:32]}")
    return market.GasPriceResponse(price=base.DecCoin(denom=DENOM, amount=str(chain.state.gas_price)))


def simulate(chain: ChainView, request: bytes) -> Any:
    tx, abci = messages("cosmos.tx.v1beta1"), messages("cosmos.base.abci.v1beta1")
    query = tx.SimulateRequest.parse(request)
    result = chain.simulate(query.tx_bytes or (bytes(query.tx) if query.tx is not None else b""))
    if isinstance(result, TxRefusal):
        raise RpcStatusError("UNKNOWN", result.log)
    return tx.SimulateResponse(gas_info=abci.GasInfo(gas_used=result, gas_wanted=result), result=abci.Result())


def broadcast(chain: ChainView, request: bytes) -> Any:
    tx, abci = messages("cosmos.tx.v1beta1"), messages("cosmos.base.abci.v1beta1")
    answer = chain.broadcast(tx.BroadcastTxRequest.parse(request).tx_bytes)
    response = abci.TxResponse(txhash=answer.tx_hash, codespace=answer.codespace, code=answer.code, raw_log=answer.log)
    return tx.BroadcastTxResponse(tx_response=response)


def get_tx(chain: ChainView, request: bytes) -> Any:
    tx = messages("cosmos.tx.v1beta1")
    tx_hash = tx.GetTxRequest.parse(request).hash.upper()
    record = chain.state.txs.get(tx_hash)
    if record is None:
        raise RpcStatusError("NOT_FOUND", f"tx not found: {tx_hash[:64]}")
    return tx.GetTxResponse(tx=tx.Tx.parse(record.raw), tx_response=_tx_response(record))


METHODS: dict[str, Method] = {
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


def _base_account(local_account: LocalAccount) -> Any:
    auth, any_message = messages("cosmos.auth.v1beta1"), messages("google.protobuf").Any
    key = None
    if local_account.public_key:
        value = bytes(messages("cosmos.crypto.secp256k1").PubKey(key=local_account.public_key))
        key = any_message(type_url="/cosmos.crypto.secp256k1.PubKey", value=value)
    return auth.BaseAccount(
        address=local_account.address, pub_key=key, account_number=local_account.number, sequence=local_account.sequence
    )


def _tx_response(record: TxRecord) -> Any:
    return messages("cosmos.base.abci.v1beta1").TxResponse(
        height=record.height,
        txhash=record.tx_hash,
        codespace=record.codespace,
        code=record.code,
        raw_log=record.log,
        gas_wanted=record.gas_wanted,
        gas_used=record.gas_used,
        timestamp=_to_datetime(record.time).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _to_datetime(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
