"""The state of the fleet: `/status`, `/servers`, `/risk`, `/alerts`, `/healthz`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Response

from forecastd.clock import to_iso
from forecastd.fleet import status as fleet_status
from forecastd.fleet.api.context import (
    JSON,
    NO_STORE,
    ApiContext,
    Limit,
    Offset,
    chunked_response,
    json_response,
    page_slice,
)
from forecastd.fleet.api.errors import error_responses
from forecastd.fleet.documents import AlertsResponse, HealthResponse, RisksResponse, ServersResponse, StatusResponse


def router(context: ApiContext) -> APIRouter:
    """The routes."""
    routes, fleet = APIRouter(tags=["fleet"]), context.fleet

    @routes.get("/status", response_model=StatusResponse, responses=error_responses())
    async def status() -> Response:
        """The state of the service: ticks, forecast, servers, ingest, the window on disk, the model processes."""
        return await context.json_document(partial(fleet_status.status_document, fleet))

    @routes.get("/servers", response_model=ServersResponse, responses=error_responses(422))
    async def servers(
        state: Literal["ready", "warming", "silent"] | None = None,
        profile: Annotated[str | None, Query(max_length=32)] = None,
        limit: Limit = None,
        offset: Offset = 0,
    ) -> Response:
        """The servers: whether the model can forecast each, and what is missing if not."""
        return await context.json_document(
            partial(fleet_status.servers_document, fleet, state, profile, page_slice(limit, offset))
        )

    @routes.get("/risk", response_model=RisksResponse, responses=error_responses(422))
    async def risk(top: Annotated[int | None, Query(ge=0, le=100_000)] = None) -> Response:
        """The servers at risk, the worst first: a score, the reasons, the probability of an incident, minutes ahead."""
        snapshot = fleet.snapshot
        head = orjson.dumps({
            "tick": snapshot.tick, "time": to_iso(snapshot.tick * fleet.step), "summary": snapshot.summary,
        })  # fmt: skip
        documents = b",".join(snapshot.risk[:top])
        return chunked_response([head[:-1], b',"servers":[', documents, b"]}"], NO_STORE)

    @routes.get("/alerts", response_model=AlertsResponse, responses=error_responses())
    async def alerts() -> Response:
        """The open alerts, one for each condition, and the latest events."""
        return Response(fleet.snapshot.alerts, 200, NO_STORE, JSON)

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", response_model=HealthResponse, responses={503: {"model": HealthResponse}})
    async def healthz() -> Response:
        """200 while ticks are closed and the forecast is recent, else 503 with the reasons. Needs no key."""
        health = fleet_status.check_health(fleet)
        return json_response(health, 200 if health.ok else 503, NO_STORE)

    return routes
