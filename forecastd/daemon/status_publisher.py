"""Publishes the daemon's status: the status file, the heartbeat line, and the messages to the service manager.

Invariant: collecting the status neither blocks nor queries the network.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from forecastd import __version__
from forecastd.chain.endpoint_pool import EndpointPool
from forecastd.chain.events import EventStreamReport
from forecastd.clock import Clock
from forecastd.daemon import log_lines
from forecastd.daemon.alert_reporter import AlertReporter
from forecastd.daemon.resources import ResourceManager
from forecastd.daemon.schedule import latest_due_heartbeat
from forecastd.daemon.status_registry import StatusRegistry
from forecastd.daemon.threads import ThreadManager
from forecastd.logs import FILE_NAME
from forecastd.market.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.runtime import procfs
from forecastd.runtime.liveness import LivenessMonitor
from forecastd.runtime.sd_notify import SystemdNotifier, watchdog_interval
from forecastd.runtime.stacks import format_stacks
from forecastd.settings import Settings
from forecastd.status.file import StatusFile
from forecastd.status.model import (
    ChildStatus,
    DaemonMode,
    DaemonState,
    DaemonStatus,
    EndpointStatus,
    HangCount,
    HeartbeatStatus,
    ModelStatus,
    StreamStatus,
    SupervisionStatus,
    WatchdogStatus,
)
from forecastd.submission.connect import chain_id_for
from forecastd.submission.context import TopicResources

log = logging.getLogger(__name__)

WRITE_INTERVAL_SECONDS = 15.0  # between two writes of the status file while nothing changes
MAX_WATCHDOG_INTERVAL_SECONDS = 2.0  # between two watchdog pings, or less for a short watchdog timeout


@dataclass(frozen=True)
class StatusSources:
    """The parts of the daemon whose state is published."""

    liveness: LivenessMonitor
    registry: StatusRegistry
    threads: ThreadManager
    resources: ResourceManager
    reporter: AlertReporter


class StatusPublisher:
    """Publishes the status. `status` is thread-safe; call everything else in the main loop."""

    def __init__(self, settings: Settings, mode: DaemonMode, clock: Clock, sources: StatusSources) -> None:
        self.settings = settings
        self.state: DaemonState = "starting"
        self.health_port: int | None = None
        self.notify = SystemdNotifier(settings.systemd.notify_socket)
        self._mode, self._clock, self._sources = mode, clock, sources
        interval = watchdog_interval(settings.systemd.watchdog_usec, settings.systemd.watchdog_pid, os.getpid())
        self.watchdog_interval = None if interval is None else min(MAX_WATCHDOG_INTERVAL_SECONDS, interval)
        self._watchdog_timeout = None if interval is None else 2 * interval
        self._status_file, self._log_path = StatusFile(settings.state_path), str(settings.log_path / FILE_NAME)
        self._versions: Mapping[str, str] = versions()
        self._started, self._started_at = clock.monotonic(), clock.now()
        self._heartbeat_count, self._heartbeat_times = 0, (self._started, self._started_at)
        self._watchdog_times: tuple[float, float] | None = None
        self._last_write = float("-inf")
        self._in_use_since: dict[str, float] = {}
        self._stalled: frozenset[str] = frozenset()
        self._status_line = ""
        self._published: tuple[DaemonState, int] | None = None

    def tick(self) -> None:
        """Publish what is due now. The watchdog ping comes last: an error before it deserves a restart."""
        mono = self._clock.monotonic()
        self._check_stalled_loops()
        heartbeat_count = latest_due_heartbeat(
            self._started, self._heartbeat_count, mono, self.settings.daemon.heartbeat_interval
        )
        if heartbeat_count > self._heartbeat_count:
            self._heartbeat_count, self._heartbeat_times = heartbeat_count, (mono, self._clock.now())
            log.info("%s", log_lines.heartbeat_line(self.status()), extra={"action": "heartbeat"})
        if mono - self._last_write >= WRITE_INTERVAL_SECONDS or self._published != (
            self.state,
            self._sources.registry.revision,
        ):
            self.write()
        last_ping = self._watchdog_times
        if (
            self.watchdog_interval is not None
            and not self._stalled
            and (last_ping is None or mono - last_ping[0] >= self.watchdog_interval / 2)
        ):
            self.notify.watchdog()
            self._watchdog_times = (mono, self._clock.now())

    def write(self, *, force: bool = False) -> None:
        """Write the status file, and send a changed status line to the service manager.

        Without the wallet locks the file may belong to another daemon and is not written, unless `force` is set.
        """
        self._published = (self.state, self._sources.registry.revision)
        status = self.status()
        self._last_write = self._clock.monotonic()
        if force or self._sources.resources.holds_wallet_locks:
            self._status_file.write(status)
        status_line = log_lines.status_line(status)
        if status_line != self._status_line:
            self._status_line = status_line
            self.notify.status(status_line)

    def status(self) -> DaemonStatus:
        """The current status."""
        mono, wall, settings, sources = self._clock.monotonic(), self._clock.now(), self.settings, self._sources
        topics = list(sources.resources.current.topics.values())
        connection = sources.resources.current.connection
        for topic in topics:
            self._in_use_since.setdefault(topic.forecaster.manifest.sha256, wall)
        last_ping = self._watchdog_times
        deadline = settings.daemon.submission_deadline
        supervision = supervision_status(topics, sources.resources.quarantined)
        return DaemonStatus(
            pid=os.getpid(),
            started_at=self._started_at,
            written_at=wall,
            uptime=mono - self._started,
            mode=self._mode,
            state=self.state,
            network=settings.chain.network,
            write_interval=WRITE_INTERVAL_SECONDS,
            chain_id=chain_id_for(settings),
            deadline=None if deadline is None else deadline.timestamp(),
            interval=float(settings.daemon.submission_interval),
            attention=sources.reporter.attention,
            topics=sources.registry.snapshot(sources.threads.views(), mono),
            endpoints=() if connection is None else endpoint_statuses(connection.endpoints),
            streams=stream_statuses(sources.threads.stream_reports()),
            models=model_statuses(topics, self._in_use_since),
            supervision=supervision,
            heartbeat=HeartbeatStatus(
                self._heartbeat_times[1], mono - self._heartbeat_times[0], settings.daemon.heartbeat_interval
            ),
            watchdog=WatchdogStatus(
                last_ping and last_ping[1],
                None if last_ping is None else mono - last_ping[0],
                self._watchdog_timeout,
                would_fire=bool(sources.liveness.stalled_loops()),
            ),
            memory_bytes=procfs.resident_bytes(),
            children_memory_bytes=sum(child.memory_bytes or 0 for child in supervision.children),
            open_files=procfs.open_file_count(),
            health_port=self.health_port,
            log_file=self._log_path,
            versions=self._versions,
        )

    def _check_stalled_loops(self) -> None:
        """Stop the watchdog pings while a loop is stalled. Each stalled loop is logged once, with all stacks."""
        stalled = self._sources.liveness.stalled_loops()
        names = frozenset(loop.name for loop in stalled)
        for loop in stalled:
            if loop.name not in self._stalled:
                log.error(
                    "%s has made no progress for %.0f s; watchdog pings stop.", loop.name, loop.age,
                    extra={"action": "stalled"},
                )  # fmt: skip
        if names - self._stalled:
            log.error("stacks of all threads:\n%s", format_stacks(), extra={"action": "stacks"})
        if self._stalled and not names:
            log.warning("all loops make progress again; watchdog pings resume", extra={"action": "stalled"})
        self._stalled = names


def versions() -> dict[str, str]:
    """The versions of forecastd, Python and the libraries of the wire format, for the banner and the status."""
    package_versions = {"forecastd": __version__, "python": platform.python_version()}
    for name in ("grpcio", "protobuf"):
        try:
            package_versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return package_versions


def endpoint_statuses(chain: EndpointPool) -> tuple[EndpointStatus, ...]:
    """The status of each endpoint."""
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
    """The status of each websocket."""
    return tuple(
        StreamStatus(report.endpoint, report.connected, report.last_message_at, report.error) for report in reports
    )


def model_statuses(topics: Iterable[TopicResources], in_use_since: Mapping[str, float]) -> tuple[ModelStatus, ...]:
    """The bundles in use, each once. `in_use_since`: unix seconds by sha256."""
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
    """The model processes of all topics and their counters. `quarantined`: names of bundles."""
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
