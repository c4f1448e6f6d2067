"""The chain as one endpoint shows it: the chain's answers, changed by the faults of that endpoint.

This module changes the content of answers, the same way for gRPC and REST. `grpc_connection` and `rest_connection`
change how an answer is sent. A fault hides, delays or invents what the client gets; it never harms the chain behind the
endpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from google.protobuf.message import Message

from forecastd.chain.codec import tx_hash
from forecastd.chain.methods import METHODS
from forecastd.chain.types import BroadcastResult
from forecastd.localnet import emissions, service
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.faults import REQUEST_LEVELS, FaultLevel, FaultPlan, NodeFault
from forecastd.localnet.history import state_at
from forecastd.localnet.payload import TxRefusal
from forecastd.localnet.rules import Payer, check_ante
from forecastd.localnet.service import ChainView, RpcStatusError, broadcast_response
from forecastd.localnet.state import ChainState, LocalAccount
from forecastd.localnet.transactions import UnreadableTx, read_tx

_HANDLERS = service.HANDLERS | emissions.HANDLERS
_STATUS_ERRORS = {
    "rate-limit": ("RESOURCE_EXHAUSTED", "too many requests, try again later"),
    "unavailable": ("UNAVAILABLE", "upstream connect error or disconnect before headers"),
    "unauthorized": ("UNAUTHENTICATED", "an API key is required"),
    "internal": ("INTERNAL", "runtime error: invalid memory address or nil pointer dereference: panic"),
    "unimplemented": ("UNIMPLEMENTED", "unknown service"),
}
_REJECTIONS = {
    "mempool-full": ("sdk", 20, "number of txs 5000 (max: 5000): mempool is full"),
    "tx-cache": ("sdk", 19, "tx already exists in cache"),
    "panic": ("sdk", 111222, "recovered: runtime error: index out of range: panic"),
    "strange-code": ("wasm", 9999, "a refusal that is in no table"),
}


class NoResponse(Exception):
    """The request took effect, but the client must not get an answer."""


class EndpointView:
    """The chain as one endpoint shows it."""

    def __init__(self, chain: LocalChain, faults: Iterable[NodeFault] = ()) -> None:
        self.chain = chain
        self.set_faults(faults)

    def set_faults(self, faults: Iterable[NodeFault]) -> None:
        """Replace the faults and reset their counters."""
        faults = tuple(faults)
        misplaced = [str(fault) for fault in faults if not fault.kind.is_endpoint_fault]
        if misplaced:
            raise ValueError(f"faults of the chain, not of an endpoint: {', '.join(misplaced)}")
        self.plan = FaultPlan(faults)
        self._frozen_height: int | None = None

    def on_connection(self) -> NodeFault | None:
        """Count a connection and return the fault that applies to it."""
        active_faults = self.plan.select((FaultLevel.CONNECTION,), self.chain.state.height)
        return next((fault for fault in active_faults if fault.name != "refuse"), None)

    @property
    def refuses_connections(self) -> bool:
        """Whether the port must refuse connections at this height."""
        active_faults = self.plan.select((FaultLevel.CONNECTION,), self.chain.state.height) if self._may_refuse else ()
        return any(fault.name == "refuse" for fault in active_faults)

    @property
    def _may_refuse(self) -> bool:
        return any(fault.name == "refuse" for fault in self.plan.faults)

    def on_request(self, path: str) -> tuple[NodeFault, ...]:
        """Count a request for `package.Service/Method` and return the faults that apply to it."""
        return self.plan.select(REQUEST_LEVELS, self.chain.state.height, path.rpartition("/")[2])

    def answer(self, path: str, request: bytes, active_faults: Iterable[NodeFault]) -> Message:
        """The answer to a request, as a message.

        Raises:
            RpcStatusError: the endpoint refuses the request.
            NoResponse: the endpoint must stay silent.
        """
        faults = {fault.name: fault for fault in active_faults}
        for name, (status, text) in _STATUS_ERRORS.items():
            if name in faults:
                raise RpcStatusError(status, text)
        chain_view = self._chain_view(faults)
        service_name, _, name = path.strip("/").rpartition("/")
        method = METHODS.get(f"{service_name}/{name}")
        if method is None:
            raise RpcStatusError("UNIMPLEMENTED", f"unknown method {name[:64]} for service {service_name[:64]}")
        if method.version not in (None, chain_view.state.version):
            raise RpcStatusError("UNIMPLEMENTED", f"unknown service {service_name}")
        message = method.request.FromString(request)
        if name == "GetTx":
            self._check_index(chain_view, message.hash.upper(), faults)
        if name == "BroadcastTx":
            return self._broadcast(chain_view, message.tx_bytes, faults)
        return _HANDLERS[name](chain_view, message)

    def _chain_view(self, faults: dict[str, NodeFault]) -> ChainView:
        """The chain as the endpoint sees it."""
        state = self.chain.state
        if "frozen-height" in faults:
            self._frozen_height = state.height if self._frozen_height is None else self._frozen_height
            state = state_at(state, self._frozen_height)
        if "behind" in faults:
            state = state_at(state, self.chain.state.height - int(faults["behind"].number))
        if "wrong-chain-id" in faults:
            state = replace(state, chain_id=str(faults["wrong-chain-id"].value))
        return self.chain if state is self.chain.state else _AlternateChain(self.chain, state)

    def _check_index(self, chain_view: ChainView, hash_text: str, faults: dict[str, NodeFault]) -> None:
        """Raise RpcStatusError when the endpoint's index does not have the transaction."""
        if "no-index" in faults:
            raise RpcStatusError("INTERNAL", "transaction indexing is disabled")
        record = chain_view.state.txs.get(hash_text)
        if record is None:
            return
        index_late, behind = faults.get("index-late"), faults.get("index-behind")
        if (index_late is not None and self.chain.now() - record.time < index_late.number) or (
            behind is not None and chain_view.state.height - record.height < behind.number
        ):
            raise RpcStatusError("NOT_FOUND", f"tx not found: {hash_text[:64]}")

    def _broadcast(self, chain_view: ChainView, raw: bytes, faults: dict[str, NodeFault]) -> Message:
        answer = _fake_result(raw, faults) or chain_view.broadcast(raw)
        if "lose-answer" in faults:
            raise RpcStatusError("UNAVAILABLE", "connection reset by peer")
        if "hang-answer" in faults:
            raise NoResponse
        return broadcast_response(answer)


