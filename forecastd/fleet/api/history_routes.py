"""`GET /history`: the observed rows from the store on disk, as JSON or CSV.

Invariant: a store contains days of hundreds of servers. JSON is limited in rows; CSV is streamed in chunks of ticks
and never held in memory as a whole.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from starlette.responses import StreamingResponse

from forecastd.clock import from_iso, to_iso
from forecastd.fleet.api.context import ApiContext, parse_metrics, split_list
from forecastd.fleet.api.errors import RequestRefused, error_responses, quote
from forecastd.fleet.contract import METRIC_NAMES, SERVER_PATTERN
from forecastd.fleet.documents import HistoryResponse, HistoryRow
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.history.chunks import HistoryChunk

DEFAULT_SECONDS = 3600.0
MAX_ROWS = 20_000  # of a JSON response
MAX_SERVERS = 1000
CSV_EXAMPLE = f"time,server,profile,status,{METRIC_NAMES[0]}\n"
TIME_FORMAT = "unix seconds or ISO 8601 (UTC unless it has an offset)"


@dataclass(frozen=True)
class _HistoryQuery:
    start: float
    end: float
    servers: tuple[str, ...] | None
    metrics: tuple[str, ...]

    def chunks(self, fleet: Fleet) -> Iterator[HistoryChunk]:
        return fleet.window.store.history(self.start, self.end, self.servers, self.metrics)


def router(context: ApiContext) -> APIRouter:
    """The route."""
    routes, fleet = APIRouter(tags=["history"]), context.fleet

    @routes.get(
        "/history", response_model=HistoryResponse,
        responses={**error_responses(422), 200: {"content": {"text/csv": {"example": CSV_EXAMPLE}}}},
    )  # fmt: skip
    async def history(
        *,
        server: Annotated[str | None, Query(description="Only these servers, comma-separated.")] = None,
        metrics: Annotated[str | None, Query(description="Only these metrics, comma-separated.")] = None,
        start: Annotated[str | None, Query(max_length=40, description=f"Start time: {TIME_FORMAT}.")] = None,
        end: Annotated[str | None, Query(max_length=40, description=f"End time: {TIME_FORMAT}.")] = None,
        format: Annotated[Literal["json", "csv"], Query()] = "json",  # noqa: A002 - the parameter's name in the API
        limit: Annotated[
            int, Query(ge=1, le=MAX_ROWS, description="Maximum number of rows of a JSON response.")
        ] = MAX_ROWS,
    ) -> Response:
        """The observed rows, sorted by time; by default those of the last hour. CSV has no limit."""
        query = _parse_query(fleet.clock.now(), server, metrics, start, end)
        if format == "csv":
            headers = {"Content-Disposition": 'attachment; filename="fleet-history.csv"'}
            return StreamingResponse(_csv(context, query), 200, headers, "text/csv; charset=utf-8")
        return await context.json_document(lambda: _document(fleet, query, limit))

    return routes


def _parse_query(
    now: float, server: str | None, metrics: str | None, start: str | None, end: str | None
) -> _HistoryQuery:
    end_time = now if end is None else _parse_time(end, "end")
    start_time = end_time - DEFAULT_SECONDS if start is None else _parse_time(start, "start")
    if start_time >= end_time:
        raise RequestRefused(422, f"start {to_iso(start_time)} is not before end {to_iso(end_time)}.", "Swap them.")
    servers = None if server is None else split_list(server)
    if servers is not None and not (0 < len(servers) <= MAX_SERVERS and all(map(SERVER_PATTERN.fullmatch, servers))):
        raise RequestRefused(422, "server: invalid server name.", "GET /servers lists the servers.")
    names = METRIC_NAMES if metrics is None else parse_metrics(metrics, METRIC_NAMES)
    return _HistoryQuery(start_time, end_time, servers, names)


def _parse_time(text: str, name: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = from_iso(text.replace(" ", "+"))  # an unescaped plus sign arrives as a space
        except (ValueError, OverflowError):
            seconds = math.nan
    if not 0 <= seconds < 1e11:
        raise RequestRefused(422, f"{name}: {quote(text)} is not a time.", f"Write it as {TIME_FORMAT}.")
    return seconds


def _document(fleet: Fleet, query: _HistoryQuery, limit: int) -> HistoryResponse:
    rows: list[HistoryRow] = []
    for chunk in query.chunks(fleet):
        part = slice(limit + 1 - len(rows))  # one more than is shown, to know whether there are more
        times, values = chunk.times[part].tolist(), chunk.values[part].tolist()
        rows += map(HistoryRow, chunk.servers[part], times, chunk.profiles[part], chunk.statuses[part], values)
        if len(rows) > limit:
            break
    shown = rows[:limit]
    start, end = to_iso(query.start), to_iso(query.end)
    return HistoryResponse(start, end, query.metrics, len(shown), len(rows) > limit, shown)


async def _csv(context: ApiContext, query: _HistoryQuery) -> AsyncIterator[bytes]:
    yield f"time,server,profile,status,{','.join(query.metrics)}\r\n".encode()
    chunks = query.chunks(context.fleet)
    while (chunk := await context.run_in_thread(lambda: _next_lines(chunks))) is not None:
        yield chunk


def _next_lines(chunks: Iterator[HistoryChunk]) -> bytes | None:
    """The next chunk as CSV lines, with times in ISO 8601; None at the end. No field can contain a comma or a quote."""
    chunk = next(chunks, None)
    if chunk is None:
        return None
    lines = []
    for index, values in enumerate(chunk.values.tolist()):
        fields = ",".join("" if math.isnan(value) else f"{value:.7g}" for value in values)
        identity = f"{chunk.servers[index]},{chunk.profiles[index]},{chunk.statuses[index]}"
        lines.append(f"{_format_time(float(chunk.times[index]))},{identity},{fields}\r\n")
    return "".join(lines).encode()


def _format_time(seconds: float) -> str:
    """ISO 8601, with milliseconds unless they are 0."""
    whole = math.floor(seconds)
    milliseconds = round((seconds - whole) * 1000)
    if milliseconds == 1000:
        whole, milliseconds = whole + 1, 0
    return to_iso(whole) if milliseconds == 0 else f"{to_iso(whole)[:-1]}.{milliseconds:03d}Z"
