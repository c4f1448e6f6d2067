"""Bytes to a node and back: one gRPC connection, a total deadline a call, and the two ways a call can fail.

A node that could not be reached or made no sense is `RetryLater`; a node that was reached and said no is `Refused`,
which never leaves `forecastd.chain`. grpcio does the connecting: its deadline covers name lookup and TLS, and it bounds
what it reads.
"""

from __future__ import annotations

import struct
from typing import Any

from forecastd.chain.endpoint import Endpoint
from forecastd.errors import RetryLater

MAX_RESPONSE_BYTES = 4 * 2**20  # bytes
_MAX_SHOWN_CHARS = 300  # characters of a node's text that a message repeats
# What these mean is that no node answered, whatever stands in its place.
TRANSPORT_STATUSES = frozenset({
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "DATA_LOSS", "ABORTED",
    "UNAUTHENTICATED", "PERMISSION_DENIED",
})  # fmt: skip
_HTTP_ERROR_TEXT = "http2 header with status"  # grpcio's words for an HTTP error of a proxy


class RpcError(Exception):
    """The node answered with a gRPC error that is its opinion. `status` is gRPC's name, `details` the node's text."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status}: {shorten(details)}")
        self.status = status
        self.details = details

    @property
    def is_not_found(self) -> bool:
        """Whether the node said that it has no such thing, by its code or, as older nodes do, by its text."""
        return self.status == "NOT_FOUND" or "not found" in self.details.lower()


class NoUsableResponse(RetryLater):
    """A node gave no usable answer. `why` is the cause alone, without the node's name."""

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or str(self)


class UnexpectedRefusal(NoUsableResponse):
    """A node is alive and refused what no sound node refuses."""


class GrpcTransport:
    """One gRPC connection, made at the first call and again after a failure."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self._channel: Any = None

    def close(self) -> None:
        """Let go of the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def call(self, method: str, request: Any, reply: Any) -> Any:
        """Call `package.Service/Method` and read its answer as a message of the class `reply`.

        `request` is a message, or its bytes.

        Raises:
            RetryLater: no usable answer within the deadline.
            Refused: the node said no.
        """
        raw = self.send(method, request)
        try:
            return reply.parse(raw)
        except (ValueError, TypeError, LookupError, AttributeError, EOFError, OverflowError, struct.error):
            # betterproto2 has no error of its own for bytes that are no message.
            raise no_usable_response(self.endpoint, method, "an answer that is not readable") from None

    def send(self, method: str, request: Any) -> bytes:
        """As `call`, with the answer's bytes as they came."""
        import grpc  # type: ignore[import-untyped]  # no stubs

        if self._channel is None:
            self._channel = self.endpoint.channel(MAX_RESPONSE_BYTES)
        try:
            raw: bytes = self._channel.unary_unary(f"/{method}")(bytes(request), timeout=self._deadline)
        except grpc.RpcError as error:
            status, details = error.code().name, str(error.details() or "")
            details = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")  # grpcio's words around the cause
            if status in TRANSPORT_STATUSES or _HTTP_ERROR_TEXT in details:
                # A connection that swallows everything looks alive to grpcio: never wait on the same one again.
                self.close()
                raise no_usable_response(
                    self.endpoint, method, f"{status.lower().replace('_', ' ')}, {shorten(details)}"
                ) from error
            raise RpcError(status, details) from error
        except ValueError as error:  # another thread closed the connection meanwhile
            raise no_usable_response(self.endpoint, method, "the connection was closed") from error
        return raw


def no_usable_response(endpoint: Endpoint, method: str, reason: str) -> NoUsableResponse:
    """The error for an answer that cannot be used."""
    return NoUsableResponse(
        f"The node {endpoint} gave no usable answer to {_method_name(method)}: {reason}.", reason=reason
    )


def unexpected_refusal(endpoint: Endpoint, method: str, error: RpcError) -> UnexpectedRefusal:
    """The error for a refusal of something no sound node refuses."""
    reason = shorten(error.details) or error.status
    return UnexpectedRefusal(
        f"The node {endpoint} refused {_method_name(method)}: {reason}.",
        reason=f"refused {_method_name(method)}: {reason}",
    )


def shorten(text: object) -> str:
    """A node's text, fit for a message: printable, one line, bounded."""
    line = "".join(character if character.isprintable() else " " for character in str(text)[: _MAX_SHOWN_CHARS + 1])
    return line if len(line) <= _MAX_SHOWN_CHARS else line[:_MAX_SHOWN_CHARS] + "..."


def _method_name(method: str) -> str:
    return method.rpartition("/")[2]
