"""The parts of the fleet's responses that the commands show.

Invariant: the service may be older or newer than this program. Missing fields have defaults and are not shown,
unknown fields are ignored, and only a response without the required fields is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.fleet.client import FleetClient

T = TypeVar("T", bound="ResponseView")


class ResponseView(BaseModel):
    """A part of a response."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class HealthView(ResponseView):
    ok: bool = True
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ModelView(ResponseView):
    name: str = ""
    sha256: str = ""
    engine: str = ""
    horizon_steps: int = 0
    encoder_minimum: int | None = None


class TickView(ResponseView):
    newest: int = -1
    time: str | None = None
    age_seconds: float | None = None


class ForecastView(ResponseView):
    made_at: str | None = None
    age_seconds: float | None = None
    seconds: float | None = None
    servers: int = 0
    tft: int = 0
    heuristic: int = 0
    skipped_ticks: int = 0
    failures: int = 0
    last_error: str | None = None


class ServersView(ResponseView):
    total: int = 0
    ready: int = 0
    warming: int = 0
    silent: int = 0


class WindowView(ResponseView):
    ticks: int = 0
    oldest: str | None = None
    loaded_age_seconds: float | None = None
    damaged: int = 0
    disk_bytes: int = 0
    last_error: str | None = None


class IngestView(ResponseView):
    accepted: int = 0
    refused: int = 0
    duplicates: int = 0
    by_reason: Mapping[str, int] = Field(default_factory=dict)


class RiskSummaryView(ResponseView):
    servers: int = 0
    counts: Mapping[str, int] = Field(default_factory=dict)
    maintenance: int = 0
    silent: int = 0
    mean_score: float | None = None
    incident_probability: float | None = None
    expected_incidents: float | None = None


class SupervisionView(ResponseView):
    replacements: int = 0
    crashes: int = 0
    failovers: int = 0
    children: tuple[Mapping[str, Any], ...] = ()


class StatusView(ResponseView):
    """`GET /status`. The fields without a default identify a fleet."""

    version: str
    now: str
    step_seconds: int
    started_at: str | None = None
    uptime_seconds: float | None = None
    synthetic: bool = False
    speed: float = 1.0
    health: HealthView = HealthView()
    model: ModelView = ModelView()
    tick: TickView
    forecast: ForecastView = ForecastView()
    servers: ServersView
    window: WindowView = WindowView()
    ingest: IngestView = IngestView()
    supervision: SupervisionView = SupervisionView()


class RiskView(ResponseView):
    server: str
    profile: str = ""
    status: str = "ok"
    score: float
    level: str
    reasons: tuple[str, ...] = ()
    incident_probability: float | None = None
    minutes_ahead: float | None = None
    quantile_ahead: float | None = None
    current: Mapping[str, float] = Field(default_factory=dict)


class RisksView(ResponseView):
    """`GET /risk`."""

    summary: RiskSummaryView = RiskSummaryView()
    servers: tuple[RiskView, ...]


class AlertView(ResponseView):
    severity: str
    message: str
    opened_at: str | None = None
    server: str = ""


class AlertEventView(ResponseView):
    event: str
    at: str
    alert: AlertView
    reason: str = ""


class AlertsView(ResponseView):
    """`GET /alerts`."""

    open: tuple[AlertView, ...]
    recent: tuple[AlertEventView, ...] = ()


class ServerForecastView(ResponseView):
    server: str
    step_seconds: int = 0
    model: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    def quantiles(self, metric: str, level: str) -> tuple[float, ...]:
        """The values of a quantile, oldest first; empty where the forecast has none."""
        values = self.metrics.get(metric, {}).get(level, ())
        steps = values if isinstance(values, list) else ()
        return tuple(float(value) for value in steps if isinstance(value, int | float))


class ForecastsView(ResponseView):
    """`GET /forecast`."""

    forecasts: tuple[ServerForecastView, ...]


def fetch(client: FleetClient, kind: type[T], path: str, **params: str | int) -> T:
    """The response at a path as `kind`. Raises as `FleetClient.get` does."""
    return parse_response(client, kind, path, client.get(path, **params))


def parse_response(client: FleetClient, kind: type[T], path: str, document: Mapping[str, Any]) -> T:
    """The document as `kind`. Raises NeedsHuman when it is invalid."""
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "the document"
        raise client.not_a_fleet(f"{path}: {location} is invalid ({first['msg']}).") from None
