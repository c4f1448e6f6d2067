"""Calls a node over REST: the same methods as over gRPC, through the gateway of a Cosmos node."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from google.protobuf import json_format
from google.protobuf.message import Message

from forecastd.chain.endpoint import Endpoint
from forecastd.chain.grpc_transport import (
    MAX_RESPONSE_BYTES,
    TRANSPORT_STATUSES,
    RpcError,
    UnusableReply,
    shorten,
)
from forecastd.chain.methods import GRPC_STATUS_NAMES, Method
from forecastd.runtime.http import HttpClient, HttpRequestFailed, ResponseTooLarge

_HTTP_NOT_IMPLEMENTED = 501


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

    def call(self, method: Method, request: Message) -> Any:
        """Call a method and return its reply.

        Raises:
            UnusableReply: no usable answer within the deadline.
            RpcError: the node refused the call.
        """
        path, body = _request(method, request)
        try:
            response = self._client.request(method.verb, path, body=body, deadline=self._deadline)
            document = without_any(read_response(response.status, response.body), method.reply.DESCRIPTOR)
            return json_format.ParseDict(document, method.reply(), ignore_unknown_fields=True)
        except HttpRequestFailed as error:
            raise UnusableReply(error.problem) from None
        except ResponseTooLarge:
            raise UnusableReply(f"more than {MAX_RESPONSE_BYTES >> 20} MB") from None
        except json_format.ParseError:
            raise UnusableReply("an unreadable answer") from None


def read_response(status: int, body: bytes) -> dict[str, Any]:
    """Parse the answer of a node's gateway.

    Raises:
        RpcError: the node refused the call.
        UnusableReply: it is not an answer of a node, but a proxy's page, a rate limit or a truncated answer.
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
                raise UnusableReply(f"{name.lower().replace('_', ' ')}, {shorten(text)}")
            raise RpcError(name, text)
        if status == 200:
            return response
    if status == _HTTP_NOT_IMPLEMENTED:
        raise RpcError("UNIMPLEMENTED", f"HTTP {status}")
    if status == 429:
        raise UnusableReply("HTTP 429, too many requests")
    raise UnusableReply(f"HTTP {status}" + (" with something that is not JSON" if status == 200 else ""))


def without_any(document: Any, descriptor: Any) -> Any:
    """The JSON of a message without its `Any` fields: their content may be of types that are not known here."""
    if isinstance(document, list):
        return [without_any(item, descriptor) for item in document]
    if not isinstance(document, dict):
        return document
    content = {}
    for name, value in document.items():
        field = descriptor.fields_by_name.get(name)
        if field is None or field.message_type is None:
            content[name] = value
        elif field.message_type.full_name != "google.protobuf.Any":
            content[name] = without_any(value, field.message_type)
    return content


def _request(method: Method, request: Message) -> tuple[str, bytes | None]:
    """The path and the body of a request."""
    fields = json_format.MessageToDict(
        request, preserving_proto_field_name=True, always_print_fields_with_no_presence=method.verb == "GET"
    )
    if method.verb == "POST":
        return method.path, json.dumps(fields).encode()
    return method.path.format_map({name: quote(str(value), safe="") for name, value in fields.items()}), None
