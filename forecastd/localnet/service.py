"""The gRPC methods of the local node that are not of the emissions module: blocks, accounts, fees, transactions.

A method is a function of the chain and the request's bytes that gives the answer as a message. Messages are read and
loaded when a method is first called, so that a node starts in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Protocol

from forecastd.chain.answers import Answer
from forecastd.chain.networks import DENOM
from forecastd.chain.sdk import messages
from forecastd.localnet.payload import Refusal
from forecastd.localnet.state import Account, State, TxRecord


class Seen(Protocol):
    """The chain as an endpoint sees it: `LocalChain` itself, or an older or other state of it."""

    state: State

    def account(self, address: str) -> Account | None: ...
    def simulate(self, raw: bytes) -> int | Refusal: ...
    def broadcast(self, raw: bytes) -> Answer: ...


Method = Callable[[Seen, bytes], Any]

NAME = "forecastd-localnet"


class Declined(Exception):
    """The node says no to a query. `status` is gRPC's name for why."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(details)
        self.status = status
        self.details = details


def node_info(chain: Seen, request: bytes) -> Any:
    del request
    tm, p2p = messages("cosmos.base.tendermint.v1beta1"), messages("tendermint.p2p")
    info = p2p.DefaultNodeInfo(network=chain.state.chain_id, moniker=NAME)
    return tm.GetNodeInfoResponse(default_node_info=info, application_version=tm.VersionInfo(name=NAME, app_name=NAME))


def latest_block(chain: Seen, request: bytes) -> Any:
    del request
    tm = messages("cosmos.base.tendermint.v1beta1")
    header = tm.Header(chain_id=chain.state.chain_id, height=chain.state.height, time=_moment(chain.state.time))
    return tm.GetLatestBlockResponse(sdk_block=tm.Block(header=header))


def account_info(chain: Seen, request: bytes) -> Any:
    auth = messages("cosmos.auth.v1beta1")
    address = auth.QueryAccountInfoRequest.parse(request).address
    return auth.QueryAccountInfoResponse(info=_base_account(_known(chain, address)))


def account(chain: Seen, request: bytes) -> Any:
    auth, any_message = messages("cosmos.auth.v1beta1"), messages("google.protobuf").Any
    found = _base_account(_known(chain, auth.QueryAccountRequest.parse(request).address))
    return auth.QueryAccountResponse(
        account=any_message(type_url="/cosmos.auth.v1beta1.BaseAccount", value=bytes(found))
    )


def balance(chain: Seen, request: bytes) -> Any:
    bank, base = messages("cosmos.bank.v1beta1"), messages("cosmos.base.v1beta1")
    asked = bank.QueryBalanceRequest.parse(request)
    found = chain.account(asked.address)
    amount = found.balance if found is not None and asked.denom == DENOM else 0
    return bank.QueryBalanceResponse(balance=base.Coin(denom=asked.denom, amount=str(amount)))


def gas_price(chain: Seen, request: bytes) -> Any:
    market, base = messages("feemarket.feemarket.v1"), messages("cosmos.base.v1beta1")
    denom = market.GasPriceRequest.parse(request).denom
    if denom != DENOM:
        raise Declined("INVALID_ARGUMENT", f"unknown denom {denom[:32]}")
    return market.GasPriceResponse(price=base.DecCoin(denom=DENOM, amount=str(chain.state.gas_price)))


def simulate(chain: Seen, request: bytes) -> Any:
    tx, abci = messages("cosmos.tx.v1beta1"), messages("cosmos.base.abci.v1beta1")
    asked = tx.SimulateRequest.parse(request)
    result = chain.simulate(asked.tx_bytes or (bytes(asked.tx) if asked.tx is not None else b""))
    if isinstance(result, Refusal):
        raise Declined("UNKNOWN", result.log)
    return tx.SimulateResponse(gas_info=abci.GasInfo(gas_used=result, gas_wanted=result), result=abci.Result())


def broadcast(chain: Seen, request: bytes) -> Any:
    tx, abci = messages("cosmos.tx.v1beta1"), messages("cosmos.base.abci.v1beta1")
    answer = chain.broadcast(tx.BroadcastTxRequest.parse(request).tx_bytes)
    response = abci.TxResponse(txhash=answer.tx_hash, codespace=answer.codespace, code=answer.code, raw_log=answer.log)
    return tx.BroadcastTxResponse(tx_response=response)


def get_tx(chain: Seen, request: bytes) -> Any:
    tx = messages("cosmos.tx.v1beta1")
    name = tx.GetTxRequest.parse(request).hash.upper()
    record = chain.state.txs.get(name)
    if record is None:
        raise Declined("NOT_FOUND", f"tx not found: {name[:64]}")
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


def _known(chain: Seen, address: str) -> Account:
    found = chain.account(address)
    if found is None:
        raise Declined("NOT_FOUND", f"account {address[:64]} not found")
    return found


def _base_account(found: Account) -> Any:
    auth, any_message = messages("cosmos.auth.v1beta1"), messages("google.protobuf").Any
    key = None
    if found.public_key:
        value = bytes(messages("cosmos.crypto.secp256k1").PubKey(key=found.public_key))
        key = any_message(type_url="/cosmos.crypto.secp256k1.PubKey", value=value)
    return auth.BaseAccount(address=found.address, pub_key=key, account_number=found.number, sequence=found.sequence)


def _tx_response(record: TxRecord) -> Any:
    return messages("cosmos.base.abci.v1beta1").TxResponse(
        height=record.height,
        txhash=record.tx_hash,
        codespace=record.codespace,
        code=record.code,
        raw_log=record.log,
        gas_wanted=record.gas_wanted,
        gas_used=record.gas_used,
        timestamp=_moment(record.time).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)
