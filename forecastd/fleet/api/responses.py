"""What every route of the API stands on, and the few answers that they all give."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.responses import Response, StreamingResponse

from forecastd.fleet.api.request_bodies import BodyReader
from forecastd.fleet.api.schemas import ErrorResponse
from forecastd.fleet.fleet import Fleet

INGEST_THREADS = 2  # feeds that are judged at a time; more would only take turns
READ_THREADS = 4  # answers that take a while to make
CHUNK_BYTES = 1 << 20
JSON = "application/json"
NO_STORE = {"Cache-Control": "no-store"}
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ApiContext:
    """One fleet, and where its requests are worked on. Made once, used in the event loop."""

    fleet: Fleet
    bodies: BodyReader
    ingest_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(INGEST_THREADS))
    read_limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(READ_THREADS))

    async def run_in_thread(self, work: Callable[[], T]) -> T:
        """What `work` gives, made in a thread."""
        return await to_thread.run_sync(work, limiter=self.read_limiter)

    async def json_document(self, work: Callable[[], object]) -> Response:
        """What `work` gives, as JSON, both made in a thread; it is of this moment."""
        body = await self.run_in_thread(lambda: orjson.dumps(work()))
        return Response(body, 200, NO_STORE, JSON)


def json_response(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A document as JSON."""
    return Response(orjson.dumps(document), status, dict(headers or {}), JSON)


def chunked_response(parts: list[bytes], headers: Mapping[str, str]) -> Response:
    """An answer of many parts. A large one goes out piece by piece, so that nobody else waits for it."""
    length = sum(map(len, parts))
    if length <= CHUNK_BYTES:
        return Response(b"".join(parts), 200, dict(headers), JSON)

    async def pieces() -> AsyncIterator[bytes]:
        pending, size = [], 0
        for part in parts:
            pending.append(part)
            size += len(part)
            if size >= CHUNK_BYTES:
                yield b"".join(pending)
                pending, size = [], 0
        yield b"".join(pending)

    return StreamingResponse(pieces(), 200, {**headers, "Content-Length": str(length)}, JSON)


def etag_matches(request: Request, tag: str) -> bool:
    """Whether the client has this already."""
    header_value = request.headers.get("if-none-match", "")
    return any(candidate.strip() in {tag, "*"} for candidate in header_value.split(",")) if header_value else False


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's description: these errors, and those that every route may answer."""
    descriptions = {
        400: "The body is no feed at all.",
        401: "No API key, or none that is known.",
        403: "From a page, or under a name, that may not ask.",
        404: "There is no such thing.",
        408: "The body came too slowly.",
        409: "Another change of the model is under way.",
        413: "The body is too large.",
        415: "The body is packed.",
        422: "A parameter or a model that does not fit.",
        429: "Too many requests in the last minute; Retry-After says how long to wait.",
        503: "Not now; Retry-After says how long to wait.",
    }
    return {
        status: {"model": ErrorResponse, "description": descriptions[status]} for status in (*statuses, 401, 403, 429)
    }
