"""The ASGI application of a running fleet: routes, error handlers, middleware and OpenAPI document."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from forecastd import __version__
from forecastd.fleet.api import (
    admin_routes,
    forecast_routes,
    history_routes,
    ingest_routes,
    metrics_routes,
    status_routes,
)
from forecastd.fleet.api.context import ApiContext, BodyReader
from forecastd.fleet.api.errors import RefusalLog, RequestRefused, error_response, to_response
from forecastd.fleet.api.keys import ApiKeys
from forecastd.fleet.api.metrics_routes import RequestMetrics
from forecastd.fleet.api.security import AccessPolicy, RateLimit, SecurityMiddleware, client_address
from forecastd.fleet.contract import Feed
from forecastd.fleet.documents import ReloadRequest, adapter
from forecastd.fleet.fleet import Fleet
from forecastd.runtime.http import is_loopback

DESCRIPTION = """Quantile forecasts, risk and alerts of a fleet of servers.

Send the servers' metrics to `POST /feed`; after each tick `GET /forecast` returns quantiles of every metric for the
next steps. If API keys are set, send one as `X-API-Key` or as a bearer token. Every error is
`{"error": ..., "fix": ...}`."""
PREFLIGHT_SECONDS = 600


def create_app(fleet: Fleet, keys: ApiKeys) -> FastAPI:
    """The API of this fleet. `keys`: the valid API keys; empty means that no key is needed."""
    settings, registry = fleet.settings, CollectorRegistry()
    policy = AccessPolicy(
        keys, is_loopback(settings.fleet.host), RateLimit(settings.fleet.rate_limit), settings.fleet.max_body_mb << 20,
        settings.fleet.cors_origins,
    )  # fmt: skip
    refusal_log, context = RefusalLog(fleet.clock), ApiContext(fleet, BodyReader(policy.max_body_bytes))
    app = FastAPIOffline(  # /docs serves its own scripts: a fleet may have no access to the internet
        title="forecastd fleet", version=__version__, description=DESCRIPTION, redoc_url=None, redirect_slashes=False
    )
    for routes in (status_routes, forecast_routes, ingest_routes, history_routes, admin_routes):
        app.include_router(routes.router(context))
    app.include_router(metrics_routes.router(context, registry))
    _extend_openapi(app, with_keys=bool(keys))
    _handle_errors(app, refusal_log)
    app.add_middleware(
        SecurityMiddleware, policy=policy, metrics=RequestMetrics(registry), refusal_log=refusal_log, clock=fleet.clock
    )
    if settings.fleet.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.fleet.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["X-API-Key", "Authorization", "Content-Type"], max_age=PREFLIGHT_SECONDS,
        )  # fmt: skip
    return app


def _handle_errors(app: FastAPI, refusal_log: RefusalLog) -> None:
    """Answer every error in the one shape of `errors`."""

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> Response:
        if isinstance(error, RequestRefused) and error.status_code in {408, 413}:
            refusal_log.record(error, client_address(request.scope))
        return to_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        location = ".".join(str(part) for part in first["loc"][1:]) or "request"
        return error_response(422, f"{location}: {first['msg']}.", "GET /openapi.json lists what each path takes.")

    @app.exception_handler(Exception)
    async def unexpected(_: Request, __: Exception) -> Response:
        return error_response(
            500, "An unexpected error occurred.", "See the fleet's log; the request was not the cause."
        )


def _extend_openapi(app: FastAPI, *, with_keys: bool) -> None:
    """Add to the OpenAPI document what no route signature contains: bodies that are read as streams, and the API key."""
    build_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema:
            return app.openapi_schema
        document = build_openapi()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for model in (Feed, ReloadRequest):
            schema = adapter(model).json_schema(ref_template="#/components/schemas/{model}")
            schemas |= {**schema.pop("$defs", {}), model.__name__: schema}
        if with_keys:
            document["components"]["securitySchemes"] = {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            }
            document["security"] = [{"key": []}, {"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # the documented way to change the OpenAPI document
