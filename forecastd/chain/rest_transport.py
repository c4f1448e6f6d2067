"""Calls a node over REST: the same methods as over gRPC, through the gateway of a Cosmos node."""

from __future__ import annotations

import json
import struct
from typing import Any
from urllib.parse import quote

from forecastd.chain.endpoint import Endpoint
from forecastd.chain.grpc_transport import (
    MAX_RESPONSE_BYTES,
    TRANSPORT_STATUSES,
    RpcError,
    no_usable_response,
    shorten,
)
from forecastd.chain.rest_routes import GRPC_STATUS_NAMES, ROUTES, Route, select_fields
from forecastd.runtime.http import HttpClient, HttpRequestFailed, ResponseTooLarge

_HTTP_NOT_IMPLEMENTED = 501


class UnusableResponse(Exception):
    """The HTTP response is not an answer of a node. The text says what it is."""


class RestTransport:
    """REST calls to one endpoint."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        headers = {"Content-Type": "application/json"}
        self._client = HttpClient(endpoint.url, name=str(endpoint), headers=headers, max_bytes=MAX_RESPONSE_BYTES)

    def close(self) -> None:
        """Close the connections. Calls in progress fail at once; a later call opens new connections."""
        self._client.close()

    def call(self, method: str, request: Any, reply: Any) -> Any:
        """Call `package.Service/Method` and parse the answer as a message of the class `reply`.

        Raises:
            RetryLater: no usable answer within the deadline.
            RpcError: the node refused the call.
        """
        response = select_fields(self.send(method, request), ROUTES[method].response_fields)
        try:
            # Serialized and parsed once more, so that no number exceeds the range of its protobuf type.
            return reply.parse(bytes(reply.from_dict(response, ignore_unknown_fields=True)))
        except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error):
            raise no_usable_response(self.endpoint, method, "an unreadable answer") from None

    def send(self, method: str, request: Any) -> dict[str, Any]:
        """Like `call`, but returns the JSON of the answer."""
        route = ROUTES[method]
        path, body = _request(route, request)
        try:
            response = self._client.request(route.verb, path, body=body, deadline=self._deadline)
            return read_response(response.status, response.body)
        except HttpRequestFailed as error:
            raise no_usable_response(self.endpoint, method, error.problem) from None
        except ResponseTooLarge:
            raise no_usable_response(self.endpoint, method, f"more than {MAX_RESPONSE_BYTES >> 20} MB") from None
        except UnusableResponse as error:
            raise no_usable_response(self.endpoint, method, str(error)) from None


def read_response(status: int, body: bytes) -> dict[str, Any]:
    """Parse the answer of a node's gateway.

    Raises:
        RpcError: the node refused the call.
        UnusableResponse: it is not an answer of a node, but a proxy's page, a rate limit or a truncated answer.
    """
    try:
        response = json.loads(body)
    except (ValueError, RecursionError):
        response = None
    if isinstance(response, dict):
        code, text = response.get("code"), response.get("message")
        if isinstance(code, int) and isinstance(text, str) and code:
            name = GRPC_STATUS_NAMES[code] if 0 < code < len(GRPC_STATUS_NAMES) else "UNKNOWN"
            if name in TRANSPORT_STATUSES:
                raise UnusableResponse(f"{name.lower().replace('_', ' ')}, {shorten(text)}")
            raise RpcError(name, text)
        if status == 200:
            return response
    if status == _HTTP_NOT_IMPLEMENTED:
        raise RpcError("UNIMPLEMENTED", f"HTTP {status}")
    if status == 429:
        raise UnusableResponse("HTTP 429, too many requests")
    raise UnusableResponse(f"HTTP {status}" + (" with something that is not JSON" if status == 200 else ""))


def _request(route: Route, request: Any) -> tuple[str, bytes | None]:
    """The path and the body of a request."""
    if isinstance(request, bytes):  # a request without fields
        return route.path, None
    import betterproto2

    def fields(*, include_defaults: bool) -> dict[str, Any]:
        message_fields: dict[str, Any] = request.to_dict(
            casing=betterproto2.Casing.SNAKE, include_default_values=include_defaults
        )
        return message_fields

    if route.verb == "POST":
        return route.path, json.dumps(fields(include_defaults=False)).encode()
    values = {name: quote(str(value), safe="") for name, value in fields(include_defaults=True).items()}
    return route.path.format_map(values), None
