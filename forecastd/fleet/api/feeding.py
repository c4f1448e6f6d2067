"""`POST /feed`: what servers report."""

from __future__ import annotations

from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from forecastd.fleet.api.parts import JSON, Parts, errors
from forecastd.fleet.api.refusals import Refused
from forecastd.fleet.contract import NDJSON, FeedAnswer, FeedError

EXAMPLE = {
    "version": 1,
    "records": [
        {"server": "web-01", "time": "2026-01-31T12:00:00Z", "profile": "web", "status": "ok",
         "metrics": {"cpu_percent": 31.2, "memory_percent": 64.0, "latency_ms": 18.4}},
    ],
}  # fmt: skip
LINE = '{"server": "web-01", "time": 1769860800, "profile": "web", "metrics": {"cpu_percent": 31.2}}\n'
BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/Feed"}, "example": EXAMPLE},
            NDJSON: {"schema": {"type": "string", "description": "One record (FeedRecord) a line."}, "example": LINE},
        },
    }
}


def router(parts: Parts) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/feed", response_model=FeedAnswer, responses=errors(400, 408, 413, 415, 503), openapi_extra=BODY, tags=["feed"]
    )
    async def feed(request: Request) -> Response:
        """Take a batch of rows in. Every row is judged by itself: the answer says which were refused, and why."""
        async with parts.bodies.read(request) as body:
            take = partial(parts.fleet.feed, body, request.headers.get("content-type"))
            try:
                answer = await to_thread.run_sync(take, limiter=parts.ingest)
            except FeedError as error:
                told = f"{str(error)[:1].upper()}{str(error)[1:].rstrip('.')}."
                raise Refused(400, told, "Send a feed as /openapi.json describes it.") from None
        return Response(answer.model_dump_json(), media_type=JSON)

    return routes
