"""`GET /metrics`: the fleet and its requests in the Prometheus text format.

Invariant: nothing that a client sends decides the number of time series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Scope

from forecastd.fleet import status
from forecastd.fleet.api.context import ApiContext
from forecastd.fleet.api.errors import error_responses
from forecastd.fleet.documents import SupervisionSummary
from forecastd.fleet.fleet import Fleet

PREFIX = "forecastd_fleet"
OTHER = "other"
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})
BUCKET_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
MAX_REASONS = 50  # refusal codes; there are about a dozen


def router(context: ApiContext, registry: CollectorRegistry) -> APIRouter:
    """The route. `registry` also has the request metrics."""
    registry.register(FleetCollector(context.fleet))
    routes = APIRouter(tags=["fleet"])

    @routes.get(
        "/metrics", response_class=Response, responses={**error_responses(), 200: {"content": {"text/plain": {}}}}
    )
    async def metrics() -> Response:
        """Gauges and counters for Prometheus."""
        return Response(
            await context.run_in_thread(lambda: generate_latest(registry)), 200, media_type=CONTENT_TYPE_LATEST
        )

    return routes


Values = float | None | Mapping[Any, float]  # the only value, or those by the values of the labels


class RequestMetrics:
    """Counts and durations of requests by route. A path without a route counts as `other`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            f"{PREFIX}_request_seconds",
            "How long requests took.",
            ("route",),
            buckets=BUCKET_SECONDS,
            registry=registry,
        )
        self._requests = Counter(
            f"{PREFIX}_requests",
            "Requests by route, method and status.",
            ("route", "method", "status"),
            registry=registry,
        )

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Record a request that was answered with this status."""
        route = str(getattr(scope.get("route"), "path", OTHER))
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._seconds.labels(route).observe(seconds)
        self._requests.labels(route, method, str(status)).inc()


class FleetCollector(Collector):
    """Reads the fleet when Prometheus scrapes it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        """Empty, so that registering does not call `collect`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the fleet."""
        document = status.status_document(self._fleet)
        forecast, ingest, servers, window = document.forecast, document.ingest, document.servers, document.window
        yield _gauge("up", "1 while the fleet is healthy.", float(document.health.ok))
        info = (document.version, document.model.name, document.model.sha256[:12])
        yield _gauge("info", "Version and model.", {info: 1.0}, "version", "model", "sha256")
        yield _gauge("synthetic", "1 when the servers are simulated.", float(document.synthetic))
        yield _gauge("tick_age_seconds", "Time since the end of the newest closed tick.", document.tick.age_seconds)
        yield _gauge("forecast_age_seconds", "Age of the newest forecast.", forecast.age_seconds)
        yield _gauge("forecast_seconds", "Duration of the newest forecast.", forecast.seconds)
        by_model = {"tft": forecast.tft, "heuristic": forecast.heuristic}
        yield _gauge("forecast_servers", "Servers in the newest forecast by model.", by_model, "model")
        yield _counter("skipped_ticks", "Ticks without a forecast because the model was busy.", forecast.skipped_ticks)
        yield _counter("forecast_failures", "Forecasts that failed.", forecast.failures)
        states = {"ready": servers.ready, "warming": servers.warming, "silent": servers.silent}
        yield _gauge("servers", "Servers by state.", states, "state")
        rows = {"accepted": ingest.accepted, "refused": ingest.refused, "duplicates": ingest.duplicates}
        yield _counter("rows", "Received rows by result.", rows, "result")
        reasons = dict(sorted(ingest.by_reason.items())[:MAX_REASONS])
        yield _counter("row_reasons", "Rows that were refused or noted, by reason.", reasons, "reason")
        yield _gauge("window_ticks", "Ticks in the window on disk.", window.ticks)
        yield _gauge("window_bytes", "Size of the window on disk.", window.disk_bytes)
        is_failing = float(window.last_error is not None)
        yield _gauge("window_write_failed", "1 while the window cannot be written to disk.", is_failing)
        yield _gauge("alerts", "Open alerts.", vars(document.alerts), "kind")
        yield _gauge("risk_servers", "Servers by risk level.", document.risk.counts, "level")
        yield from _supervision_metrics(document.supervision)


def _supervision_metrics(summary: SupervisionSummary) -> Iterator[Metric]:
    for name, value in vars(summary).items():
        if isinstance(value, int):
            yield _counter(f"model_{name}", f"Model processes: {name.replace('_', ' ')}.", value)
    hangs: dict[str, int] = {}
    for hang in summary.hangs:
        hangs[hang["phase"]] = hangs.get(hang["phase"], 0) + hang["count"]
    yield _counter("model_hangs", "Model processes that made no progress, by phase.", hangs, "phase")
    yield _counter("model_jobs", "Jobs by result.", summary.jobs, "result")


def _gauge(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _with_values(GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels), values)


def _counter(name: str, text: str, values: Values, *labels: str) -> Metric:
    return _with_values(CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels), values)


def _with_values(family: GaugeMetricFamily | CounterMetricFamily, values: Values) -> Metric:
    """The family with these values; an unknown value has no sample."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            family.add_metric(key if isinstance(key, tuple) else (key,), value)
    elif values is not None:
        family.add_metric((), values)
    return family
