"""The fleet's contract: the metrics with their units and bounds, and the shape of a feed.

Invariant: the order of `METRICS` is the order of columns everywhere (window, store, bundle, forecast). Adding,
removing or moving a metric makes old bundles unusable and needs a new `CONTRACT_VERSION`; the store saves the names
next to the numbers and maps the columns. For every metric a higher value is worse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, Literal, NotRequired, get_args

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

CONTRACT_VERSION = 1
NDJSON = "application/x-ndjson"
SERVER_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
PROFILE_PATTERN = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
DEFAULT_PROFILE = "generic"
DEFAULT_STATUS = "ok"
MAX_REASONS = 100  # refusals listed in one response; the others are only counted

Transform = Literal["none", "log1p"]
Status = Literal["ok", "degraded", "down", "maintenance"]
STATUSES: tuple[str, ...] = get_args(Status)
STATUS_CODES = MappingProxyType({status: code for code, status in enumerate(STATUSES)})
ServerName = Annotated[str, Field(pattern=f"^{SERVER_PATTERN.pattern}$")]
ProfileName = Annotated[str, Field(pattern=f"^{PROFILE_PATTERN.pattern}$")]


@dataclass(frozen=True)
class MetricDefinition:
    """One metric: its readable name, its unit, the physical bounds of its values, and how a model scales it."""

    name: str
    label: str
    unit: str
    low: float
    high: float
    transform: Transform
    description: str


_METRICS: tuple[tuple[str, str, str, float, float, Transform, str], ...] = (
    ("cpu_percent", "CPU", "%", 0.0, 100.0, "none", "processor time in use, of all cores"),
    ("cpu_iowait_percent", "I/O wait", "%", 0.0, 100.0, "none", "processor time spent waiting for disks"),
    (
        "load_per_core",
        "load per core",
        "1",
        0.0,
        10_000.0,
        "log1p",
        "runnable processes per core, averaged over a minute",
    ),
    ("memory_percent", "memory", "%", 1.0, 100.0, "none", "memory in use; a running machine always uses some"),
    ("swap_percent", "swap", "%", 0.0, 100.0, "none", "swap space in use"),
    ("disk_percent", "disk space", "%", 0.0, 100.0, "none", "the fullest file system"),
    ("disk_busy_percent", "disk busy", "%", 0.0, 100.0, "none", "time the busiest disk was working"),
    ("disk_latency_ms", "disk latency", "ms", 0.0, 3_600_000.0, "log1p", "mean time of a disk request"),
    ("network_in_mb_s", "network in", "MB/s", 0.0, 200_000.0, "log1p", "received, all interfaces, in 10^6 bytes"),
    ("network_out_mb_s", "network out", "MB/s", 0.0, 200_000.0, "log1p", "sent, all interfaces, in 10^6 bytes"),
    ("network_errors_per_s", "network errors", "1/s", 0.0, 1e9, "log1p", "errors and drops, all interfaces"),
    ("latency_ms", "latency", "ms", 0.0, 3_600_000.0, "log1p", "time to answer a request, the service's own measure"),
    ("requests_per_s", "requests", "1/s", 0.0, 1e9, "log1p", "requests answered"),
    ("error_percent", "errors", "%", 0.0, 100.0, "none", "requests that failed"),
)
METRICS = tuple(MetricDefinition(*fields) for fields in _METRICS)
METRIC_NAMES = tuple(metric.name for metric in METRICS)
METRIC_INDEX = MappingProxyType({name: place for place, name in enumerate(METRIC_NAMES)})
METRIC_COUNT = len(METRICS)
PERCENT_COLUMNS = tuple(place for place, metric in enumerate(METRICS) if metric.unit == "%")

# Unit of the contract -> spelling that a feed's `units` may use -> factor into the contract's unit.
UNIT_FACTORS = MappingProxyType({
    "%": {"%": 1.0, "percent": 1.0, "pct": 1.0, "ratio": 100.0, "fraction": 100.0, "permille": 0.1},
    "ms": {"ms": 1.0, "s": 1e3, "us": 1e-3, "µs": 1e-3, "ns": 1e-6, "min": 6e4,
           "milliseconds": 1.0, "seconds": 1e3, "microseconds": 1e-3, "nanoseconds": 1e-6},
    "MB/s": {"MB/s": 1.0, "GB/s": 1e3, "kB/s": 1e-3, "KB/s": 1e-3, "B/s": 1e-6, "bytes/s": 1e-6,
             "GiB/s": 1073.741824, "MiB/s": 1.048576, "KiB/s": 1.024e-3,
             "bit/s": 1.25e-7, "kbit/s": 1.25e-4, "Mbit/s": 0.125, "Gbit/s": 125.0,
             "bps": 1.25e-7, "kbps": 1.25e-4, "Mbps": 0.125, "Gbps": 125.0},
    "1/s": {"1/s": 1.0, "/s": 1.0, "per_second": 1.0, "Hz": 1.0, "rps": 1.0, "1/min": 1 / 60, "per_minute": 1 / 60},
    "1": {"1": 1.0, "ratio": 1.0, "%": 0.01, "percent": 0.01},
})  # fmt: skip


class FeedError(ValueError):
    """The body is not a feed of this contract; the message says what is wrong and what is expected. HTTP 400."""


def unit_factor(metric: str, unit: str) -> float:
    """The factor that converts a value of `metric` in `unit` into the contract's unit.

    Raises:
        FeedError: the metric is unknown, or the unit does not fit it.
    """
    if metric not in METRIC_INDEX:
        raise FeedError(
            f"units names {format_value(metric)}, which is not a metric of this contract; "
            f"the metrics are {', '.join(METRIC_NAMES)}"
        )
    spellings = UNIT_FACTORS[METRICS[METRIC_INDEX[metric]].unit]
    if unit not in spellings:
        raise FeedError(f"units says {metric} is in {format_value(unit)}; it may be in {', '.join(spellings)}")
    return spellings[unit]


def format_value(value: object) -> str:
    """A sender's value for a message: short, printable, and quoted if it is a text."""
    if isinstance(value, dict | list | tuple | set):
        return "an object" if isinstance(value, dict) else "a list"
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number with too many digits"
    text = ascii(value[:48] if isinstance(value, str) else value)
    return text if len(text) <= 64 else f"{text[:60]}..."


