"""`GET /forecast`: the newest forecast of all servers or of one.

The whole forecast is sent as the stored bytes. A selection of metrics or levels is encoded from the numbers, in a
thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from forecastd.clock import to_iso
from forecastd.fleet.api.context import (
    JSON,
    ApiContext,
    Limit,
    Offset,
    chunked_response,
    etag_matches,
    page_slice,
    parse_metrics,
    split_list,
)
from forecastd.fleet.api.errors import RequestRefused, error_responses, quote
from forecastd.fleet.contract import METRIC_INDEX, METRICS
from forecastd.fleet.documents import ForecastsResponse, ServerForecastResponse
from forecastd.fleet.forecast.fleet_forecast import STORED_LEVELS, FleetForecast
from forecastd.fleet.snapshot import FleetSnapshot

MAX_LEVELS = 19
Metrics = Annotated[str | None, Query(description="Only these metrics, comma-separated.", examples=["cpu_percent"])]
Levels = Annotated[str | None, Query(description="These quantiles instead of the default, such as 0.05,0.5,0.95.")]


def router(context: ApiContext) -> APIRouter:
    """The routes."""
    routes, fleet = APIRouter(tags=["forecast"]), context.fleet

    @routes.get("/forecast", response_model=ForecastsResponse, responses=error_responses(404, 422, 503))
    async def forecast(
        *,
        request: Request,
        servers: Annotated[str | None, Query(description="Only these servers, comma-separated.")] = None,
        metrics: Metrics = None,
        levels: Levels = None,
        limit: Limit = None,
        offset: Offset = 0,
    ) -> Response:
        """The newest forecast of all servers, made once per tick; `age_seconds` is its age."""
        snapshot = fleet.snapshot
        if not snapshot.forecast_rows and not len(fleet.window.memory):
            return _page_response(None, [], 0, fleet.clock.now(), {})
        latest = _latest_forecast(snapshot, fleet.step)
        headers = {"ETag": _etag(latest)}
        if etag_matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        rows = list(range(len(latest.servers))) if servers is None else _parse_servers(snapshot, servers)
        encoded = await _encode(context, latest, rows[page_slice(limit, offset)], metrics, levels)
        return _page_response(latest, encoded, len(rows), fleet.clock.now(), headers)

    @routes.get("/forecast/{server}", response_model=ServerForecastResponse, responses=error_responses(404, 422, 503))
    async def forecast_of(request: Request, server: str, metrics: Metrics = None, levels: Levels = None) -> Response:
        """The newest forecast of one server: quantiles of every metric for the next steps."""
        snapshot = fleet.snapshot
        row = snapshot.forecast_rows.get(server)
        if row is None:
            raise _missing_forecast_error(
                server, is_known=fleet.window.memory.profile(server) is not None, step=fleet.step
            )
        latest = _latest_forecast(snapshot, fleet.step)
        headers = {"ETag": _etag(latest)}
        if etag_matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        (encoded,) = await _encode(context, latest, [row], metrics, levels)
        age = orjson.dumps(_age_seconds(latest, fleet.clock.now()))
        return Response(b"".join((encoded[:-1], b',"age_seconds":', age, b"}")), 200, headers, JSON)

    return routes


def _latest_forecast(snapshot: FleetSnapshot, step: int) -> FleetForecast:
    if snapshot.forecast is None:
        raise RequestRefused(
            503, "No forecast yet: the model is starting.", "Retry in a few seconds; see /status.",
            headers={"Retry-After": str(max(1, step))},
        )  # fmt: skip
    return snapshot.forecast


def _missing_forecast_error(server: str, *, is_known: bool, step: int) -> RequestRefused:
    if is_known:
        message = f"{server} has no forecast yet: its first rows have just arrived."
        return RequestRefused(503, message, "Retry after the next tick.", headers={"Retry-After": str(max(1, step))})
    return RequestRefused(404, f"Unknown server {quote(server)}.", "GET /servers lists the servers.")


def _page_response(
    latest: FleetForecast | None, encoded: Sequence[bytes], count: int, now: float, headers: dict[str, str]
) -> Response:
    head = orjson.dumps({
        "made_at": None if latest is None else to_iso(latest.made_at),
        "age_seconds": None if latest is None else _age_seconds(latest, now),
        "count": count,
    })  # fmt: skip
    chunks = [head[:-1], b',"forecasts":[']
    for index, document in enumerate(encoded):
        chunks += [b",", document] if index else [document]
    return chunked_response([*chunks, b"]}"], headers)


def _age_seconds(forecast: FleetForecast, now: float) -> float:
    return round(max(0.0, now - forecast.made_at), 3)


def _etag(forecast: FleetForecast) -> str:
    """A weak ETag: two responses with the same one differ only in their age."""
    return f'W/"{forecast.bundle_sha256[:12]}-{forecast.tick}-{forecast.made_at:.3f}"'


def _parse_servers(snapshot: FleetSnapshot, servers: str) -> list[int]:
    """The forecast rows of the requested servers, in the requested order."""
    rows = []
    for name in split_list(servers):
        row = snapshot.forecast_rows.get(name)
        if row is None:
            raise RequestRefused(404, f"No forecast for server {quote(name)}.", "GET /servers lists the servers.")
        rows.append(row)
    return rows


def _parse_levels(text: str | None) -> tuple[float, ...]:
    if text is None:
        return STORED_LEVELS
    try:
        levels = tuple(sorted({float(part) for part in split_list(text)}))
    except ValueError:
        levels = ()
    if not 1 <= len(levels) <= MAX_LEVELS or not all(0 < level < 1 for level in levels):
        message = f"levels: not a list of 1 to {MAX_LEVELS} numbers between 0 and 1."
        raise RequestRefused(422, message, "Write it as 0.1,0.5,0.9.")
    return levels


async def _encode(
    context: ApiContext, forecast: FleetForecast, rows: Sequence[int], metrics: str | None, levels: str | None
) -> Sequence[bytes]:
    """The forecasts of these rows as JSON, with the requested metrics and levels."""
    if metrics is None and levels is None:
        return [forecast.encoded[row] for row in rows]
    described = [METRICS[METRIC_INDEX[name]] for name in forecast.metrics]
    names = None if metrics is None else parse_metrics(metrics, forecast.metrics)
    level_values = _parse_levels(levels)
    return await context.run_in_thread(lambda: [forecast.encode(row, described, level_values, names) for row in rows])
