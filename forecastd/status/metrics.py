"""The pulse as Prometheus metrics. docs/monitoring.md names every one, and a test compares the two.

The one thing to know before changing it: a label takes few values for ever. A check's or a stage's name does, a reason in
words or a nonce does not. Counters begin anew with the daemon; Prometheus knows how to read that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from forecastd.status.health import blocks_overdue, check_health
from forecastd.status.model import DaemonStatus, EndpointStatus, MeasurementSummary, TopicStatus

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
DAEMON_STATES = ("starting", "running", "stopping", "ended")
TOPIC_LABELS = ("topic", "wallet")
Labels = tuple[str, ...]
T = TypeVar("T")
Samples = Iterable[tuple[Labels, float | None]]  # the labels' values, and the number; None leaves it out

# A gauge a topic: its name, what it tells, and where it is.
TOPIC_GAUGES: tuple[tuple[str, str, Callable[[TopicStatus], float | None]], ...] = (
    (
        "last_submission_timestamp_seconds",
        "When the last submission was made, in unix seconds.",
        lambda topic: None if topic.last_submitted is None else topic.last_submitted.submitted_at,
    ),
    ("confirmed_nonce", "The newest epoch the chain has our submission of.", lambda topic: topic.confirmed_nonce),
    ("newest_nonce", "The newest epoch that opened.", lambda topic: topic.newest_nonce),
    ("overdue_blocks", "Blocks since a confirmed submission is due, two epochs granted.", blocks_overdue),
    ("chain_height", "The chain's height as last told.", lambda topic: topic.height),
    ("chain_height_age_seconds", "Time since it was told.", lambda topic: topic.height_age),
    (
        "window_open",
        "1 while a submission window is open.",
        lambda topic: None if topic.window is None else topic.window.open,
    ),
    ("balance_uallo", "The wallet's balance.", lambda topic: topic.balance_uallo),
    ("runway_epochs", "Epochs that the balance pays for.", lambda topic: topic.runway_epochs),
)
# A gauge an endpoint, likewise.
ENDPOINT_GAUGES: tuple[tuple[str, str, Callable[[EndpointStatus], float | None]], ...] = (
    ("endpoint_up", "1 where nothing stands against asking it.", lambda one: one.state == "ok"),
    ("endpoint_latency_seconds", "How long it takes to answer, smoothed.", lambda one: one.latency),
    ("endpoint_height", "The height that it told last.", lambda one: one.height),
    ("endpoint_lag_blocks", "Blocks behind the highest.", lambda one: one.lag),
    ("endpoint_failures", "Failures in a row, 0 after an answer.", lambda one: one.consecutive_failures),
)


def exposition(status: DaemonStatus, now: float) -> bytes:
    """All metrics at `now` (unix seconds), in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    class Present(Collector):
        def collect(self) -> Iterator[Metric]:
            yield from _process_metrics(status, now)
            yield from _topic_metrics(status.topics)
            yield from _chain_metrics(status)
            yield from _model_metrics(status, now)
            yield from _supervision_metrics(status)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Present())
    return generate_latest(registry)


def _process_metrics(status: DaemonStatus, now: float) -> Iterator[Metric]:
    from prometheus_client.core import InfoMetricFamily

    labels = {"network": status.network, "chain_id": status.chain_id or "", "mode": status.mode}
    build = InfoMetricFamily("forecastd_build", "Versions, and what the daemon was started for.")
    build.add_metric([], {re.sub(r"\W", "_", name): text for name, text in {**status.versions, **labels}.items()})
    yield build
    yield _single_gauge("healthy", "1 where /healthz answers with 200.", check_health(status, now).ok)
    states = [((state,), float(state == status.state)) for state in DAEMON_STATES]
    yield _gauge("state", "1 for the state that the daemon is in.", states, "state")
    yield _single_gauge("start_time_seconds", "When the daemon started, in unix seconds.", status.started_at)
    yield _single_gauge("up_seconds", "How long the daemon has been running.", status.uptime)
    yield _single_gauge(
        "deadline_timestamp_seconds", "When the daemon ends for good, in unix seconds.", status.deadline
    )
    heartbeat, watchdog = status.heartbeat, status.watchdog
    yield _single_gauge(
        "heartbeat_age_seconds", "Time since the last heartbeat.", None if heartbeat is None else heartbeat.age
    )
    yield _single_gauge(
        "watchdog_age_seconds", "Time since the watchdog was fed.", None if watchdog is None else watchdog.age
    )
    fires = None if watchdog is None else watchdog.would_fire
    yield _single_gauge("watchdog_would_fire", "1 where the loop has stopped making progress.", fires)
    memory = [(("parent",), status.memory_bytes), (("children",), status.children_memory_bytes)]
    yield _gauge("memory_bytes", "Resident memory of the daemon and of its models' processes.", memory, "process")
    yield _single_gauge("open_files", "Open file handles of the daemon.", status.open_files)


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
        "Cycles by how they ended and by the check that refused.",
        outcomes,
        *TOPIC_LABELS,
        "outcome",
        "check",
    )
    stages = [((*key, name), total) for key, topic in topics_by_labels for name, total in topic.stages.items()]
    yield from _summary("stage_seconds", "Time that a stage of a cycle took.", stages, *TOPIC_LABELS, "stage")
    lags = [(key, topic.submission_lag) for key, topic in topics_by_labels]
    yield from _summary(
        "submission_lag_blocks", "Blocks from a window's first to the submission's.", lags, *TOPIC_LABELS
    )
    for name, help_text, value in TOPIC_GAUGES:
        yield _gauge(name, help_text, ((key, value(topic)) for key, topic in topics_by_labels), *TOPIC_LABELS)


