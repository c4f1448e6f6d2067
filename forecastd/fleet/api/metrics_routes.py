"""`GET /metrics`: the fleet in the Prometheus text format.

Invariant: nothing that a client sends decides the number of time series.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from forecastd import __version__
from forecastd.fleet import status
from forecastd.fleet.api.responses import ApiContext, error_responses
from forecastd.fleet.fleet import Fleet

PREFIX = "forecastd_fleet"
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


LabeledValues = Mapping[Any, float | None]  # key: a tuple of the label values


class FleetCollector(Collector):
    """Reads the fleet when Prometheus scrapes it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def describe(self) -> Iterable[Metric]:
        """Empty, so that registering does not call `collect`."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of the fleet."""
        fleet, document, health = self._fleet, status.status_document(self._fleet), status.check_health(self._fleet)
        tick, forecast, ingest, window = document["tick"], document["forecast"], document["ingest"], document["window"]
        yield _gauge("up", "1 while the fleet is healthy.", {(): float(health.ok)})
        info = (__version__, str(document["model"]["name"]), str(document["model"]["sha256"])[:12])
        yield _gauge("info", "Version and model.", {info: 1.0}, "version", "model", "sha256")
        yield _gauge("synthetic", "1 when the servers are simulated.", {(): float(fleet.synthetic)})
        yield _gauge("tick_age_seconds", "Time since the end of the newest closed tick.", {(): tick["age_seconds"]})
        yield _gauge("forecast_age_seconds", "Age of the newest forecast.", {(): forecast["age_seconds"]})
        yield _gauge("forecast_seconds", "Duration of the newest forecast.", {(): forecast["seconds"]})
        by_model = {("tft",): forecast["tft"], ("heuristic",): forecast["heuristic"]}
        yield _gauge("forecast_servers", "Servers in the newest forecast by model.", by_model, "model")
        yield _counter(
            "skipped_ticks", "Ticks without a forecast because the model was busy.", {(): forecast["skipped_ticks"]}
        )
        yield _counter("forecast_failures", "Forecasts that failed.", {(): forecast["failures"]})
        states = {(state,): document["servers"][state] for state in ("ready", "warming", "silent")}
        yield _gauge("servers", "Servers by state.", states, "state")
        rows = {(result,): ingest[result] for result in ("accepted", "refused", "duplicates")}
        yield _counter("rows", "Received rows by result.", rows, "result")
        reasons = {(code,): number for code, number in sorted(ingest["by_reason"].items())[:MAX_REASONS]}
        yield _counter("row_reasons", "Rows that were refused or noted, by reason.", reasons, "reason")
        yield _gauge("window_ticks", "Ticks in the window on disk.", {(): window["ticks"]})
        yield _gauge("window_bytes", "Size of the window on disk.", {(): window["disk_bytes"]})
        yield _gauge(
            "window_write_failed",
            "1 while the window cannot be written to disk.",
            {(): float(window["last_error"] is not None)},
        )
        yield _gauge("alerts", "Open alerts.", {(kind,): n for kind, n in document["alerts"].items()}, "kind")
        levels = {(level,): number for level, number in (document["risk"].get("counts") or {}).items()}
        yield _gauge("risk_servers", "Servers by risk level.", levels, "level")
        yield from _supervision_metrics(document["supervision"])


def _supervision_metrics(counts: Mapping[str, object]) -> Iterator[Metric]:
    for name, value in counts.items():
        if isinstance(value, int) and not isinstance(value, bool):
            yield _counter(f"model_{name}", f"Model processes: {name.replace('_', ' ')}.", {(): value})
    hangs, jobs = counts.get("hangs"), counts.get("jobs")
    if isinstance(hangs, list):
        by_phase: dict[tuple[str, ...], float | None] = {}
        for hang in hangs:
            by_phase[(str(hang["phase"]),)] = (by_phase.get((str(hang["phase"]),)) or 0) + hang["count"]
        yield _counter("model_hangs", "Model processes that made no progress, by phase.", by_phase, "phase")
    if isinstance(jobs, dict):
        yield _counter("model_jobs", "Jobs by result.", {(str(k),): v for k, v in jobs.items()}, "result")


def _gauge(name: str, text: str, values: LabeledValues, *labels: str) -> Metric:
    family = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, value)
    return family


def _counter(name: str, text: str, values: LabeledValues, *labels: str) -> Metric:
    family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=labels)
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, value)
    return family
