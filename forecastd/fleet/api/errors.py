"""Error responses and their log. Every error has one shape: `{"error": what is wrong, "fix": what to do}`.

Invariant: a response repeats what a client sent only if it is short and printable, and refused requests cannot fill
the disk with log lines: one line per kind of refusal and minute.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import Response

from forecastd.clock import Clock
from forecastd.fleet.documents import ErrorResponse

MAX_QUOTED = 80  # characters of what a client sent
LOG_INTERVAL_SECONDS = 60.0  # between two lines about the same kind of refusal

# The fix for an error that the framework raised.
FIXES: Mapping[int, str] = {
    404: "GET /openapi.json lists all paths.",
    405: "GET /openapi.json lists the methods of each path.",
}
DESCRIPTIONS: Mapping[int, str] = {
    400: "The body is not a feed.",
    401: "The API key is missing or unknown.",
    403: "The Host or the Origin of the request is not allowed.",
    404: "Not found.",
    408: "The body arrived too slowly.",
    409: "Another model reload is in progress.",
    413: "The body is too large.",
    415: "The body has a Content-Encoding.",
    422: "A parameter or a model is invalid.",
    429: "Too many requests in the last minute; Retry-After has the seconds to wait.",
    503: "Not available now; Retry-After has the seconds to wait.",
}

log = logging.getLogger(__name__)


class RequestRefused(HTTPException):
    """A request that is answered with an error.

    `error` and `fix` are sentences; `kind` is its stable name in the log.
    """

    def __init__(
        self, status: int, error: str, fix: str, *, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, error, dict(headers or {}))
        self.error, self.fix, self.kind = error, fix, kind or str(status)


def body_too_large(max_bytes: int) -> RequestRefused:
    """The refusal of a body that is larger than this."""
    message = f"The body is larger than {max_bytes >> 20} MB."
    return RequestRefused(413, message, "Send smaller batches, or raise FLEET_MAX_BODY_MB.")


class RefusalLog:
    """Logs refused requests, at most one line per kind and minute. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_logged: dict[str, float] = {}
        self._suppressed: Counter[str] = Counter()

    def record(self, error: RequestRefused, address: str) -> None:
        """Record a refused request of the client at this address. The kinds are a fixed set."""
        with self._lock:
            now, kind = self._clock.monotonic(), error.kind
            if now - self._last_logged.get(kind, -LOG_INTERVAL_SECONDS) < LOG_INTERVAL_SECONDS:
                self._suppressed[kind] += 1
                return
            self._last_logged[kind] = now
            suppressed = self._suppressed.pop(kind, 0)
        suffix = f" ({suppressed} more of this kind since the last line)" if suppressed else ""
        log.warning(
            "A request from %s was refused with %d: %s%s", address, error.status_code, error.error, suffix,
            extra={"action": "request_refused"},
        )  # fmt: skip


def error_response(status: int, error: str, fix: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a refused request."""
    return Response(orjson.dumps(ErrorResponse(error, fix)), status, dict(headers or {}), "application/json")


def to_response(error: HTTPException) -> Response:
    """The response for an exception of ours or of the framework."""
    if isinstance(error, RequestRefused):
        return error_response(error.status_code, error.error, error.fix, error.headers)
    fix = FIXES.get(error.status_code, "Correct the request.")
    return error_response(error.status_code, f"{str(error.detail).rstrip('.')}.", fix, error.headers)


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses and of those that every route may return."""
    return {
        status: {"model": ErrorResponse, "description": DESCRIPTIONS[status]} for status in (*statuses, 401, 403, 429)
    }


def quote(text: str) -> str:
    """A client's text for a response or a log line: short, with only printable characters."""
    plain = "".join(character if character.isprintable() else "?" for character in text[:MAX_QUOTED])
    return f"'{plain}{'...' if len(text) > MAX_QUOTED else ''}'"
