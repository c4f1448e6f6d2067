"""What a running fleet tells of itself, as far as people are shown it.

The one thing to know before changing it: the service may be older or newer than this program, so what is not there is not
shown, what is unknown is passed over, and only an answer that is of another kind altogether is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cli.fleet.asking import FleetService

T = TypeVar("T", bound="Told")


class Told(BaseModel):
    """A part of an answer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Health(Told):
    ok: bool = True
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class Model(Told):
    name: str = ""
    sha256: str = ""
    engine: str = ""
    horizon_steps: int = 0
    encoder_minimum: int | None = None


class Tick(Told):
    newest: int = -1
    time: str | None = None
    age_seconds: float | None = None


class Forecast(Told):
    made_at: str | None = None
    age_seconds: float | None = None
    seconds: float | None = None
    servers: int = 0
    tft: int = 0
    heuristic: int = 0
    skipped_ticks: int = 0
    failures: int = 0
    last_error: str | None = None


class Servers(Told):
    total: int = 0
    ready: int = 0
    warming: int = 0
    silent: int = 0


class Window(Told):
    ticks: int = 0
    oldest: str | None = None
    loaded_age_seconds: float | None = None
    damaged: int = 0
    disk_bytes: int = 0
    last_error: str | None = None


class Ingest(Told):
    accepted: int = 0
    refused: int = 0
    duplicates: int = 0
    by_reason: Mapping[str, int] = Field(default_factory=dict)


class Summary(Told):
    servers: int = 0
    counts: Mapping[str, int] = Field(default_factory=dict)
    maintenance: int = 0
    silent: int = 0
    mean_score: float | None = None
    incident_probability: float | None = None
    incidents_expected: float | None = None


class Supervision(Told):
    replacements: int = 0
    crashes: int = 0
    hand_overs: int = 0
    children: tuple[Mapping[str, Any], ...] = ()


class Status(Told):
    """`GET /status`. What has no default must be there: by it a fleet is known."""

    version: str
    now: str
    step_seconds: int
    started_at: str | None = None
    uptime_seconds: float | None = None
    synthetic: bool = False
    speed: float = 1.0
    health: Health = Health()
    model: Model = Model()
    tick: Tick
    forecast: Forecast = Forecast()
    servers: Servers
    window: Window = Window()
    ingest: Ingest = Ingest()
    supervision: Supervision = Supervision()


class Risk(Told):
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


class Risks(Told):
    """`GET /risk`."""

    summary: Summary = Summary()
    servers: tuple[Risk, ...]


class Alert(Told):
    severity: str
    message: str
    opened_at: str | None = None
    server: str = ""


class Event(Told):
    event: str
    at: str
    alert: Alert
    reason: str = ""


class Alerts(Told):
    """`GET /alerts`."""

    open: tuple[Alert, ...]
    recent: tuple[Event, ...] = ()


class ServerForecast(Told):
    server: str
    step_seconds: int = 0
    model: str = ""
    metrics: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)

    def path(self, metric: str, level: str) -> tuple[float, ...]:
        """The quantile's numbers, oldest first; none where it has none."""
        found = self.metrics.get(metric, {}).get(level, ())
        numbers = found if isinstance(found, list) else ()
        return tuple(float(one) for one in numbers if isinstance(one, int | float))


class Forecasts(Told):
    """`GET /forecast`."""

    forecasts: tuple[ServerForecast, ...]


def ask(service: FleetService, kind: type[T], path: str, **params: str | int) -> T:
    """What a path tells. Raises as `FleetService.get` does."""
    return understood(service, kind, path, service.get(path, **params))


def understood(service: FleetService, kind: type[T], path: str, told: Mapping[str, Any]) -> T:
    """An answer of this kind. Raises NeedsHuman when it is of another."""
    try:
        return kind.model_validate(told)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise service.stranger(f"in what {path} tells, {where} makes no sense ({first['msg']}).") from None
