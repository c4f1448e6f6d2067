"""`GET /history`: what was observed, from the store on disk, as JSON or CSV.

The one thing to know before changing it: a store holds days of hundreds of servers. JSON is bounded in rows; CSV is
written as it is read, a chunk of ticks at a time, and never held as a whole.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response
from starlette.responses import StreamingResponse

from forecastd.clock import from_iso, iso
from forecastd.fleet.api.parts import Parts, errors
from forecastd.fleet.api.refusals import Refused, quoted
from forecastd.fleet.api.schemas import History
from forecastd.fleet.contract import INDEX, NAMES, SERVER
from forecastd.fleet.service import Fleet
from forecastd.fleet.store import HistoryChunk

DEFAULT_SECONDS = 3600.0
MOST_ROWS = 20_000  # of an answer in JSON
MOST_SERVERS = 1000
WHEN = "unix seconds, or ISO 8601; one without an offset is UTC"


@dataclass(frozen=True)
class _Asked:
    start: float
    end: float
    servers: tuple[str, ...] | None
    metrics: tuple[str, ...]

    def chunks(self, fleet: Fleet) -> Iterator[HistoryChunk]:
        return fleet.memory.store.history(self.start, self.end, self.servers, self.metrics)


def router(parts: Parts) -> APIRouter:
    """The route."""
    routes, fleet = APIRouter(tags=["history"]), parts.fleet

    @routes.get(
        "/history", response_model=History,
        responses={**errors(422), 200: {"content": {"text/csv": {"example": f"time,server,profile,status,{NAMES[0]}\n"}}}},
    )  # fmt: skip
    async def history(
        *,
        server: Annotated[str | None, Query(description="Only these servers, with commas between.")] = None,
        metrics: Annotated[str | None, Query(description="Only these metrics, with commas between.")] = None,
        start: Annotated[str | None, Query(max_length=40, description=f"From then on: {WHEN}.")] = None,
        end: Annotated[str | None, Query(max_length=40, description=f"Up to then: {WHEN}.")] = None,
        format: Annotated[Literal["json", "csv"], Query()] = "json",  # noqa: A002 - the parameter's name in the API
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS, description="Rows of an answer in JSON.")] = MOST_ROWS,
    ) -> Response:
        """What was observed, by default in the last hour, sorted by time. CSV is not limited."""
        asked = _asked(fleet.clock.now(), server, metrics, start, end)
        if format == "csv":
            headers = {"Content-Disposition": 'attachment; filename="fleet-history.csv"'}
            return StreamingResponse(_csv(parts, asked), 200, headers, "text/csv; charset=utf-8")
        return await parts.document(lambda: _document(fleet, asked, limit))

    return routes


def _asked(now: float, server: str | None, metrics: str | None, start: str | None, end: str | None) -> _Asked:
    last = now if end is None else _moment(end, "end")
    first = last - DEFAULT_SECONDS if start is None else _moment(start, "start")
    if first >= last:
        raise Refused(422, f"start {iso(first)} is not before end {iso(last)}.", "Exchange them.")
    servers = None if server is None else _listed(server)
    if servers is not None and not (0 < len(servers) <= MOST_SERVERS and all(map(SERVER.fullmatch, servers))):
        raise Refused(422, "server: these are no names of servers.", "GET /servers lists them.")
    wanted = NAMES if metrics is None else _listed(metrics)
    for name in wanted:
        if name not in INDEX:
            raise Refused(422, f"metrics: {quoted(name)} is none.", f"It may be: {', '.join(NAMES)}.")
    if not wanted:
        raise Refused(422, "metrics: none is named.", f"It may be: {', '.join(NAMES)}.")
    return _Asked(first, last, servers, wanted)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _moment(text: str, name: str) -> float:
    try:
        moment = float(text)
    except ValueError:
        try:
            moment = from_iso(text.replace(" ", "+"))  # a plus sign that was not escaped
        except (ValueError, OverflowError):
            moment = math.nan
    if not 0 <= moment < 1e11:
        raise Refused(422, f"{name}: {quoted(text)} is no time.", f"Write it as {WHEN}.")
    return moment


def _document(fleet: Fleet, asked: _Asked, limit: int) -> dict[str, object]:
    rows: list[dict[str, object]] = []
    truncated = False
    for chunk in asked.chunks(fleet):
        values = chunk.values.tolist()
        for place in range(len(chunk)):
            if len(rows) == limit:
                truncated = True
                break
            rows.append({
                "server": chunk.servers[place],
                "time": float(chunk.times[place]),
                "profile": chunk.profiles[place],
                "status": chunk.statuses[place],
                "values": values[place],
            })  # fmt: skip
        if truncated:
            break
    return {
        "start": iso(asked.start), "end": iso(asked.end), "metrics": list(asked.metrics), "count": len(rows),
        "truncated": truncated, "rows": rows,
    }  # fmt: skip


async def _csv(parts: Parts, asked: _Asked) -> AsyncIterator[bytes]:
    yield f"time,server,profile,status,{','.join(asked.metrics)}\r\n".encode()
    chunks = asked.chunks(parts.fleet)
    while (piece := await parts.read(lambda: _next_lines(chunks))) is not None:
        yield piece


def _next_lines(chunks: Iterator[HistoryChunk]) -> bytes | None:
    """The next chunk as lines of CSV, with times in ISO 8601. No field can hold a comma or a quote."""
    chunk = next(chunks, None)
    if chunk is None:
        return None
    lines = []
    for place, values in enumerate(chunk.values.tolist()):
        told = ",".join("" if math.isnan(value) else f"{value:.7g}" for value in values)
        who = f"{chunk.servers[place]},{chunk.profiles[place]},{chunk.statuses[place]}"
        lines.append(f"{_stamp(float(chunk.times[place]))},{who},{told}\r\n")
    return "".join(lines).encode()


def _stamp(moment: float) -> str:
    """ISO 8601 with milliseconds where there are any."""
    whole = math.floor(moment)
    rest = round((moment - whole) * 1000)
    if rest == 1000:
        whole, rest = whole + 1, 0
    return iso(whole) if rest == 0 else f"{iso(whole)[:-1]}.{rest:03d}Z"
