"""The JSON documents of the fleet's API, each defined once.

The server fills them and sends them, the OpenAPI document describes them, the commands parse them, and the metrics
read them.

Invariant: the other side may be older or newer. A field without a default identifies the document; a reader ignores
unknown fields, and gives a missing field its default. The server fills every field.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from forecastd.fleet.contract import STATUSES, FeedResponse

RISK_LEVELS = ("ok", "watch", "warning", "critical")
EXAMPLE_TIME = "2026-01-31T12:00:00Z"
T = TypeVar("T")


def _one_of(*values: str) -> WithJsonSchema:
    """The known values of a text. A reader accepts others: a newer server may have more."""
    return WithJsonSchema({"type": "string", "enum": list(values)})


Time = Annotated[str, Field(examples=[EXAMPLE_TIME])]
RiskLevel = Annotated[str, _one_of(*RISK_LEVELS)]
ReportedStatus = Annotated[str, _one_of(*STATUSES)]
ForecastModel = Annotated[str, _one_of("tft", "heuristic")]


class _Document:
    """The OpenAPI document lists every field as required, because the server fills every field."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(json_schema_serialization_defaults_required=True)


@dataclass(frozen=True)
class ErrorResponse(_Document):
    """Every error: what is wrong, and what to do."""

    error: Annotated[str, Field(examples=["Unknown server 'web-99'."])]
    fix: Annotated[str, Field(examples=["GET /servers lists the servers."])]


@dataclass(frozen=True)
class HealthResponse(_Document):
    """Whether the fleet is healthy, and the reasons if not. `warnings` do not make it unhealthy."""

    ok: bool = True
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServedModel(_Document):
    """The model in use. It forecasts servers with at least `encoder_minimum` ticks."""

    name: str = ""
    sha256: str = ""
    engine: str = ""
    metrics: tuple[str, ...] = ()
    horizon_steps: int = 0
    encoder_length: int = 0
    encoder_minimum: int | None = None


@dataclass(frozen=True)
class NewestTick(_Document):
    """The newest closed tick, -1 before the first row. `age_seconds`: the time since its end."""

    newest: int = -1
    time: Time | None = None
    age_seconds: float | None = None


@dataclass(frozen=True)
class ForecastSummary(_Document):
    """The newest forecast of the fleet, null before the first one, and counters since the start.

    `seconds`: how long it took. `tft`, `heuristic`: the number of servers that each model forecast.
    """

    made_at: Time | None = None
    origin: Time | None = None
    age_seconds: float | None = None
    seconds: float | None = None
    servers: int = 0
    tft: int = 0
    heuristic: int = 0
    skipped_ticks: int = 0
    failures: int = 0
    last_error: str | None = None


@dataclass(frozen=True)
class ServerCounts(_Document):
    """The number of servers in total and by state."""

    total: int = 0
    ready: int = 0
    warming: int = 0
    silent: int = 0


@dataclass(frozen=True)
class StoredWindow(_Document):
    """The window on disk. `age_seconds`: of its newest tick; `loaded_age_seconds`: the same when it was loaded.

    `damaged`: ticks that could not be loaded. `last_error`: why it cannot be written, null while it can.
    """

    ticks: int = 0
    age_seconds: float | None = None
    oldest: Time | None = None
    loaded_age_seconds: float | None = None
    damaged: int = 0
    disk_bytes: int = 0
    last_error: str | None = None


@dataclass(frozen=True)
class IngestCounters(_Document):
    """Rows since the start. `by_reason`: by the code of their refusal, and other observations."""

    accepted: int = 0
    refused: int = 0
    duplicates: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)

    def add(self, response: FeedResponse) -> IngestCounters:
        """The counters with those of one more feed."""
        by_reason = Counter(self.by_reason)
        by_reason.update(response.counts)
        return IngestCounters(
            self.accepted + response.accepted,
            self.refused + response.refused,
            self.duplicates + response.duplicates,
            by_reason,
        )


@dataclass(frozen=True)
class ScrapeStatus(_Document):
    """One scraped page. `metrics`: their number in the last row. `error`: why the last scrape failed, null after a
    success.
    """

    server: str
    page: str
    ok: bool = False
    rows: int = 0
    failures: int = 0
    metrics: int = 0
    last_row: Time | None = None
    error: str | None = None

    def with_row(self, metrics: int, time: str) -> ScrapeStatus:
        """The status after a row was accepted."""
        return replace(self, ok=True, rows=self.rows + 1, metrics=metrics, last_row=time, error=None)

    def with_error(self, error: str) -> ScrapeStatus:
        """The status after a failure."""
        return replace(self, ok=False, failures=self.failures + 1, error=error)


