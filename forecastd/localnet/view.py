"""What one endpoint knows and says: the chain's answers, changed by the faults of that endpoint alone.

Everything here is about content and is the same over gRPC and REST; how an answer travels is decided in `grpcwire` and
`restwire`. The chain behind the endpoint is never harmed: a fault hides, delays or invents what the caller is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from forecastd.chain.answers import Answer
from forecastd.chain.codec import tx_hash
from forecastd.chain.sdk import messages
from forecastd.localnet import emissions
from forecastd.localnet.chain import LocalChain
from forecastd.localnet.faults import OF_REQUEST, Fault, Level, Plan
from forecastd.localnet.history import past
from forecastd.localnet.payload import Refusal
from forecastd.localnet.rules import Payer, check_ante
from forecastd.localnet.service import METHODS, Declined, Seen
from forecastd.localnet.state import Account, State
from forecastd.localnet.txs import Unreadable, read_tx

_BROADCAST, _GET_TX = "BroadcastTx", "GetTx"
_STATUS = {
    "rate-limit": ("RESOURCE_EXHAUSTED", "too many requests, try again later"),
    "unavailable": ("UNAVAILABLE", "upstream connect error or disconnect before headers"),
    "unauthorized": ("UNAUTHENTICATED", "an API key is required"),
    "internal": ("INTERNAL", "runtime error: invalid memory address or nil pointer dereference: panic"),
    "unimplemented": ("UNIMPLEMENTED", "unknown service"),
}
_NOT_TAKEN = {
    "mempool-full": ("sdk", 20, "number of txs 5000 (max: 5000): mempool is full"),
    "tx-cache": ("sdk", 19, "tx already exists in cache"),
    "panic": ("sdk", 111222, "recovered: runtime error: index out of range: panic"),
    "strange-code": ("wasm", 9999, "a refusal that no table has"),
}


class NeverAnswered(Exception):
    """The request had its effect, and the caller is to hear nothing."""


class View:
    """The chain as one endpoint shows it."""

    def __init__(self, chain: LocalChain, faults: Iterable[Fault] = ()) -> None:
        self.chain = chain
        self.set_faults(faults)

    def set_faults(self, faults: Iterable[Fault]) -> None:
        """Have these faults from now on, with counts that begin anew."""
        faults = tuple(faults)
        wrong = [str(fault) for fault in faults if not fault.kind.of_endpoint]
        if wrong:
            raise ValueError(f"faults of the chain, not of an endpoint: {', '.join(wrong)}")
        self.plan = Plan(faults)
        self._frozen: int | None = None

    def on_connection(self) -> Fault | None:
        """Count a connection; the fault it gets."""
        struck = self.plan.strike((Level.CONNECTION,), self.chain.state.height)
        return next((fault for fault in struck if fault.name != "refuse"), None)

    @property
    def refuses(self) -> bool:
        """Whether nothing is to listen at this height."""
        struck = self.plan.strike((Level.CONNECTION,), self.chain.state.height) if self._may_refuse else ()
        return any(fault.name == "refuse" for fault in struck)

    @property
    def _may_refuse(self) -> bool:
        return any(fault.name == "refuse" for fault in self.plan.faults)

    def on_request(self, path: str) -> tuple[Fault, ...]:
        """Count a request for `package.Service/Method`; the faults it gets."""
        return self.plan.strike(OF_REQUEST, self.chain.state.height, path.rpartition("/")[2])

    def answer(self, path: str, request: bytes, struck: Iterable[Fault]) -> Any:
        """The answer to a request, as a message.

        Raises:
            Declined: the endpoint says no.
            NeverAnswered: it must stay silent.
        """
        faults = {fault.name: fault for fault in struck}
        for name, (status, text) in _STATUS.items():
            if name in faults:
                raise Declined(status, text)
        seen = self._seen(faults)
        method = _METHODS.get(path)
        if method is None:
            service, _, name = path.strip("/").rpartition("/")
            raise Declined("UNIMPLEMENTED", f"unknown method {name[:64]} for service {service[:64]}")
        if path.endswith(f"/{_GET_TX}"):
            self._check_index(seen, request, faults)
        if path.endswith(f"/{_BROADCAST}"):
            return self._broadcast(seen, request, faults)
        return method(seen, request)

    def _seen(self, faults: dict[str, Fault]) -> Seen:
        """The chain as the endpoint knows it."""
        state = self.chain.state
        if "frozen-height" in faults:
            self._frozen = state.height if self._frozen is None else self._frozen
            state = past(state, self._frozen)
        if "behind" in faults:
            state = past(state, self.chain.state.height - int(faults["behind"].number))
        if "wrong-chain-id" in faults:
            state = replace(state, chain_id=str(faults["wrong-chain-id"].value))
        return self.chain if state is self.chain.state else _Other(self.chain, state)

    def _check_index(self, seen: Seen, request: bytes, faults: dict[str, Fault]) -> None:
        """Whether the endpoint's index has the transaction."""
        if "no-index" in faults:
            raise Declined("INTERNAL", "transaction indexing is disabled")
        name = str(messages("cosmos.tx.v1beta1").GetTxRequest.parse(request).hash).upper()
        record = seen.state.txs.get(name)
        if record is None:
            return
        late, behind = faults.get("index-late"), faults.get("index-behind")
        if (late is not None and self.chain.now() - record.time < late.number) or (
            behind is not None and seen.state.height - record.height < behind.number
        ):
            raise Declined("NOT_FOUND", f"tx not found: {name[:64]}")

    def _broadcast(self, seen: Seen, request: bytes, faults: dict[str, Fault]) -> Any:
        tx, abci = messages("cosmos.tx.v1beta1"), messages("cosmos.base.abci.v1beta1")
        raw = tx.BroadcastTxRequest.parse(request).tx_bytes
        answer = _invented(raw, faults) or seen.broadcast(raw)
        if "lose-answer" in faults:
            raise Declined("UNAVAILABLE", "connection reset by peer")
        if "hang-answer" in faults:
            raise NeverAnswered
        told = abci.TxResponse(txhash=answer.tx_hash, codespace=answer.codespace, code=answer.code, raw_log=answer.log)
        return tx.BroadcastTxResponse(tx_response=told)