# The metrics of a record: a finite number, or null. Other names are ignored. mypy knows no keys that are computed.
MetricValues = TypedDict(  # type: ignore[misc]
    "MetricValues",
    {name: Annotated[float | None, Field(strict=True, allow_inf_nan=False)] for name in METRIC_NAMES},
    total=False,
)


@with_config(ConfigDict(title="FeedRecord", strict=True, extra="ignore"))
class FeedRecord(TypedDict):
    """One server at one time. A missing or null metric has no value; metrics with unknown names are counted and
    ignored."""

    server: Annotated[ServerName, Field(examples=["web-01"])]
    time: Annotated[float | str, Field(description="Unix seconds, or ISO 8601; a time without an offset is UTC.")]
    profile: NotRequired[Annotated[ProfileName | None, Field(json_schema_extra={"default": DEFAULT_PROFILE})]]
    status: NotRequired[Annotated[Status | None, Field(json_schema_extra={"default": DEFAULT_STATUS})]]
    metrics: NotRequired[Annotated[MetricValues | None, Field(examples=[{"cpu_percent": 12.5}])]]


class Feed(BaseModel):
    """A batch of records: what `POST /feed` accepts as JSON. In NDJSON each line is one record, without this
    envelope."""

    model_config = ConfigDict(title="Feed", strict=True, extra="ignore")

    version: Literal[1]
    units: dict[str, str] | None = Field(default=None, description="Units of the metrics that use another unit.")
    records: list[FeedRecord]


class FeedEnvelope(BaseModel):
    """A feed whose records are not validated yet: an invalid record must not reject the others."""

    model_config = ConfigDict(strict=True, extra="ignore")

    version: Annotated[int, Field(ge=CONTRACT_VERSION, le=CONTRACT_VERSION)]  # a Literal would accept true
    units: dict[str, str] | None = None
    records: list[Any]


class FeedRejection(BaseModel):
    """Why one row was refused. `row` counts from 0; in NDJSON it is the line number, also from 0."""

    row: int
    server: str | None
    reason: str
    code: str


class FeedResponse(BaseModel):
    """The result of a feed. Lists at most 100 reasons; `counts` has all of them by code, and other observations."""

    version: Literal[1] = 1
    accepted: int
    refused: int
    duplicates: int
    reasons: list[FeedRejection]
    counts: dict[str, int]