@dataclass(frozen=True)
class RiskSummary(_Document):
    """The risk of the fleet. `counts`: servers by level; servers in maintenance count in `maintenance` only.

    `incident_probability`: the probability that at least one server has an incident within the horizon, treating
    servers as independent; a shared fault makes the true probability smaller. `expected_incidents`: the expected
    number of servers with an incident, which needs no independence. Both ignore servers without a forecast and are
    None where no server has one.
    """

    servers: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    maintenance: int = 0
    silent: int = 0
    mean_score: float | None = None
    worst: Mapping[str, Any] | None = None
    incident_probability: float | None = None
    expected_incidents: float | None = None


@dataclass(frozen=True)
class AlertCounts(_Document):
    """The number of open alerts, and of the critical ones among them."""

    open: int = 0
    critical: int = 0


@dataclass(frozen=True)
class SupervisionSummary(_Document):
    """The counters of the model processes, and the processes.

    `hangs`: by `phase` and `bundle`. `jobs`: by result.
    """

    launches: int = 0
    replacements: int = 0
    failovers: int = 0
    recovered_stalls: int = 0
    crashes: int = 0
    invalid_results: int = 0
    deadlines_exceeded: int = 0
    stale_messages: int = 0
    quarantines: int = 0
    hangs: tuple[Mapping[str, Any], ...] = ()
    jobs: Mapping[str, int] = field(default_factory=dict)
    children: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StatusResponse(_Document):
    """The state of the fleet service.

    `synthetic`: the servers are simulated. `speed`: of the clock; 1 is real time, anything else a rehearsal.
    """

    version: str
    started_at: Time | None = None
    now: Time
    uptime_seconds: float | None = None
    step_seconds: int
    synthetic: bool = False
    speed: float = 1.0
    health: HealthResponse = HealthResponse()
    model: ServedModel = ServedModel()
    tick: NewestTick
    forecast: ForecastSummary = ForecastSummary()
    servers: ServerCounts
    window: StoredWindow = StoredWindow()
    ingest: IngestCounters = IngestCounters()
    scrapes: tuple[ScrapeStatus, ...] = ()
    risk: RiskSummary = RiskSummary()
    alerts: AlertCounts = AlertCounts()
    supervision: SupervisionSummary = SupervisionSummary()


@dataclass(frozen=True)
class ServerStatus(_Document):
    """One server. `missing_ticks`: ticks that the model still needs to forecast it, 0 when it can.

    `state` is ready, warming or silent; `reason` explains it. `model`: the one that forecast it; null before its first
    forecast.
    """

    server: Annotated[str, Field(examples=["web-01"])]
    profile: Annotated[str, Field(examples=["web"])]
    status: ReportedStatus
    state: Annotated[str, _one_of("ready", "warming", "silent")]
    reason: Annotated[str, Field(examples=["ready"])]
    missing_ticks: int
    score: Annotated[float, Field(description="The risk score, 0 to 100.")]
    level: RiskLevel
    model: ForecastModel | None = None
    last_seen: Time | None = None
    age_seconds: float | None = None


@dataclass(frozen=True)
class ServersResponse(_Document):
    """The servers of the fleet, sorted by name. `count`: the number before `limit` and `offset` apply."""

    tick: int
    time: Time
    count: int
    states: ServerCounts
    servers: tuple[ServerStatus, ...]


@dataclass(frozen=True)
class ForecastTimes(_Document):
    """The times of the first and the last step of a forecast."""

    first: Time = ""
    last: Time = ""


