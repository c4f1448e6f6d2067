"""The context of the routes, and the responses that they share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from forecastd.fleet.api.request_bodies import BodyReader
from forecastd.fleet.documents import ErrorResponse
from forecastd.fleet.fleet import Fleet

INGEST_THREADS = (
    2  # feeds that are checked at the same time; the work holds the interpreter lock, so more would not help
)
READ_THREADS = 4  # slow responses that are made at the same time
CHUNK_BYTES = 1 << 20
JSON = "application/json"
NO_STORE = {"Cache-Control": "no-store"}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ApiContext:
    """One fleet and the limits of its request work. Created once, used in the event loop."""

    fleet: Fleet
    bodies: BodyReader
    ingest_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(INGEST_THREADS))
    read_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READ_THREADS))

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """The result of `work`, which runs in a thread."""
        return await to_thread.run_sync(work, limiter=self.read_limiter)

    async def json_document(self, work: Callable[[], object]) -> Response:
        """The result of `work` as JSON, both made in a thread. Clients must not cache it."""
        body = await self.run_in_thread(lambda: orjson.dumps(work()))
        return Response(body, 200, NO_STORE, JSON)


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as a JSON response."""
    return Response(orjson.dumps(document), status, dict(headers or {}), JSON)


def chunked_response(parts: list[bytes], headers: Mapping[str, str]) -> Response:
    """A response of many parts. A large one is sent in chunks, so that other requests do not wait for it."""
    length = sum(map(len, parts))
    if length <= CHUNK_BYTES:
        return Response(b"".join(parts), 200, dict(headers), JSON)

    async def chunks() -> AsyncIterator[bytes]:
        pending, size = [], 0
        for part in parts:
            pending.append(part)
            size += len(part)
            if size >= CHUNK_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
        yield b"".join(pending)

    return StreamingResponse(chunks(), 200, {**headers, "Content-Length": str(length)}, JSON)


def etag_matches(request: Request, tag: str) -> bool:
    """Whether the client already has the document with this ETag."""
    header_value = request.headers.get("if-none-match", "")
    return any(candidate.strip() in {tag, "*"} for candidate in header_value.split(",")) if header_value else False


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these statuses and of those that every route may return."""
    descriptions = {
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
    return {
        status: {"model": ErrorResponse, "description": descriptions[status]} for status in (*statuses, 401, 403, 429)
    }
