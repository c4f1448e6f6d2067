"""The schemas of the responses, for the OpenAPI document.

Responses are not made from them: most are stored as bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EXAMPLE_TIME = "2026-01-31T12:00:00Z"


class ErrorResponse(BaseModel):
    """Every error: what is wrong, and what to do."""

    error: str = Field(examples=["Unknown server 'web-99'."])
    fix: str = Field(examples=["GET /servers lists the servers."])


class HealthResponse(BaseModel):
    """Whether the fleet is healthy, and the reasons if not. `warnings` do not make it unhealthy."""

    ok: bool
    reasons: list[str]
    warnings: list[str]


class ServerResponse(BaseModel):
    """One server. `missing_ticks`: ticks that the model still needs to forecast it."""

    server: str = Field(examples=["web-01"])
    profile: str = Field(examples=["web"])
    status: Literal["ok", "degraded", "down", "maintenance"]
    state: Literal["ready", "warming", "silent"]
    reason: str = Field(examples=["ready"])
    missing_ticks: int
    model: Literal["tft", "heuristic"] | None = Field(
        description="The model that forecast it; null before its first forecast."
    )
    score: float = Field(description="The risk score, 0 to 100.")
    level: Literal["ok", "watch", "warning", "critical"]
    last_seen: str | None = Field(examples=[EXAMPLE_TIME])
    age_seconds: float | None


class ServersResponse(BaseModel):
    """The servers of the fleet, sorted by name. `count`: the number before `limit` and `offset` apply."""

    tick: int
    time: str = Field(examples=[EXAMPLE_TIME])
    count: int
    states: dict[str, int]
    servers: list[ServerResponse]


class ForecastTimes(BaseModel):
    """The times of the first and the last step of a forecast."""

    first: str = Field(examples=["2026-01-31T12:00:05Z"])
    last: str = Field(examples=["2026-01-31T12:08:00Z"])


class ServerForecastResponse(BaseModel):
    """The forecast of one server. Element `k` of every list is for the time `origin + (k + 1) * step_seconds`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "server": "web-01", "profile": "web", "model": "tft", "bundle": "fleet-demo",
                    "made_at": EXAMPLE_TIME, "age_seconds": 1.3, "origin": EXAMPLE_TIME, "step_seconds": 5,
                    "horizon_steps": 3, "horizon_seconds": 15,
                    "horizon": "15 s", "times": {"first": "2026-01-31T12:00:05Z", "last": "2026-01-31T12:00:15Z"},
                    "levels": [0.1, 0.5, 0.9],
                    "metrics": {"cpu_percent": {"unit": "%", "0.1": [31.2, 30.9, 30.7], "0.5": [34.8, 34.9, 35.1],
                                                "0.9": [38.8, 39.6, 40.2]}},
                }
            ]
        }
    )  # fmt: skip

    server: str
    profile: str
    model: Literal["tft", "heuristic"] = Field(
        description="The heuristic is used while a server has too little data for the model."
    )
    bundle: str
    made_at: str
    age_seconds: float | None = Field(default=None, description="In a list of forecasts it is given once, for all.")
    origin: str = Field(description="The time of the last observed tick.")
    step_seconds: int
    horizon_steps: int
    horizon_seconds: int
    horizon: str
    times: ForecastTimes
    levels: list[float]
    metrics: dict[str, dict[str, Any]] = Field(description="By metric: its unit, and a list of values for each level.")


class ForecastsResponse(BaseModel):
    """The newest forecast of the fleet. `count`: the number of servers before `limit` and `offset` apply."""

    made_at: str | None
    age_seconds: float | None
    count: int
    forecasts: list[ServerForecastResponse]


class RiskResponse(BaseModel):
    """The risk of one server."""

    server: str
    profile: str
    status: str
    score: float = Field(description="0 to 100; rises with every metric.")
    level: Literal["ok", "watch", "warning", "critical"]
    reasons: list[str] = Field(examples=[["cpu 97 %, critical from 95 %"]])
    incident_probability: float | None = Field(
        description="The probability that a metric is at its critical threshold now or within the horizon."
    )
    minutes_ahead: float | None
    quantile_ahead: float | None
    current: dict[str, float] = Field(description="The current values of the known metrics.")


class RisksResponse(BaseModel):
    """The risk of the fleet, and of its servers, the worst first."""

    tick: int
    time: str = Field(examples=[EXAMPLE_TIME])
    summary: dict[str, Any]
    servers: list[RiskResponse]


class AlertsResponse(BaseModel):
    """The open alerts, the most severe first, and the latest events, the newest first."""

    open: list[dict[str, Any]]
    recent: list[dict[str, Any]]


class HistoryResponse(BaseModel):
    """The observed rows. `values` are in the order of `metrics`, null where a value is missing."""

    start: str
    end: str
    metrics: list[str]
    count: int
    truncated: bool = Field(
        description="There are more rows: continue from the time of the last row, or request fewer."
    )
    rows: list[dict[str, Any]] = Field(
        examples=[
            [{"server": "web-01", "time": 1769860800.0, "profile": "web", "status": "ok", "values": [12.5, None]}]
        ]
    )


class StatusResponse(BaseModel):
    """The state of the fleet service."""

    model_config = ConfigDict(extra="allow")

    version: str
    started_at: str
    now: str
    uptime_seconds: float
    step_seconds: int
    synthetic: bool = Field(description="The servers are simulated.")
    speed: float = Field(description="The speed of the clock; 1 is real time, anything else a rehearsal.")
    health: HealthResponse
    model: dict[str, Any]
    tick: dict[str, Any]
    forecast: dict[str, Any]
    servers: dict[str, int]
    window: dict[str, Any]
    ingest: dict[str, Any]
    scrapes: list[dict[str, Any]]
    risk: dict[str, Any]
    alerts: dict[str, int]
    supervision: dict[str, Any]


class ReloadRequest(BaseModel):
    """The bundle to switch to: the name of its directory in FLEET_MODELS_DIR."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100, examples=["fleet-2026-01"])


class ModelReference(BaseModel):
    """A model: its name and the SHA-256 of its manifest."""

    name: str
    sha256: str


class ReloadResponse(BaseModel):
    """The models before and after a reload."""

    old: ModelReference
    new: ModelReference