class _Other:
    """A node of the chain, or of another one, that knows another state than the chain's own."""

    def __init__(self, chain: LocalChain, state: State) -> None:
        self._chain = chain
        self.state = state

    def account(self, address: str) -> Account | None:
        found = self._chain.account(address)
        return self.state.accounts.get(address, found)

    def simulate(self, raw: bytes) -> int | Refusal:
        return self._chain.simulate(raw, self.state)

    def broadcast(self, raw: bytes) -> Answer:
        """Checked by what this node knows; then passed on, whatever the rest of the chain makes of it."""
        try:
            tx = read_tx(raw)
        except Unreadable as error:
            return Answer("sdk", 2, f"{error}: tx parse error", "")
        account = self.account(tx.sender)
        refusal = check_ante(self.state, tx, self.state.height + 1, Payer(account) if account else None)
        if refusal is not None:
            return Answer(refusal.codespace, refusal.code, refusal.log, tx.hash)
        if self.state.chain_id == self._chain.state.chain_id:
            self._chain.broadcast(raw)
        return Answer("", 0, "", tx.hash)


def _invented(raw: bytes, faults: dict[str, Fault]) -> Answer | None:
    """The answer of a node that does not take the transaction."""
    name = tx_hash(raw)
    if "drop" in faults:
        return Answer("", 0, "", name)
    if "sequence-race" in faults:
        try:
            sequence = read_tx(raw).sequence
        except Unreadable:
            return None
        log = f"account sequence mismatch, expected {sequence + 1}, got {sequence}: incorrect account sequence"
        return Answer("sdk", 32, log, name)
    told = next((told for fault, told in _NOT_TAKEN.items() if fault in faults), None)
    return None if told is None else Answer(*told, name)


def _query(version: str, method: str) -> Callable[[Seen, bytes], Any]:
    return lambda chain, request: emissions.answer(chain, version, method, request)


_METHODS: dict[str, Callable[[Seen, bytes], Any]] = METHODS | {
    f"/emissions.{version}.QueryService/{method}": _query(version, method)
    for version in ("v9", "v10")
    for method in emissions.QUERIES
}
