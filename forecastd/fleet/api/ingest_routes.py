"""`POST /feed`: the metrics of the servers."""

from __future__ import annotations

from functools import partial
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request, Response

from forecastd.fleet.api.context import JSON, ApiContext
from forecastd.fleet.api.errors import RequestRefused, error_responses
from forecastd.fleet.contract import NDJSON, FeedError, FeedResponse

JSON_EXAMPLE = {
    "version": 1,
    "records": [
        {"server": "web-01", "time": "2026-01-31T12:00:00Z", "profile": "web", "status": "ok",
         "metrics": {"cpu_percent": 31.2, "memory_percent": 64.0, "latency_ms": 18.4}},
    ],
}  # fmt: skip
NDJSON_EXAMPLE = '{"server": "web-01", "time": 1769860800, "profile": "web", "metrics": {"cpu_percent": 31.2}}\n'
REQUEST_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            JSON: {"schema": {"$ref": "#/components/schemas/Feed"}, "example": JSON_EXAMPLE},
            NDJSON: {
                "schema": {"type": "string", "description": "One record (FeedRecord) per line."},
                "example": NDJSON_EXAMPLE,
            },
        },
    }
}


def router(context: ApiContext) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post(
        "/feed",
        response_model=FeedResponse,
        responses=error_responses(400, 408, 413, 415, 503),
        openapi_extra=REQUEST_BODY,
        tags=["feed"],
    )
    async def feed(request: Request) -> Response:
        """Ingest a batch of rows.

        Each row is checked on its own; the response lists the refused rows and the reasons.
        """
        async with context.bodies.read(request) as body:
            ingest = partial(context.fleet.window.ingest, body, request.headers.get("content-type"))
            try:
                answer = await to_thread.run_sync(ingest, limiter=context.ingest_limiter)
            except FeedError as error:
                message = f"{str(error)[:1].upper()}{str(error)[1:].rstrip('.')}."
                raise RequestRefused(400, message, "Send a feed as described in /openapi.json.") from None
        return Response(answer.model_dump_json(), media_type=JSON)

    return routes
