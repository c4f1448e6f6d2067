"""What the routes share: the fleet, the limits of their work, and how bodies and lists are read and responses are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import Query, Request
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse

from forecastd.fleet.api.errors import RequestRefused, body_too_large, quote
from forecastd.fleet.fleet import Fleet

BODY_TIMEOUT_SECONDS = 20.0  # to receive a whole body
MAX_CONCURRENT_BODIES = 4  # of the largest size, received at the same time
# Feeds that are checked at the same time; the work holds the interpreter lock, so more would not help.
INGEST_THREADS = 2
READ_THREADS = 4  # slow responses that are made at the same time
CHUNK_BYTES = 1 << 20
JSON = "application/json"
NO_STORE = {"Cache-Control": "no-store"}
Limit = Annotated[int | None, Query(ge=1, le=100_000)]
Offset = Annotated[int, Query(ge=0, le=1_000_000)]
T = TypeVar("T")


class BodyReader:
    """Reads bodies, with limits on the size and time of one and on the memory of all. Used in one event loop."""

    def __init__(self, max_bytes: int) -> None:
        """`max_bytes`: the limit for one body."""
        self._max_bytes, self._max_buffered_bytes = max_bytes, MAX_CONCURRENT_BODIES * max_bytes
        self._buffered_bytes = 0

    @asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """The whole body, which counts as buffered until the block is left.

        Raises:
            RequestRefused: it is too large (413), encoded (415) or too slow (408), or too many bodies are being
                received (503).
        """
        if any(encoding.lower() != "identity" for encoding in request.headers.getlist("content-encoding")):
            raise RequestRefused(415, "The body has a Content-Encoding.", "Send it without one.")
        body = bytearray()
        try:
            await self._receive(body, request)
            yield bytes(body)
        finally:
            self._buffered_bytes -= len(body)

    async def _receive(self, body: bytearray, request: Request) -> None:
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                async for chunk in request.stream():
                    self._buffered_bytes += len(chunk)
                    body += chunk
                    if len(body) > self._max_bytes:
                        raise body_too_large(self._max_bytes)
                    if self._buffered_bytes > self._max_buffered_bytes:
                        raise RequestRefused(
                            503, "Too many bodies are being received.", "Send it again in a second.",
                            headers={"Retry-After": "1"},
                        )  # fmt: skip
        except TimeoutError:
            raise RequestRefused(
                408, f"The body did not arrive within {BODY_TIMEOUT_SECONDS:g} s.", "Send smaller batches.",
                headers={"Connection": "close"},
            ) from None  # fmt: skip
        except ClientDisconnect:
            raise RequestRefused(400, "The client disconnected before the end of its body.", "Send it again.") from None


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


def page_slice(limit: int | None, offset: int) -> slice:
    """The part of a list that `limit` and `offset` select."""
    return slice(offset, None if limit is None else offset + limit)


def split_list(text: str) -> tuple[str, ...]:
    """The different names in a comma-separated parameter."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def parse_metrics(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The metrics in a comma-separated parameter. Raises RequestRefused for one that is not `known`."""
    names = split_list(text)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        problem = f"unknown metric {quote(unknown[0])}" if unknown else "the list is empty"
        raise RequestRefused(422, f"metrics: {problem}.", f"Use: {', '.join(known)}.")
    return names


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
    tags = request.headers.get("if-none-match", "").split(",")
    return any(candidate.strip() in {tag, "*"} for candidate in tags)