def _chain_metrics(status: DaemonStatus) -> Iterator[Metric]:
    for name, help_text, value in ENDPOINT_GAUGES:
        yield _gauge(
            name, help_text, (((endpoint.endpoint,), value(endpoint)) for endpoint in status.endpoints), "endpoint"
        )
    streams = (((endpoint.endpoint,), float(endpoint.connected)) for endpoint in status.streams)
    yield _gauge("stream_connected", "1 while a websocket tells of new blocks.", streams, "endpoint")


def _model_metrics(status: DaemonStatus, now: float) -> Iterator[Metric]:
    models_by_labels = [((model.name, model.sha256), model) for model in status.models]
    ages = (
        (key, None if model.trained_until is None else now - model.trained_until) for key, model in models_by_labels
    )
    yield _gauge("model_age_seconds", "Age of the last data that a model learnt from.", ages, "model", "sha256")
    limits = ((key, model.max_age) for key, model in models_by_labels)
    yield _gauge("model_most_age_seconds", "The age at which it is refused.", limits, "model", "sha256")


def _supervision_metrics(status: DaemonStatus) -> Iterator[Metric]:
    supervision = status.supervision
    hangs = (((hang.bundle, hang.phase), hang.count) for hang in supervision.hangs)
    yield _counter("model_hangs", "Models' processes that made no progress.", hangs, "bundle", "phase")
    yield _counter("model_crashes", "Models' processes that died.", [((), supervision.crashes)])
    yield _counter("model_replacements", "Models' processes that were replaced.", [((), supervision.replacements)])
    yield _counter("model_hand_overs", "Jobs that another process took over.", [((), supervision.failovers)])
    yield _counter(
        "model_slow_but_fine", "Warnings of a slow step that came through.", [((), supervision.recovered_stalls)]
    )
    jobs = (((name,), number) for name, number in supervision.jobs.items())
    yield _counter("model_jobs", "Jobs by their result.", jobs, "result")
    yield _single_gauge("model_quarantined", "Bundles in quarantine.", len(supervision.quarantined))
    roles = [child.role for child in supervision.children]
    processes = (((role,), roles.count(role)) for role in sorted(set(roles)))
    yield _gauge("model_processes", "Models' processes that run, by what they are for.", processes, "role")


def _single_gauge(name: str, help_text: str, value: float | None) -> Metric:
    return _gauge(name, help_text, [((), value)])


def _gauge(name: str, help_text: str, samples: Samples, *labels: str) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    for values, value in _distinct(samples).items():
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _counter(name: str, help_text: str, samples: Samples, *labels: str) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    for values, value in _distinct(samples).items():
        if value is not None:
            family.add_metric(values, float(value))
    return family


def _summary(
    name: str, help_text: str, totals: Iterable[tuple[Labels, MeasurementSummary]], *labels: str
) -> Iterator[Metric]:
    """Count and sum, and the largest beside them."""
    from prometheus_client.core import SummaryMetricFamily

    family = SummaryMetricFamily(f"forecastd_{name}", help_text, labels=labels)
    distinct = _distinct(totals)
    for values, total in distinct.items():
        family.add_metric(values, total.count, total.sum)
    yield family
    maxima = ((key, total.max) for key, total in distinct.items())
    yield _gauge(f"{name}_largest", "The largest of these.", maxima, *labels)


def _distinct(samples: Iterable[tuple[Labels, T]]) -> dict[Labels, T]:
    """Each combination of labels once, in proper characters: one that is there twice would cost the whole scrape."""
    return {tuple(text.encode("utf-8", "replace").decode() for text in labels): value for labels, value in samples}
