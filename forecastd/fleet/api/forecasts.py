"""`GET /forecast`: the newest forecast, of all servers or of one, whole or in part.

What is asked for as it is kept is sent as it is kept. A choice of metrics or levels is made from the numbers, in a thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import orjson
from fastapi import APIRouter, Query, Request, Response

from forecastd.clock import iso
from forecastd.fleet.api.parts import JSON, Parts, chunked, errors, matches
from forecastd.fleet.api.refusals import Refused, quoted
from forecastd.fleet.api.schemas import Forecasts, ServerForecast
from forecastd.fleet.contract import INDEX, METRICS
from forecastd.fleet.published import Published
from forecastd.fleet.snapshot import SERVED, FleetForecast

MOST_LEVELS = 19
Metrics = Annotated[str | None, Query(description="Only these metrics, with commas between.", examples=["cpu_percent"])]
Levels = Annotated[str | None, Query(description="These quantiles instead, such as 0.05,0.5,0.95.")]


def router(parts: Parts) -> APIRouter:
    """The routes."""
    routes, fleet = APIRouter(tags=["forecast"]), parts.fleet

    @routes.get("/forecast", response_model=Forecasts, responses=errors(404, 422, 503))
    async def forecast(
        *,
        request: Request,
        servers: Annotated[str | None, Query(description="Only these servers, with commas between.")] = None,
        metrics: Metrics = None,
        levels: Levels = None,
        limit: Annotated[int | None, Query(ge=1, le=100_000)] = None,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    ) -> Response:
        """The newest forecast of all servers, made once a tick; `age_seconds` says how long ago."""
        published = fleet.published
        if not published.places and not len(fleet.memory.window):
            return _page(None, [], 0, fleet.clock.now(), {})
        newest, headers = _newest(published, fleet.step), {"ETag": _tag(published)}
        if matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        rows = list(range(len(newest.servers))) if servers is None else _rows(published, servers)
        chosen = rows[offset : None if limit is None else offset + limit]
        if metrics is None and levels is None:
            encoded = [newest.encoded[row] for row in chosen]
        else:
            only, at = _metrics(newest, metrics), _levels(levels)
            encoded = await parts.read(lambda: _encode(newest, chosen, only, at))
        return _page(newest, encoded, len(rows), fleet.clock.now(), headers)

    @routes.get("/forecast/{server}", response_model=ServerForecast, responses=errors(404, 422, 503))
    async def forecast_of(request: Request, server: str, metrics: Metrics = None, levels: Levels = None) -> Response:
        """The newest forecast of one server: quantiles of every metric for the steps that are to come."""
        published = fleet.published
        row = published.places.get(server)
        if row is None:
            raise _unknown(server, known=fleet.memory.window.profile(server) is not None, step=fleet.step)
        newest, headers = _newest(published, fleet.step), {"ETag": _tag(published)}
        if matches(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        if metrics is None and levels is None:
            encoded = newest.encoded[row]
        else:
            only, at = _metrics(newest, metrics), _levels(levels)
            encoded = (await parts.read(lambda: _encode(newest, [row], only, at)))[0]
        age = orjson.dumps(_age(newest, fleet.clock.now()))
        return Response(b"".join((encoded[:-1], b',"age_seconds":', age, b"}")), 200, headers, JSON)

    return routes


def _newest(published: Published, step: int) -> FleetForecast:
    if published.forecast is None:
        raise Refused(
            503, "There is no forecast yet: the model is getting ready.", "Ask again in a few seconds; /status tells more.",
            headers={"Retry-After": str(max(1, step))},
        )  # fmt: skip
    return published.forecast


def _unknown(server: str, *, known: bool, step: int) -> Refused:
    if known:
        told = f"{server} has no forecast yet: its first rows have just come."
        return Refused(503, told, "Ask again after the next tick.", headers={"Retry-After": str(max(1, step))})
    return Refused(404, f"No server {quoted(server)} is known.", "GET /servers lists those that are.")


def _page(
    newest: FleetForecast | None, encoded: Sequence[bytes], count: int, now: float, headers: dict[str, str]
) -> Response:
    head = orjson.dumps({
        "made_at": None if newest is None else iso(newest.made_at),
        "age_seconds": None if newest is None else _age(newest, now),
        "count": count,
    })  # fmt: skip
    parts = [head[:-1], b',"forecasts":[']
    for place, one in enumerate(encoded):
        parts += [b",", one] if place else [one]
    return chunked([*parts, b"]}"], headers)


def _age(forecast: FleetForecast, now: float) -> float:
    return round(max(0.0, now - forecast.made_at), 3)


def _tag(published: Published) -> str:
    """Weak: two answers with it differ in their age alone."""
    forecast = published.forecast
    return "" if forecast is None else f'W/"{forecast.bundle_sha256[:12]}-{forecast.tick}-{forecast.made_at:.3f}"'


def _rows(published: Published, servers: str) -> list[int]:
    """The places of the servers that are asked for, in the order they are asked for."""
    found = []
    for name in dict.fromkeys(_listed(servers)):
        row = published.places.get(name)
        if row is None:
            raise Refused(404, f"No forecast of {quoted(name)} is known.", "GET /servers lists the servers.")
        found.append(row)
    return found


def _metrics(forecast: FleetForecast, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    wanted = tuple(dict.fromkeys(_listed(text)))
    wrong = [name for name in wanted if name not in forecast.metrics]
    if wrong or not wanted:
        told = f"{quoted(wrong[0])} is not forecast." if wrong else "No metric is named."
        raise Refused(422, f"metrics: {told}", f"It may be: {', '.join(forecast.metrics)}.")
    return wanted


def _levels(text: str | None) -> tuple[float, ...]:
    if text is None:
        return SERVED
    try:
        levels = tuple(sorted({float(one) for one in _listed(text)}))
    except ValueError:
        levels = ()
    if not 1 <= len(levels) <= MOST_LEVELS or not all(0 < level < 1 for level in levels):
        told = f"levels: these are not 1 to {MOST_LEVELS} numbers between 0 and 1."
        raise Refused(422, told, "Write them as 0.1,0.5,0.9.")
    return levels


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _encode(
    forecast: FleetForecast, rows: Sequence[int], only: tuple[str, ...] | None, levels: tuple[float, ...]
) -> list[bytes]:
    described = [METRICS[INDEX[name]] for name in forecast.metrics]
    return [forecast.encode(row, described, levels, only) for row in rows]
