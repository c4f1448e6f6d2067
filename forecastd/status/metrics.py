"""The daemon's status as Prometheus metrics. docs/monitoring.md lists every metric, and a test compares the two.

Invariant: a label has a small, fixed set of values, such as the names of checks or stages, never a message or a nonce.
Counters restart from 0 with the daemon, which Prometheus handles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
    SummaryMetricFamily,
)
from prometheus_client.registry import Collector

from forecastd.status.health import blocks_overdue, check_health
from forecastd.status.model import DaemonStatus, EndpointStatus, MeasurementSummary, TopicStatus

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DAEMON_STATES = ("starting", "running", "stopping", "ended")
TOPIC_LABELS = ("topic", "wallet")
Labels = tuple[str, ...]
T = TypeVar("T")
Samples = Iterable[tuple[Labels, float | None]]  # label values and sample value; None omits the sample

# The gauges of a topic: name, help text and value.
TOPIC_GAUGES: tuple[tuple[str, str, Callable[[TopicStatus], float | None]], ...] = (
    (
        "last_submission_timestamp_seconds",
        "Time of the last submission, in unix seconds.",
        lambda topic: None if topic.last_submitted is None else topic.last_submitted.submitted_at,
    ),
    ("confirmed_nonce", "The newest epoch whose submission is on the chain.", lambda topic: topic.confirmed_nonce),
    ("newest_nonce", "The newest epoch that opened.", lambda topic: topic.newest_nonce),
    ("overdue_blocks", "Blocks since the last confirmed submission became older than two epochs.", blocks_overdue),
    ("chain_height", "The chain's height as last reported.", lambda topic: topic.height),
    ("chain_height_age_seconds", "Time since the height was reported.", lambda topic: topic.height_age),
    (
        "window_open",
        "1 while a submission window is open.",
        lambda topic: None if topic.window is None else topic.window.open,
    ),
    ("balance_uallo", "The wallet's balance.", lambda topic: topic.balance_uallo),
    ("runway_epochs", "Epochs that the balance pays for.", lambda topic: topic.runway_epochs),
)
# The gauges of an endpoint.
ENDPOINT_GAUGES: tuple[tuple[str, str, Callable[[EndpointStatus], float | None]], ...] = (
    ("endpoint_up", "1 while the endpoint is usable.", lambda endpoint: endpoint.state == "ok"),
    ("endpoint_latency_seconds", "Smoothed response time.", lambda endpoint: endpoint.latency),
    ("endpoint_height", "The height that it reported last.", lambda endpoint: endpoint.height),
    ("endpoint_lag_blocks", "Blocks behind the highest endpoint.", lambda endpoint: endpoint.lag),
    ("endpoint_failures", "Consecutive failures; 0 after a response.", lambda endpoint: endpoint.consecutive_failures),
)


def exposition(status: DaemonStatus, now: float) -> bytes:
    """All metrics at `now` (unix seconds), in the Prometheus text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_StatusCollector(status, now))
    return generate_latest(registry)


class _StatusCollector(Collector):
    """The metrics of one status."""

    def __init__(self, status: DaemonStatus, now: float) -> None:
        self._status, self._now = status, now

    def collect(self) -> Iterator[Metric]:
        yield from _process_metrics(self._status, self._now)
        yield from _topic_metrics(self._status.topics)
        yield from _chain_metrics(self._status)
        yield from _model_metrics(self._status, self._now)
        yield from _supervision_metrics(self._status)


def _process_metrics(status: DaemonStatus, now: float) -> Iterator[Metric]:
    labels = {"network": status.network, "chain_id": status.chain_id or "", "mode": status.mode}
    build = InfoMetricFamily("forecastd_build", "Versions, network and mode of the daemon.")
    build.add_metric([], {re.sub(r"\W", "_", name): text for name, text in {**status.versions, **labels}.items()})
    yield build
    yield _single_gauge("healthy", "1 while /healthz returns 200.", check_health(status, now).ok)
    states = [((state,), float(state == status.state)) for state in DAEMON_STATES]
    yield _gauge("state", "1 for the current state of the daemon.", states, "state")
    yield _single_gauge("start_time_seconds", "Start time of the daemon, in unix seconds.", status.started_at)
    yield _single_gauge("up_seconds", "Time since the start of the daemon.", status.uptime)
    yield _single_gauge(
        "deadline_timestamp_seconds", "Time at which the daemon exits for good, in unix seconds.", status.deadline
    )
    heartbeat, watchdog = status.heartbeat, status.watchdog
    yield _single_gauge(
        "heartbeat_age_seconds", "Time since the last heartbeat.", None if heartbeat is None else heartbeat.age
    )
    yield _single_gauge(
        "watchdog_age_seconds", "Time since the last watchdog ping.", None if watchdog is None else watchdog.age
    )
    fires = None if watchdog is None else watchdog.would_fire
    yield _single_gauge("watchdog_would_fire", "1 while a loop makes no progress.", fires)
    memory = [(("parent",), status.memory_bytes), (("children",), status.children_memory_bytes)]
    yield _gauge("memory_bytes", "Resident memory of the daemon and of its model processes.", memory, "process")
    yield _single_gauge("open_files", "Open file descriptors of the daemon.", status.open_files)


