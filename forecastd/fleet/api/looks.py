"""How the fleet stands: `/status`, `/servers`, `/risk`, `/alerts`, `/healthz`."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import orjson
from fastapi import APIRouter, Query, Response

from forecastd.clock import iso
from forecastd.fleet import report
from forecastd.fleet.api.parts import JSON, NO_STORE, Parts, chunked, errors, json_answer
from forecastd.fleet.api.schemas import Alerts, Health, Risks, Servers, Status
from forecastd.fleet.service import Fleet


def router(parts: Parts) -> APIRouter:
    """The routes."""
    routes, fleet = APIRouter(tags=["fleet"]), parts.fleet

    @routes.get("/status", response_model=Status, responses=errors())
    async def status() -> Response:
        """How everything stands: ticks, forecast, servers, what came in, the window on disk, the model's processes."""
        return await parts.document(partial(report.status, fleet))

    @routes.get("/servers", response_model=Servers, responses=errors(422))
    async def servers(
        state: Literal["ready", "warming", "silent"] | None = None,
        profile: Annotated[str | None, Query(max_length=32)] = None,
        limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> Response:
        """The servers: whether the model can forecast each, and if not, what is missing."""
        part = slice(offset, None if limit is None else offset + limit)
        return await parts.document(partial(_servers, fleet, state, profile, part))

    @routes.get("/risk", response_model=Risks, responses=errors(422))
    async def risk(top: Annotated[int | None, Query(ge=0, le=100_000)] = None) -> Response:
        """The servers at risk, the worst first: a score, the reasons, the probability of an incident, minutes ahead."""
        published = fleet.published
        head = orjson.dumps({
            "tick": published.tick, "time": iso(published.tick * fleet.step), "summary": published.summary,
        })  # fmt: skip
        listed = b",".join(published.risk[:top])
        return chunked([head[:-1], b',"servers":[', listed, b"]}"], NO_STORE)

    @routes.get("/alerts", response_model=Alerts, responses=errors())
    async def alerts() -> Response:
        """The open alerts, one for each condition, and the latest events."""
        return Response(fleet.published.alerts, 200, NO_STORE, JSON)

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", response_model=Health, responses={503: {"model": Health}})
    async def healthz() -> Response:
        """200 while ticks are closed and forecasts are new, else 503 with the reasons. Needs no key."""
        health = report.health(fleet)
        return json_answer(health.as_json(), 200 if health.ok else 503, NO_STORE)

    return routes


def _servers(fleet: Fleet, state: str | None, profile: str | None, part: slice) -> dict[str, object]:
    published = fleet.published
    found = report.servers(fleet, state, profile)
    return {
        "tick": published.tick,
        "time": iso(published.tick * fleet.step),
        "count": len(found),
        "states": published.states(),
        "servers": found[part],
    }
