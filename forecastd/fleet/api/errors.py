"""Error responses and their log. Every error has one shape: `{"error": what is wrong, "fix": what to do}`.

Invariant: a response repeats what a client sent only if it is short and printable, and refused requests cannot fill
the disk with log lines: one line per kind of refusal and minute.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response

from forecastd.clock import Clock

MAX_QUOTED = 80  # characters of what a client sent
LOG_INTERVAL_SECONDS = 60.0  # between two lines about the same kind of refusal

# The fix for an error that the framework raised.
FIXES: Mapping[int, str] = {
    404: "GET /openapi.json lists all paths.",
    405: "GET /openapi.json lists the methods of each path.",
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


class RefusalLog:
    """Logs refused requests, at most one line per kind and minute. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._last_logged: dict[str, float] = {}
        self._suppressed: dict[str, int] = {}

    def record(self, kind: str, text: str) -> None:
        """Record a refused request. `kind` is one of a fixed set; `text` has the reason and the client's address."""
        with self._lock:
            now = self._clock.monotonic()
            if now - self._last_logged.get(kind, -LOG_INTERVAL_SECONDS) < LOG_INTERVAL_SECONDS:
                self._suppressed[kind] = self._suppressed.get(kind, 0) + 1
                return
            self._last_logged[kind] = now
            suppressed = self._suppressed.pop(kind, 0)
        suffix = f" ({suppressed} more of this kind since the last line)" if suppressed else ""
        log.warning("%s%s", text, suffix, extra={"action": "request_refused"})


def error_response(status: int, error: str, fix: str, headers: Mapping[str, str] | None = None) -> Response:
    """The response to a refused request."""
    body = json.dumps({"error": error, "fix": fix}).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def to_response(error: HTTPException) -> Response:
    """The response for an exception of ours or of the framework."""
    if isinstance(error, RequestRefused):
        return error_response(error.status_code, error.error, error.fix, error.headers)
    fix = FIXES.get(error.status_code, "Correct the request.")
    return error_response(error.status_code, f"{str(error.detail).rstrip('.')}.", fix, error.headers)


def quote(text: str) -> str:
    """A client's text for a response or a log line: short, with only printable characters."""
    plain = "".join(character if character.isprintable() else "?" for character in text[:MAX_QUOTED])
    return f"'{plain}{'...' if len(text) > MAX_QUOTED else ''}'"
