"""The REST gateway of the local node: HTTP/1.1 and JSON for the same methods as gRPC.

It has no methods of its own. A path is looked up in the client's route table, its fields become the method's request,
and the answer is written as protobuf's JSON with the names of the .proto files. Errors are `{"code", "message",
"details"}`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

from google.protobuf.message import Message

from forecastd.chain.methods import EMISSIONS_VERSIONS, GRPC_STATUS_NAMES, METHODS, Method
from forecastd.chain.proto.cosmos_pb2 import BaseAccount, PubKey
from forecastd.chain.proto.emissions_pb2 import InsertWorkerPayloadRequest, RegisterRequest
from forecastd.localnet.service import RpcStatusError

_MAX_BODY_BYTES = 2**20  # of a request
MAX_HEADER_BYTES = 2**15
# As in grpc-gateway; every other status is 500.
_HTTP_STATUS = {
    "CANCELLED": 499, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE":
    400, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "UNAUTHENTICATED": 401,
}  # fmt: skip
_GAS_PRICE = "feemarket.feemarket.v1.Query/GasPrice"

QueryHandler = Callable[[str, bytes], Message]
"""Returns the answer to `/package.Service/Method` as a message. Raises RpcStatusError."""


class MalformedRequest(Exception):
    """The bytes are not an HTTP request that this server supports."""


def read_head(head: bytes) -> tuple[str, str, int]:
    """Method, target and body length of a request. Raises MalformedRequest."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise MalformedRequest("not an HTTP/1 request")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length", "0")
    if "transfer-encoding" in headers or not length.isdigit() or len(length) > 9 or int(length) > _MAX_BODY_BYTES:
        raise MalformedRequest(f"a body needs a content-length of at most {_MAX_BODY_BYTES}")
    return words[0], words[1], int(length)


def find_route(verb: str, target: str) -> tuple[str, dict[str, Any]]:
    """The `package.Service/Method` of a request, and the fields in its path and query.

    Raises:
        RpcStatusError: there is no such route.
    """
    path, _, query = target.partition("?")
    for name, method in METHODS.items():
        match = method.pattern.fullmatch(path) if method.verb == verb else None
        if match is not None:
            fields = {field: unquote(value) for field, value in match.groupdict().items()}
            return name, fields | dict(parse_qsl(query))
    raise RpcStatusError("UNIMPLEMENTED", "Not Implemented")  # the answer of a real gateway for an unknown path


def answer_request(ask: QueryHandler, method: str, fields: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The answer to a request as JSON. Raises RpcStatusError."""
    known = METHODS[method]
    return _json(known, ask(f"/{method}", _request(known, fields, body)))


def error_response(error: RpcStatusError) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of a refused request."""
    return _HTTP_STATUS.get(error.status, 500), error_body(error.status, error.details)


def _request(method: Method, fields: dict[str, Any], body: bytes) -> bytes:
    """The bytes of the method's request."""
    from google.protobuf import json_format

    try:
        message_fields = {**(json.loads(body) if body else {}), **fields}
        request = json_format.ParseDict(message_fields, method.request(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, TypeError, RecursionError) as error:
        raise RpcStatusError("INVALID_ARGUMENT", f"cannot read the request: {type(error).__name__}") from error
    return bytes(request.SerializeToString())


class _AnyTypes:
    """The classes of what an `Any` holds here, by the names in its type URL."""

    _types: ClassVar[dict[str, Any]] = {
        "cosmos.crypto.secp256k1.PubKey": PubKey,
        "cosmos.auth.v1beta1.BaseAccount": BaseAccount,
        **{
            f"emissions.{version}.InsertWorkerPayloadRequest": InsertWorkerPayloadRequest
            for version in EMISSIONS_VERSIONS
        },
        **{f"emissions.{version}.RegisterRequest": RegisterRequest for version in EMISSIONS_VERSIONS},
    }

    def FindMessageTypeByName(self, full_name: str) -> Any:  # noqa: N802  # the name in protobuf's DescriptorPool
        """The descriptor of a class. Raises KeyError."""
        return self._types[full_name].DESCRIPTOR


def _json(method: Method, reply: Message) -> dict[str, Any]:
    from google.protobuf import json_format

    document: dict[str, Any] = json_format.MessageToDict(
        reply,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
        descriptor_pool=_AnyTypes(),
    )
    if method.name == _GAS_PRICE:  # an integer in protobuf, a decimal in JSON
        document["price"]["amount"] = f"{Decimal(document['price']['amount']).scaleb(-18):.18f}"
    return document


def error_body(status: str, details: str) -> dict[str, Any]:
    """The JSON of an error, from the name of its gRPC status."""
    return {"code": GRPC_STATUS_NAMES.index(status), "message": details, "details": []}
