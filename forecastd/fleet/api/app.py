"""The routes put together: an ASGI application around a running fleet."""

from __future__ import annotations

import orjson
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException

from forecastd import __version__
from forecastd.fleet.api.bodies import Bodies
from forecastd.fleet.api.gate import Gate, Rules
from forecastd.fleet.api.keys import ApiKeys, is_loopback
from forecastd.fleet.api.rate import RateLimit
from forecastd.fleet.api.refusals import Refused, answer
from forecastd.fleet.api.remarks import Remarks
from forecastd.fleet.api.requests import RequestCounts
from forecastd.fleet.contract import FeedError
from forecastd.fleet.service import Fleet
from forecastd.settings import Settings

INGEST_THREADS = 2


def make_app(fleet: Fleet, keys: ApiKeys) -> FastAPI:
    """The API of this fleet."""
    settings: Settings = fleet.settings
    app = FastAPI(title="forecastd fleet", version=__version__)
    registry = CollectorRegistry()
    remarks = Remarks(fleet.clock)
    rules = Rules(
        keys, is_loopback(settings.fleet_host), RateLimit(settings.fleet_rate_limit), settings.fleet_max_body_mb << 20,
        settings.fleet_cors_origins,
    )  # fmt: skip
    bodies = Bodies(rules.most_bytes)
    limiter = CapacityLimiter(INGEST_THREADS)

    @app.post("/feed")
    async def feed(request: Request) -> Response:
        async with bodies.read(request) as body:
            try:
                found = await to_thread.run_sync(fleet.feed, body, request.headers.get("content-type"), limiter=limiter)
            except FeedError as error:
                raise Refused(400, f"This is no feed: {error}.", "GET /openapi.json has its schema.") from None
        return Response(found.model_dump_json(), media_type="application/json")

    @app.get("/status")
    async def status() -> Response:
        return Response(orjson.dumps(await to_thread.run_sync(fleet.status)), media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> Response:
        health = fleet.health()
        return Response(orjson.dumps(health.as_json()), 200 if health.ok else 503, media_type="application/json")

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return answer(Refused(422, f"{where}: {first['msg']}.", "GET /openapi.json lists what each path takes."))

    app.add_middleware(Gate, rules=rules, counts=RequestCounts(registry), remarks=remarks, clock=fleet.clock)
    return app