def _topic_metrics(topics: tuple[TopicStatus, ...]) -> Iterator[Metric]:
    topics_by_labels = [((str(topic.topic_id), topic.wallet or ""), topic) for topic in topics]
    yield _counter(
        "cycles", "Cycles that ended.", ((key, topic.cycles) for key, topic in topics_by_labels), *TOPIC_LABELS
    )
    yield _counter(
        "submissions", "Epochs submitted.", ((key, topic.submitted) for key, topic in topics_by_labels), *TOPIC_LABELS
    )
    yield _counter(
        "missed_epochs", "Epochs missed.", ((key, topic.missed) for key, topic in topics_by_labels), *TOPIC_LABELS
    )
    outcomes = (
        ((*key, outcome.outcome, outcome.check or ""), outcome.count)
        for key, topic in topics_by_labels
        for outcome in topic.outcomes
    )
    yield _counter(
        "outcomes",
        "Cycles by outcome and by the check that refused.",
        outcomes,
        *TOPIC_LABELS,
        "outcome",
        "check",
    )
    stages = [((*key, name), total) for key, topic in topics_by_labels for name, total in topic.stages.items()]
    yield from _summary("stage_seconds", "Duration of a stage of a cycle.", stages, *TOPIC_LABELS, "stage")
    lags = [(key, topic.submission_lag) for key, topic in topics_by_labels]
    yield from _summary(
        "submission_lag_blocks", "Blocks from the first block of the window to the submission.", lags, *TOPIC_LABELS
    )
    for name, help_text, value in TOPIC_GAUGES:
        yield _gauge(name, help_text, ((key, value(topic)) for key, topic in topics_by_labels), *TOPIC_LABELS)


def _chain_metrics(status: DaemonStatus) -> Iterator[Metric]:
    for name, help_text, value in ENDPOINT_GAUGES:
        yield _gauge(
            name, help_text, (((endpoint.endpoint,), value(endpoint)) for endpoint in status.endpoints), "endpoint"
        )
    streams = (((stream.endpoint,), float(stream.connected)) for stream in status.streams)
    yield _gauge("stream_connected", "1 while the websocket is connected.", streams, "endpoint")


def _model_metrics(status: DaemonStatus, now: float) -> Iterator[Metric]:
    models_by_labels = [((model.name, model.sha256), model) for model in status.models]
    ages = (
        (key, None if model.trained_until is None else now - model.trained_until) for key, model in models_by_labels
    )
    yield _gauge("model_age_seconds", "Age of the newest training data of the model.", ages, "model", "sha256")
    limits = ((key, model.max_age) for key, model in models_by_labels)
    yield _gauge("model_max_age_seconds", "Age at which the model is refused.", limits, "model", "sha256")


def _supervision_metrics(status: DaemonStatus) -> Iterator[Metric]:
    supervision = status.supervision
    hangs = (((hang.bundle, hang.phase), hang.count) for hang in supervision.hangs)
    yield _counter("model_hangs", "Model processes that made no progress.", hangs, "bundle", "phase")
    yield _counter("model_crashes", "Model processes that died.", [((), supervision.crashes)])
    yield _counter("model_replacements", "Model processes that were replaced.", [((), supervision.replacements)])
    yield _counter("model_failovers", "Jobs that were moved to another process.", [((), supervision.failovers)])
    yield _counter(
        "model_recovered_stalls", "Stall warnings that ended with progress.", [((), supervision.recovered_stalls)]
    )
    jobs = (((name,), number) for name, number in supervision.jobs.items())
    yield _counter("model_jobs", "Jobs by result.", jobs, "result")
    yield _single_gauge("model_quarantined", "Bundles in quarantine.", len(supervision.quarantined))
    roles = [child.role for child in supervision.children]
    processes = (((role,), roles.count(role)) for role in sorted(set(roles)))
    yield _gauge("model_processes", "Running model processes by role.", processes, "role")


def _single_gauge(name: str, help_text: str, value: float | None) -> Metric:
    return _gauge(name, help_text, [((), value)])


def _gauge(name: str, help_text: str, samples: Samples, *labels: str) -> Metric:

    family = GaugeMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    for values, value in _distinct(samples).items():
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _counter(name: str, help_text: str, samples: Samples, *labels: str) -> Metric:

    family = CounterMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    for values, value in _distinct(samples).items():
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _summary(
    name: str, help_text: str, totals: Iterable[tuple[Labels, MeasurementSummary]], *labels: str
) -> Iterator[Metric]:
    """A summary with count and sum, and a gauge with the maximum."""
    family = SummaryMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    distinct = _distinct(totals)
    for values, total in distinct.items():
        family.add_metric(values, total.count, total.sum)
    yield family
    maxima = ((key, total.max) for key, total in distinct.items())
    yield _gauge(f"{name}_max", "The maximum of these values.", maxima, *labels)


def _distinct(samples: Iterable[tuple[Labels, T]]) -> dict[Labels, T]:
    """The samples by label values, as valid UTF-8. A duplicate label set would fail the whole scrape."""
    return {tuple(text.encode("utf-8", "replace").decode() for text in labels): value for labels, value in samples}