@dataclass(frozen=True, kw_only=True)
class ServerForecastResponse:
    """The forecast of one server. Element `k` of every list is for the time `origin + (k + 1) * step_seconds`.

    `model`: the heuristic is used while a server has too little data for the model. `origin`: the time of the last
    observed tick. `metrics`: by metric, its unit, and a list of values for each level. `age_seconds`: in a list of
    forecasts it is given once, for all.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        json_schema_serialization_defaults_required=True,
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
        },
    )  # fmt: skip

    server: str
    profile: str = ""
    model: ForecastModel = ""
    bundle: str = ""
    made_at: Time = ""
    origin: Time = ""
    step_seconds: int = 0
    horizon_steps: int = 0
    horizon_seconds: int = 0
    horizon: str = ""
    times: ForecastTimes = ForecastTimes()
    levels: tuple[float, ...] = ()
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    age_seconds: float | None = None

    def quantiles(self, metric: str, level: str) -> tuple[float, ...]:
        """The values of a quantile, oldest first; empty where the forecast has none."""
        values = self.metrics.get(metric, {}).get(level, ())
        steps = values if isinstance(values, list) else ()
        return tuple(float(value) for value in steps if isinstance(value, int | float))


@dataclass(frozen=True, kw_only=True)
class ForecastsResponse(_Document):
    """The newest forecast of the fleet. `count`: the number of servers before `limit` and `offset` apply."""

    made_at: Time | None = None
    age_seconds: float | None = None
    count: int = 0
    forecasts: tuple[ServerForecastResponse, ...]


@dataclass(frozen=True, kw_only=True)
class ServerRisk(_Document):
    """The risk of one server: `score` 0 to 100, its `level`, and `reasons`, the worst first (none at level ok).

    `incident_probability`: the probability that any metric is at or above its critical threshold now or within the
    horizon; None without a forecast. It treats metrics as independent and the steps of one metric as fully dependent.
    `minutes_ahead`: minutes until the p50 of a metric first reaches its critical threshold; where no p50 does, until
    a p90 does (`quantile_ahead` is the quantile); 0 where a value is critical now; None where none becomes critical.
    `current`: the current values of the known metrics. A server in maintenance has a score, but its level is `ok` and
    it raises no alert.
    """

    server: str
    profile: str = ""
    status: ReportedStatus = "ok"
    score: Annotated[float, Field(description="0 to 100; rises with every metric.")]
    level: RiskLevel
    reasons: Annotated[tuple[str, ...], Field(examples=[["cpu 97 %, critical from 95 %"]])] = ()
    incident_probability: float | None = None
    minutes_ahead: float | None = None
    quantile_ahead: float | None = None
    current: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RisksResponse(_Document):
    """The risk of the fleet, and of its servers, the worst first."""

    tick: int = -1
    time: Time | None = None
    summary: RiskSummary = RiskSummary()
    servers: tuple[ServerRisk, ...]


@dataclass(frozen=True, kw_only=True)
class AlertDocument(_Document):
    """An alert; see `FleetAlert`. `unit`: that of its value and its thresholds, null if they have none."""

    id: str = ""
    server: str = ""
    profile: str = ""
    condition: str = ""
    severity: str
    opened_at: Time | None = None
    since: Time | None = None
    value: float | None = None
    warning: float | None = None
    critical: float | None = None
    minutes_ahead: float | None = None
    unit: str | None = None
    message: str


@dataclass(frozen=True, kw_only=True)
class AlertEventDocument(_Document):
    """A change of an alert at a time; `alert` is its state then. `reason`: why it was cleared, else empty."""

    event: str
    at: Time
    reason: str = ""
    alert: AlertDocument


@dataclass(frozen=True)
class AlertsResponse(_Document):
    """The open alerts, the most severe first, and the latest events, the newest first."""

    open: tuple[AlertDocument, ...]
    recent: tuple[AlertEventDocument, ...] = ()


@dataclass(frozen=True)
class HistoryRow(_Document):
    """One observed row. `values` are in the order of `metrics` of the response, null where a value is missing."""

    server: str
    time: Annotated[float, Field(examples=[1769860800.0])]
    profile: str
    status: ReportedStatus
    values: Annotated[list[float | None], Field(examples=[[12.5, None]])]


@dataclass(frozen=True)
class HistoryResponse(_Document):
    """The observed rows, sorted by time. `truncated`: there are more rows: continue from the time of the last row, or
    request fewer.
    """

    start: Time
    end: Time
    metrics: tuple[str, ...]
    count: int
    truncated: bool
    rows: list[HistoryRow]


@dataclass(frozen=True)
class ReloadRequest:
    """The bundle to switch to: the name of its directory in FLEET_MODELS_DIR."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(min_length=1, max_length=100, examples=["fleet-2026-01"])]


@dataclass(frozen=True)
class ModelReference(_Document):
    """A model: its name and the SHA-256 of its manifest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class ReloadResponse(_Document):
    """The models before and after a reload."""

    old: ModelReference
    new: ModelReference


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Parses and describes documents of a kind."""
    return TypeAdapter(kind)


def parse_document(kind: type[T], document: Mapping[str, Any]) -> T:
    """A received document.

    Raises:
        ValueError: it is not of this kind; the message names the first invalid field.
    """
    try:
        parsed: T = adapter(cast(Hashable, kind)).validate_python(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        location = ".".join(str(part) for part in first["loc"]) or "the document"
        raise ValueError(f"{location} is invalid ({first['msg']})") from None
    return parsed
