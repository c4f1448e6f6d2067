"""What the daemon shows: its pulse, in a file and to whoever asks, its heartbeat, and what the service manager is told."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from forecastd.clock import Clock
from forecastd.daemon import log_lines, status_sources
from forecastd.daemon.alert_reporter import AlertReporter
from forecastd.daemon.resources import ResourceManager
from forecastd.daemon.schedule import latest_due_heartbeat
from forecastd.daemon.status_registry import StatusRegistry
from forecastd.daemon.threads import ThreadManager
from forecastd.logs import FILE_NAME
from forecastd.runtime import procfs
from forecastd.runtime.liveness import LivenessMonitor
from forecastd.runtime.sd_notify import SystemdNotifier, watchdog_interval
from forecastd.settings import Settings
from forecastd.status.file import StatusFile
from forecastd.status.model import DaemonMode, DaemonState, DaemonStatus, HeartbeatStatus, WatchdogStatus
from forecastd.submission.connect import chain_id_for

log = logging.getLogger(__name__)

WRITE_INTERVAL_SECONDS = 15.0  # seconds between two writings of the file while nothing happens
MAX_WATCHDOG_INTERVAL_SECONDS = 2.0  # seconds between two feedings of the watchdog, or fewer where it is impatient


@dataclass(frozen=True)
class StatusSources:
    """What there is to tell of: the parts of the daemon that know something."""

    liveness: LivenessMonitor
    registry: StatusRegistry
    threads: ThreadManager
    resources: ResourceManager
    reporter: AlertReporter


class StatusPublisher:
    """`pulse` may be called from any thread, everything else in the main loop."""

    def __init__(self, settings: Settings, mode: DaemonMode, clock: Clock, sources: StatusSources) -> None:
        self.settings = settings
        self.state: DaemonState = "starting"
        self.health_port: int | None = None
        self.notify = SystemdNotifier(settings.notify_socket)
        self._mode, self._clock, self._sources = mode, clock, sources
        interval = watchdog_interval(settings.watchdog_usec, settings.watchdog_pid, os.getpid())
        self.watchdog_interval = None if interval is None else min(MAX_WATCHDOG_INTERVAL_SECONDS, interval)
        self._watchdog_timeout = None if interval is None else 2 * interval
        self._status_file, self._log_path = StatusFile(settings.state_path), str(settings.log_path / FILE_NAME)
        self._versions: Mapping[str, str] = status_sources.versions()
        self._started, self._started_at = clock.monotonic(), clock.now()
        self._heartbeat_count, self._heartbeat_times = 0, (self._started, self._started_at)
        self._watchdog_times: tuple[float, float] | None = None
        self._last_write = float("-inf")
        self._in_use_since: dict[str, float] = {}
        self._stalled: frozenset[str] = frozenset()
        self._status_line = ""
        self._published: tuple[DaemonState, int] | None = None

    def tick(self) -> None:
        """Show what is due now. The watchdog is fed last: whatever goes wrong before that is worth a new start."""
        mono = self._clock.monotonic()
        self._check_stalled_loops()
        heartbeat_count = latest_due_heartbeat(
            self._started, self._heartbeat_count, mono, self.settings.heartbeat_interval
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
        """Put the pulse into its file, and tell the service manager what is new.

        Without the leases the file may be that of another daemon, which is left alone unless `always` is set.
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
        """Everything that is known now."""
        mono, wall, settings, sources = self._clock.monotonic(), self._clock.now(), self.settings, self._sources
        topics = list(sources.resources.current.topics.values())
        connection = sources.resources.current.connection
        for topic in topics:
            self._in_use_since.setdefault(topic.forecaster.manifest.sha256, wall)
        last_ping = self._watchdog_times
        deadline = settings.submission_deadline
        supervision = status_sources.supervision_status(topics, sources.resources.quarantined)
        return DaemonStatus(
            pid=os.getpid(),
            started_at=self._started_at,
            written_at=wall,
            uptime=mono - self._started,
            mode=self._mode,
            state=self.state,
            network=settings.allora_network,
            write_interval=WRITE_INTERVAL_SECONDS,
            chain_id=chain_id_for(settings),
            deadline=None if deadline is None else deadline.timestamp(),
            interval=float(settings.submission_interval),
            attention=sources.reporter.attention,
            topics=sources.registry.snapshot(sources.threads.views(), mono),
            endpoints=() if connection is None else status_sources.endpoint_statuses(connection.endpoints),
            streams=status_sources.stream_statuses(sources.threads.stream_reports()),
            models=status_sources.model_statuses(topics, self._in_use_since),
            supervision=supervision,
            heartbeat=HeartbeatStatus(
                self._heartbeat_times[1], mono - self._heartbeat_times[0], settings.heartbeat_interval
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
        """Loops without progress keep the watchdog from being fed; each is told once, with every stack."""
        stalled = self._sources.liveness.stalled_loops()
        names = frozenset(loop.name for loop in stalled)
        for loop in stalled:
            if loop.name not in self._stalled:
                log.error(
                    "%s has made no progress for %.0f s; the watchdog is not fed any more.", loop.name, loop.age,
                    extra={"action": "late"},
                )  # fmt: skip
        if names - self._stalled:
            log.error("the stacks of all threads:\n%s", log_lines.format_stacks(), extra={"action": "stacks"})
        if self._stalled and not names:
            log.warning("every loop makes progress again", extra={"action": "late"})
        self._stalled = names
