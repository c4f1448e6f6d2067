"""The daemon's pulse: everything it knows of itself, gathered when somebody asks. Nothing here waits or asks the network."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version

from forecastd import __version__
from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.events import EventStreamReport
from forecastd.daemon.topic_worker import TopicResources
from forecastd.market.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.runtime import procfs
from forecastd.status.model import ChildStatus, EndpointStatus, HangCount, ModelStatus, StreamStatus, SupervisionStatus


def versions() -> dict[str, str]:
    """What runs here, for the banner and for `status`."""
    package_versions = {"forecastd": __version__, "python": platform.python_version()}
    for name in ("allora_sdk",):
        try:
            package_versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return package_versions


def endpoint_statuses(chain: EndpointPool) -> tuple[EndpointStatus, ...]:
    """What is known of each endpoint."""
    return tuple(
        EndpointStatus(
            report.endpoint,
            report.state.value,
            report.chain_id,
            report.height,
            report.lag,
            report.latency,
            report.streak,
            report.error,
        )
        for report in chain.report()
    )


def stream_statuses(reports: Iterable[EventStreamReport]) -> tuple[StreamStatus, ...]:
    """What is known of each websocket."""
    return tuple(
        StreamStatus(report.endpoint, report.connected, report.last_message_at, report.error) for report in reports
    )


def model_statuses(topics: Iterable[TopicResources], in_use_since: Mapping[str, float]) -> tuple[ModelStatus, ...]:
    """The bundles in use, each once; `since` when each was taken into use, by its hash."""
    statuses = {}
    for topic in topics:
        manifest = topic.forecaster.manifest
        has_age = not manifest.training.synthetic
        statuses[manifest.sha256] = ModelStatus(
            manifest.name, manifest.sha256, float(manifest.training.trained_until) if has_age else None,
            in_use_since.get(manifest.sha256), MAX_MODEL_AGE_DAYS * DAY if has_age else None,
        )  # fmt: skip
    return tuple(statuses.values())


def supervision_status(topics: Iterable[TopicResources], quarantined: Iterable[str]) -> SupervisionStatus:
    """What the models' processes are at, and what became of them so far, over all topics; `quarantined` bundles by name."""
    hangs: dict[tuple[str, str], int] = {}
    jobs: dict[str, int] = {}
    children: list[ChildStatus] = []
    crashes = replacements = failovers = recovered_stalls = 0
    for forecaster in {id(topic.forecaster): topic.forecaster for topic in topics}.values():
        counts, name = forecaster.counts, forecaster.manifest.name
        crashes += counts.crashes
        replacements += counts.replacements
        failovers += counts.failovers
        recovered_stalls += counts.recovered_stalls
        for (phase, bundle), number in list(counts.hangs.items()):
            hangs[bundle, phase] = hangs.get((bundle, phase), 0) + number
        for result, number in list(counts.jobs.items()):
            jobs[result] = jobs.get(result, 0) + number
        reports = forecaster.children()
        busy = any(report["job"] for report in reports)
        children += [
            _child_status(report, name, active=bool(report["job"]) or (not busy and report is reports[0]))
            for report in reports
        ]
    return SupervisionStatus(
        tuple(HangCount(bundle, phase, number) for (bundle, phase), number in sorted(hangs.items())), crashes, replacements,
        failovers, recovered_stalls, jobs, tuple(sorted(quarantined)), tuple(children),
    )  # fmt: skip


def _child_status(child: Mapping[str, object], bundle: str, *, active: bool) -> ChildStatus:
    pid = int(str(child["pid"]))
    return ChildStatus(pid, "active" if active else "standby", bundle, str(child["phase"]), procfs.resident_bytes(pid))
