"""The client of one Allora node, over gRPC or REST. It is synchronous; every call has a total deadline.

Invariant: the chain id of the node is checked before any other answer is used. The version of the emissions module is
found by query, and again after an `UNIMPLEMENTED`, so that the client follows an upgrade of the chain while it runs.
Every method may raise `RetryLater` (no usable answer), and `NeedsHuman` when the node is on another chain.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message

from forecastd.chain.client import ChainClient, raise_refusal
from forecastd.chain.endpoint import Endpoint, parse_endpoint
from forecastd.chain.grpc_transport import (
    GrpcTransport,
    NoUsableResponse,
    RpcError,
    UnexpectedRefusal,
    UnusableReply,
    shorten,
)
from forecastd.chain.methods import EMISSIONS_VERSIONS, EmissionsVersion, Method, find_method, is_emissions
from forecastd.chain.proto.cosmos_pb2 import GetNodeInfoRequest
from forecastd.chain.proto.emissions_pb2 import GetNextTopicIdRequest
from forecastd.errors import NeedsHuman

CALL_TIMEOUT_SECONDS = 10.0  # total time for one call
T = TypeVar("T")

log = logging.getLogger(__name__)


class Transport(Protocol):
    """A connection to a node: gRPC or REST."""

    def call(self, method: Method, request: Message) -> Any: ...
    def close(self) -> None: ...


class WrongChain(NeedsHuman):
    """The endpoint is on another chain than expected. `chain_id` is the chain it is on."""

    def __init__(self, message: str | None = None, *, chain_id: str = "") -> None:
        super().__init__(message)
        self.chain_id = chain_id


class Node(ChainClient):
    """The client of one endpoint. It may be used again after `close`.

    `chain_id` is the expected chain; None accepts any.
    """

    def __init__(
        self, endpoint: str | Endpoint, *, chain_id: str | None = None, deadline: float = CALL_TIMEOUT_SECONDS
    ) -> None:
        """Create the client. Nothing is sent yet.

        Raises:
            NeedsHuman: `endpoint` is not a valid endpoint.
        """
        self.endpoint = parse_endpoint(endpoint) if isinstance(endpoint, str) else endpoint
        self._transport = _open_transport(self.endpoint, deadline)
        self._expected_chain_id = chain_id
        self._chain_checked = chain_id is None
        self._version: EmissionsVersion | None = None

    def close(self) -> None:
        self._transport.close()

    def ask(
        self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T] = raise_refusal
    ) -> T:
        if not self._chain_checked:
            self.chain_id()
        return self._ask(request, read, read_refusal)

    def chain_id(self) -> str:
        return self._ask(GetNodeInfoRequest(), self._read_chain_id, raise_refusal)

    def _read_chain_id(self, reply: Any) -> str:
        chain_id = str(reply.default_node_info.network)
        if not chain_id:
            raise UnusableReply("an answer without a chain id")
        self._chain_checked = self._expected_chain_id in (None, chain_id)
        if not self._chain_checked:
            shown_chain_id = shorten(chain_id)
            raise WrongChain(
                f"The node {self.endpoint} is on chain {shown_chain_id}, not on {self._expected_chain_id}. "
                "Correct RPC_ENDPOINTS or ALLORA_NETWORK; no transaction was sent to it.",
                chain_id=shown_chain_id,
            )
        return chain_id

    def version(self, *, refresh: bool = False) -> EmissionsVersion:
        """The version is cached; `refresh` queries the node again."""
        if self._version is not None and not refresh:
            return self._version
        if not self._chain_checked:
            self.chain_id()
        for version in EMISSIONS_VERSIONS:
            try:
                self._send(GetNextTopicIdRequest(), version)
            except RpcError as error:
                if error.status == "UNIMPLEMENTED":
                    continue
            self._version = version
            return version
        raise NeedsHuman(
            f"The node {self.endpoint} supports neither emissions v10 nor v9.  "
            "It is not an Allora node, or the chain was upgraded: install a newer forecastd."
        )

    def _ask(self, request: Message, read: Callable[[Any], T], read_refusal: Callable[[RpcError], T]) -> T:
        try:
            return read(self._call(request))
        except UnusableReply as error:
            raise self._no_usable_response(request, error) from error
        except RpcError as error:
            try:
                return read_refusal(error)
            except RpcError:
                reason = f"refused {_method_name(request)}: {shorten(error.details) or error.status}"
                raise UnexpectedRefusal(f"The node {self.endpoint} {reason}.", reason=reason) from error

    def _call(self, request: Message) -> Any:
        """The reply to a request, in the node's version of the emissions module. May raise RpcError."""
        if not is_emissions(request):
            return self._send(request)
        version = self.version()
        try:
            return self._send(request, version)
        except RpcError as error:
            if error.status != "UNIMPLEMENTED":
                raise
            self._version = None
            current_version = self.version()
            if current_version == version:
                raise
        log.warning("%s now speaks emissions %s", self.endpoint, current_version, extra={"action": "chain_upgraded"})
        return self._send(request, current_version)

    def _send(self, request: Message, version: EmissionsVersion | None = None) -> Any:
        try:
            return self._transport.call(find_method(request, version), request)
        except UnusableReply as error:
            raise self._no_usable_response(request, error) from error

    def _no_usable_response(self, request: Message, error: UnusableReply) -> NoUsableResponse:
        message = f"The node {self.endpoint} gave no usable answer to {_method_name(request)}: {error}."
        return NoUsableResponse(message, reason=str(error))


def _method_name(request: Message) -> str:
    return str(request.DESCRIPTOR.name).removeprefix("Query").removesuffix("Request")


def _open_transport(endpoint: Endpoint, deadline: float) -> Transport:
    if not endpoint.is_rest:
        return GrpcTransport(endpoint, deadline)
    from forecastd.chain.rest_transport import RestTransport

    return RestTransport(endpoint, deadline)
