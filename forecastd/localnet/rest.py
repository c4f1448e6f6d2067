"""The local node over REST, as the gateway of a real one: HTTP/1.1 and JSON in front of the same methods as gRPC.

It holds no method of its own. A path is looked up in the client's own table, its fields become the method's request, and the
answer is written as protobuf's JSON with the names of the .proto files. Errors are `{"code", "message", "details"}`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from urllib.parse import parse_qsl, unquote

from forecastd.chain.rest_routes import GRPC_STATUS_NAMES, ROUTES
from forecastd.chain.sdk import emissions, messages
from forecastd.localnet.service import RpcStatusError

_MAX_BODY_BYTES = 2**20  # of a request
MAX_HEADER_BYTES = 2**15
_HTTP_STATUS = {
    "CANCELLED": 499, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404, "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "UNAUTHENTICATED": 401,
}  # fmt: skip  # as grpc-gateway has them; 500 for every other
_GAS_PRICE = "feemarket.feemarket.v1.Query/GasPrice"

QueryHandler = Callable[[str, bytes], Any]
"""Gives the answer to `/package.Service/Method` as a message; raises Declined."""


class MalformedRequest(Exception):
    """The bytes are no HTTP request that is served here."""


def read_head(head: bytes) -> tuple[str, str, int]:
    """Method, target and body length of a request. Raises Malformed."""
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
    """The `package.Service/Method` of a request and the fields its path and query hold.

    Raises:
        Declined: there is none.
    """
    path, _, query = target.partition("?")
    for method, route in ROUTES.items():
        match = route.pattern.fullmatch(path) if route.verb == verb else None
        if match is not None:
            fields = {name: unquote(value) for name, value in match.groupdict().items()}
            return method, fields | dict(parse_qsl(query))
    raise RpcStatusError("UNIMPLEMENTED", "Not Implemented")  # what a real gateway says of a path it does not know


def answer_request(ask: QueryHandler, method: str, fields: dict[str, Any], body: bytes) -> dict[str, Any]:
    """The answer to a request as JSON. Raises Declined."""
    return _json(method, ask(f"/{method}", _request(method, fields, body)))


def error_response(error: RpcStatusError) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of a request that was declined."""
    return _HTTP_STATUS.get(error.status, 500), error_body(error.status, error.details)


def _request(method: str, fields: dict[str, Any], body: bytes) -> bytes:
    """A method's request in protobuf's bytes."""
    package, name = method.rpartition(".")[0], method.rpartition("/")[2]
    module = messages(package)
    request_class = getattr(module, f"{name}Request", None) or getattr(module, f"Query{name}Request")
    try:
        message_fields = {**(json.loads(body) if body else {}), **fields}
        message_fields.pop(
            "mode", None
        )  # a name the message class cannot read; every broadcast here is one of mode SYNC
        return bytes(request_class.from_dict(message_fields, ignore_unknown_fields=True))
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError, struct.error) as error:
        raise RpcStatusError("INVALID_ARGUMENT", f"the request is not readable: {type(error).__name__}") from error


def _json(method: str, reply: Any) -> dict[str, Any]:
    import betterproto2

    # What stands inside an Any is written by its own class, which has to be there by then.
    _ = messages("cosmos.crypto.secp256k1").PubKey, messages("cosmos.auth.v1beta1").BaseAccount
    for module in (emissions("v9"), emissions("v10")):
        _ = module.InsertWorkerPayloadRequest, module.RegisterRequest
    document: dict[str, Any] = reply.to_dict(casing=betterproto2.Casing.SNAKE, include_default_values=True)
    if method == _GAS_PRICE:  # protobuf has the decimal as an integer, JSON as a decimal
        document["price"]["amount"] = f"{Decimal(document['price']['amount']).scaleb(-18):.18f}"
    return document


def error_body(status: str, details: str) -> dict[str, Any]:
    """A gateway's error, by gRPC's name for it."""
    return {"code": GRPC_STATUS_NAMES.index(status), "message": details, "details": []}
