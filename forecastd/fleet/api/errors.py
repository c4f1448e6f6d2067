"""Every error is answered in one shape: `{"error": what was wrong, "fix": what to do}`, with the status that says whose turn
it is. Nothing that a client sent is repeated in it unless it is short and printable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import Response

MAX_QUOTED = 80  # characters of what a client sent

# What to do about an error that the framework found and for which nothing better is known.
FIXES: Mapping[int, str] = {
    404: "GET /openapi.json lists what there is.",
    405: "GET /openapi.json lists the methods of each path.",
}


class RequestRefused(HTTPException):
    """A request that is answered with an error. `error` and `fix` are sentences; `kind` is its stable name in the counts."""

    def __init__(
        self, status: int, error: str, fix: str, *, kind: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status, error, dict(headers or {}))
        self.error, self.fix, self.kind = error, fix, kind or str(status)


def error_response(status: int, error: str, fix: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer to a request that is refused."""
    body = json.dumps({"error": error, "fix": fix}).encode()
    return Response(body, status, dict(headers or {}), "application/json")


def to_response(error: HTTPException) -> Response:
    """The answer that says it, for one of ours and for one of the framework's."""
    if isinstance(error, RequestRefused):
        return error_response(error.status_code, error.error, error.fix, error.headers)
    fix = FIXES.get(error.status_code, "Correct the request.")
    return error_response(error.status_code, f"{str(error.detail).rstrip('.')}.", fix, error.headers)


def quote(text: str) -> str:
    """A client's own words as part of an answer: short, and in characters that no log or terminal acts on."""
    plain = "".join(character if character.isprintable() else "?" for character in text[:MAX_QUOTED])
    return f"'{plain}{'...' if len(text) > MAX_QUOTED else ''}'"
