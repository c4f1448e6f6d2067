"""Calls a node over one gRPC connection, with a total deadline per call.

A call fails in two ways: `UnusableReply` when the node was not reached or its answer is not usable, and `RpcError` when
the node answered with a refusal. Neither leaves `forecastd.chain`. grpcio connects: its deadline covers name lookup and
TLS, and it limits the size of what it reads.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError, Message

from forecastd.chain.endpoint import Endpoint
from forecastd.chain.methods import Method
from forecastd.errors import RetryLater

MAX_RESPONSE_BYTES = 4 * 2**20  # bytes
_MAX_SHOWN_CHARS = 300  # of a node's text in a message
# These statuses mean that no node answered, whatever replied in its place.
TRANSPORT_STATUSES = frozenset({
    "UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "INTERNAL", "CANCELLED", "DATA_LOSS", "ABORTED",
    "UNAUTHENTICATED", "PERMISSION_DENIED",
})  # fmt: skip
_HTTP_ERROR_TEXT = "http2 header with status"  # grpcio's text for an HTTP error of a proxy


class RpcError(Exception):
    """The node refused a call. `status` is the name of the gRPC status, `details` the node's text."""

    def __init__(self, status: str, details: str) -> None:
        super().__init__(f"{status}: {shorten(details)}")
        self.status = status
        self.details = details

    @property
    def is_not_found(self) -> bool:
        """Whether the node has no such item, by its status or, for older nodes, by its text."""
        return self.status == "NOT_FOUND" or "not found" in self.details.lower()


class UnusableReply(Exception):
    """The node was not reached, or this is not an answer of a node, or one whose content is not usable.

    The text is the cause alone: "an unreadable answer", "HTTP 502", "unavailable, connection refused".
    """


class NoUsableResponse(RetryLater):
    """A node gave no usable answer. `reason` is the cause alone, without the node's name."""

    def __init__(self, message: str | None = None, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or str(self)


class UnexpectedRefusal(NoUsableResponse):
    """A node is alive but refused a call that a working node never refuses."""


class GrpcTransport:
    """One gRPC connection, opened at the first call and again after a failure."""

    def __init__(self, endpoint: Endpoint, deadline: float) -> None:
        self.endpoint = endpoint
        self._deadline = deadline
        self._channel: Any = None

    def close(self) -> None:
        """Close the connection."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def call(self, method: Method, request: Message) -> Any:
        """Call a method and return its reply.

        Raises:
            UnusableReply: no usable answer within the deadline.
            RpcError: the node refused the call.
        """
        import grpc  # type: ignore[import-untyped]  # no stubs

        if self._channel is None:
            self._channel = self.endpoint.channel(MAX_RESPONSE_BYTES)
        try:
            raw = self._channel.unary_unary(f"/{method.name}")(request.SerializeToString(), timeout=self._deadline)
            return method.reply.FromString(raw)
        except (DecodeError, TypeError):  # grpcio returns None for a message that was cut off
            raise UnusableReply("an unreadable answer") from None
        except grpc.RpcError as error:
            status, details = error.code().name, str(error.details() or "")
            # grpcio adds these words around the cause
            details = details.rpartition("last error: ")[2].removeprefix("UNKNOWN: ")
            if status in TRANSPORT_STATUSES or _HTTP_ERROR_TEXT in details:
                # A connection that drops all data looks alive to grpcio: never wait on the same one again.
                self.close()
                raise UnusableReply(f"{status.lower().replace('_', ' ')}, {shorten(details)}") from error
            raise RpcError(status, details) from error
        except ValueError as error:  # another thread closed the connection
            raise UnusableReply("the connection was closed") from error


def shorten(text: object) -> str:
    """A node's text made fit for a message: printable, one line, bounded."""
    line = "".join(character if character.isprintable() else " " for character in str(text)[: _MAX_SHOWN_CHARS + 1])
    return line if len(line) <= _MAX_SHOWN_CHARS else line[:_MAX_SHOWN_CHARS] + "..."