class _AlternateChain:
    """A node with another state than the chain's own, possibly of another chain."""

    def __init__(self, chain: LocalChain, state: ChainState) -> None:
        self._chain = chain
        self.state = state

    def account(self, address: str) -> LocalAccount | None:
        current = self._chain.account(address)
        return self.state.accounts.get(address, current)

    def simulate(self, raw: bytes) -> int | TxRefusal:
        return self._chain.simulate(raw, self.state)

    def broadcast(self, raw: bytes) -> BroadcastResult:
        """Check a transaction against this node's state, then pass it on to the chain. The chain's answer is ignored."""
        try:
            tx = read_tx(raw)
        except UnreadableTx as error:
            return BroadcastResult("sdk", 2, f"{error}: tx parse error", "")
        account = self.account(tx.sender)
        refusal = check_ante(self.state, tx, self.state.height + 1, Payer(account) if account else None)
        if refusal is not None:
            return BroadcastResult(refusal.codespace, refusal.code, refusal.log, tx.hash)
        if self.state.chain_id == self._chain.state.chain_id:
            self._chain.broadcast(raw)
        return BroadcastResult("", 0, "", tx.hash)


def _fake_result(raw: bytes, faults: dict[str, NodeFault]) -> BroadcastResult | None:
    """The answer of a node that does not accept the transaction."""
    hash_text = tx_hash(raw)
    if "drop" in faults:
        return BroadcastResult("", 0, "", hash_text)
    if "sequence-race" in faults:
        try:
            sequence = read_tx(raw).sequence
        except UnreadableTx:
            return None
        log = f"account sequence mismatch, expected {sequence + 1}, got {sequence}: incorrect account sequence"
        return BroadcastResult("sdk", 32, log, hash_text)
    rejection = next((rejection for fault, rejection in _REJECTIONS.items() if fault in faults), None)
    return None if rejection is None else BroadcastResult(*rejection, hash_text)
