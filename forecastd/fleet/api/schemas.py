"""The shapes of the answers, for the API's description. Answers are not made from them: most are kept as bytes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EXAMPLE_TIME = "2026-01-31T12:00:00Z"


class ErrorResponse(BaseModel):
    """Every error: what was wrong, and what to do about it."""

    error: str = Field(examples=["No server 'web-99' is known."])
    fix: str = Field(examples=["GET /servers lists those that are."])


class HealthResponse(BaseModel):
    """Whether the fleet does what it is for. `warnings` do not make it unhealthy."""

    ok: bool
    reasons: list[str]
    warnings: list[str]


class ServerResponse(BaseModel):
    """One server. `needs`: ticks that are missing until the model can forecast it."""

    server: str = Field(examples=["web-01"])
    profile: str = Field(examples=["web"])
    status: Literal["ok", "degraded", "down", "maintenance"]
    state: Literal["ready", "warming", "silent"]
    reason: str = Field(examples=["ready"])
    missing_ticks: int
    model: Literal["tft", "heuristic"] | None = Field(description="What forecast it; null before its first forecast.")
    score: float = Field(description="Its risk, 0 to 100.")
    level: Literal["ok", "watch", "warning", "critical"]
    last_seen: str | None = Field(examples=[EXAMPLE_TIME])
    age_seconds: float | None


class ServersResponse(BaseModel):
    """The servers of the fleet, by name. `count` is before `limit` and `offset`."""

    tick: int
    time: str = Field(examples=[EXAMPLE_TIME])
    count: int
    states: dict[str, int]
    servers: list[ServerResponse]


class ForecastTimes(BaseModel):
    """The first and the last moment that a forecast speaks of."""

    first: str = Field(examples=["2026-01-31T12:00:05Z"])
    last: str = Field(examples=["2026-01-31T12:08:00Z"])


class ServerForecastResponse(BaseModel):
    """The forecast of one server. Number `k` of every list speaks of the time `origin + (k + 1) * step_seconds`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "server": "web-01", "profile": "web", "model": "tft", "bundle": "fleet-demo", "made_at": EXAMPLE_TIME,
                    "age_seconds": 1.3, "origin": EXAMPLE_TIME, "step_seconds": 5, "horizon_steps": 3, "horizon_seconds": 15,
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
    model: Literal["tft", "heuristic"] = Field(description="A heuristic stands in while there is too little data.")
    bundle: str
    made_at: str
    age_seconds: float | None = Field(default=None, description="In a list it stands once, beside it.")
    origin: str = Field(description="The last tick that was observed.")
    step_seconds: int
    horizon_steps: int
    horizon_seconds: int
    horizon: str
    times: ForecastTimes
    levels: list[float]
    metrics: dict[str, dict[str, Any]] = Field(description="By metric: its unit, and a list for each level.")


class ForecastsResponse(BaseModel):
    """The newest forecast of the fleet. `count` is before `limit` and `offset`."""

    made_at: str | None
    age_seconds: float | None
    count: int
    forecasts: list[ServerForecastResponse]


class RiskResponse(BaseModel):
    """The risk of one server."""

    server: str
    profile: str
    status: str
    score: float = Field(description="0 to 100; it rises with every metric.")
    level: Literal["ok", "watch", "warning", "critical"]
    reasons: list[str] = Field(examples=[["cpu 97 %, critical from 95 %"]])
    incident_probability: float | None = Field(
        description="That a metric reaches its critical threshold in the horizon."
    )
    minutes_ahead: float | None
    quantile_ahead: float | None
    current: dict[str, float] = Field(description="The metrics that are known now.")


class RisksResponse(BaseModel):
    """The servers at risk, the worst first, and the fleet in a few figures."""

    tick: int
    time: str = Field(examples=[EXAMPLE_TIME])
    summary: dict[str, Any]
    servers: list[RiskResponse]


class AlertsResponse(BaseModel):
    """The alerts that are open, the gravest first, and the latest events, the newest first."""

    open: list[dict[str, Any]]
    recent: list[dict[str, Any]]


class HistoryResponse(BaseModel):
    """What was observed. `values` are in the order of `metrics`, null where nothing came."""

    start: str
    end: str
    metrics: list[str]
    count: int
    truncated: bool = Field(description="There was more: ask again from the last row's time, or for less.")
    rows: list[dict[str, Any]] = Field(
        examples=[
            [{"server": "web-01", "time": 1769860800.0, "profile": "web", "status": "ok", "values": [12.5, None]}]
        ]
    )


class StatusResponse(BaseModel):
    """How the fleet stands."""

    model_config = ConfigDict(extra="allow")

    version: str
    started_at: str
    now: str
    uptime_seconds: float
    step_seconds: int
    synthetic: bool = Field(description="The servers are made up.")
    speed: float = Field(description="How fast time goes; anything but 1 is a rehearsal.")
    health: HealthResponse
    model: dict[str, Any]
    tick: dict[str, Any]
    forecast: dict[str, Any]
    servers: dict[str, int]
    window: dict[str, Any]
    ingest: dict[str, Any]
    pulls: list[dict[str, Any]]
    risk: dict[str, Any]
    alerts: dict[str, int]
    supervision: dict[str, Any]


class ReloadRequest(BaseModel):
    """Which bundle is to run: the name of its directory in FLEET_MODELS_DIR."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(min_length=1, max_length=100, examples=["fleet-2026-01"])


class ModelReference(BaseModel):
    """A model by its name and the hash of its manifest."""

    name: str
    sha256: str


class ReloadResponse(BaseModel):
    """One model took another's place."""

    old: ModelReference
    new: ModelReference
