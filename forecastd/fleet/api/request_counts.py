"""Prometheus metrics of requests by route: counts, statuses and durations.

Invariant: a path without a route counts as `other`, so that no client decides the number of time series.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.types import Scope

OTHER = "other"
BUCKET_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS"})


class RequestMetrics:
    """Records requests in a registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "forecastd_fleet_request_seconds",
            "How long requests took.",
            ("route",),
            buckets=BUCKET_SECONDS,
            registry=registry,
        )
        self._requests = Counter(
            "forecastd_fleet_requests", "Requests by route, method and status.", ("route", "method", "status"),
            registry=registry,
        )  # fmt: skip

    def record(self, scope: Scope, status: int, seconds: float) -> None:
        """Record a request that was answered with this status."""
        route = str(getattr(scope.get("route"), "path", OTHER))
        method = scope["method"] if scope["method"] in METHODS else OTHER
        self._seconds.labels(route).observe(seconds)
        self._requests.labels(route, method, str(status)).inc()
