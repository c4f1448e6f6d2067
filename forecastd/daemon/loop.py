"""The main loop of the daemon: a tick every second or two, from startup to shutdown.

Invariant: the loop never blocks, except for a pause after an unexpected error. Startup, reload, watching and serving run
in their own threads. The loop checks that they make progress, and only while all of them do does it ping the service
manager's watchdog.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from forecastd.alerts import AlertDispatcher
from forecastd.clock import Clock, to_iso
from forecastd.daemon import log_lines
from forecastd.daemon.alert_reporter import AlertReporter
from forecastd.daemon.deadline import SubmissionDeadline
from forecastd.daemon.resources import ResourceManager, ResourceSet, StartupProblems
from forecastd.daemon.startup import banner, check_chain, check_host
from forecastd.daemon.status_publisher import StatusPublisher, StatusSources, versions
from forecastd.daemon.status_registry import StatusRegistry
from forecastd.daemon.threads import ThreadManager
from forecastd.daemon.watcher import PollOptions
from forecastd.errors import ExitCode, ForecastdError, NeedsHuman
from forecastd.logs import reopen
from forecastd.runtime.background import BackgroundTask
from forecastd.runtime.formatting import format_count
from forecastd.runtime.liveness import LivenessMonitor
from forecastd.runtime.retry import retry_until_stopped
from forecastd.runtime.signals import SignalQueue
from forecastd.runtime.stacks import format_stacks
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.settings import Settings
from forecastd.status.model import DaemonMode, DaemonStatus
from forecastd.status.server import HealthServer

log = logging.getLogger(__name__)

TICK_SECONDS, BUSY_TICK_SECONDS = 2.0, 0.1  # between two ticks: normally, and during startup, reload or shutdown
LIVE_TICK_SECONDS = 1.0  # between two ticks when each status is shown on a terminal
ABORT_CALLS_SECONDS, GRACE_SECONDS, CLOSE_SECONDS = 2.5, 5.0, 8.0  # after SIGTERM, see `_should_exit` and `_shut_down`
ERROR_PAUSE_SECONDS = 10.0  # after a tick that an unexpected error ended
RESTART_EXIT_CODE = ExitCode.TEMPORARY  # asks the service manager for a restart
MAX_TICK_GAP_SECONDS = 15.0  # a longer gap between two ticks is logged
_STARTUP_SETTINGS = ("log_dir", "logs_directory", "log_format", "health_port")  # a reload does not change them

SettingsLoader = Callable[[], tuple[list[Settings], list[str]]]


@dataclass
class Shutdown:
    """Why the daemon exits, and with which code.

    `since`: monotonic time of a request to exit immediately; None: running cycles may finish.
    """

    exit_code: ExitCode
    reason: str
    since: float | None = None


class Daemon:
    """The daemon. Call `run` once, in the main thread."""

    def __init__(
        self, load: SettingsLoader, clock: Clock, *, mode: DaemonMode = "daemon", register: bool = False,
        on_status: Callable[[DaemonStatus], None] | None = None, poll_options: PollOptions | None = None,
    ) -> None:  # fmt: skip
        """`load` returns the settings of each topic and the errors in them; it is called again for each reload.

        `on_status` is called with the daemon's status at every tick.
        """
        self._load, self._clock, self._on_status, self._register = load, clock, on_status, register
        self._topic_settings, self._settings_errors = load()
        settings = self._topic_settings[0]
        self._signals, self._wake = SignalQueue(), threading.Event()
        liveness, registry = LivenessMonitor(clock), StatusRegistry()
        self._resources = ResourceManager(clock, register=register)
        self._deadline = SubmissionDeadline(_deadline_of(settings), clock.monotonic(), clock.now(), self._block_time)
        self._reporter = AlertReporter(self._make_alerts(settings))
        self._threads = ThreadManager(
            self._resources, clock, liveness, registry, self._reporter, interval=settings.daemon.submission_interval,
            may_start=lambda: not self._deadline_passed(), poll_options=poll_options or PollOptions(),
        )  # fmt: skip
        self._publisher = StatusPublisher(
            settings, mode, clock, StatusSources(liveness, registry, self._threads, self._resources, self._reporter)
        )
        self._last_tick = clock.monotonic()
        self._shutdown: Shutdown | None = None
        self._startup: BackgroundTask[None] | None = None
        self._reload_task: BackgroundTask[tuple[list[Settings], ResourceSet]] | None = None
        self._reload_requested = False

    def run(self) -> ExitCode:
        """Serve until a signal, the deadline, or an error that needs a restart. Returns the exit code."""
        with self._signals.handled(), ExitStack() as stack:
            if self._deadline_passed():
                log.info("The deadline %s has passed; nothing is started.", to_iso(self._deadline.timestamp or 0.0))
                # Without READY, systemd would treat the exit as a failed start.
                self._publisher.notify.ready("the deadline has passed")
                return ExitCode.SUCCESS
            log.info("%s", banner(self._topic_settings, versions(), self._clock.now()), extra={"action": "start"})
            self._serve_health(stack)
            self._startup = BackgroundTask("startup", self._open)
            while not self._should_exit():
                for number in self._signals.wait(self._tick_delay()):
                    self._on_signal(number)
                if isinstance(run_guarded("the main loop", self._tick), UnexpectedError):
                    self._wake.wait(ERROR_PAUSE_SECONDS)
            return self._shut_down()

    # Startup

    def _open(self) -> None:
        """Check and open everything, retrying temporary failures. Runs in its own thread."""
        settings = self._topic_settings[0]
        settings_errors = [*self._settings_errors, *check_host(settings)]

        def open_resources() -> None:
            self._resources.open(
                self._topic_settings,
                settings_errors,
                lambda connection, wallets: check_chain(connection, wallets, self._clock, register=self._register),
            )

        retry_until_stopped(open_resources, self._wake)
        retry_until_stopped(lambda: self._resources.open_storage(settings.state_path), self._wake)

    def _finish_startup_if_done(self) -> None:
        if self._publisher.state != "starting" or self._startup is None or not self._startup.done or self._shutdown:
            return
        result = self._startup.result
        if isinstance(result, StartupProblems):
            for number, problem in enumerate(result.messages, start=1):
                log.error("%d. %s", number, problem, extra={"action": "start"})
            self._reporter.start(lambda: self._make_alerts(self._topic_settings[0]))
            self._reporter.set_startup_error(str(result))
            self._begin_shutdown(
                result.exit_code, f"{format_count(len(result.messages), 'problem')} above must be fixed first"
            )
            self._publisher.write(force=True)
        elif isinstance(result, ForecastdError):
            log.error("%s", result, extra={"action": "start"})
            self._begin_shutdown(result.exit_code, "the start failed")
        elif isinstance(result, UnexpectedError):
            self._begin_shutdown(RESTART_EXIT_CODE, f"the start failed: {result.reason}")
        else:
            # Not earlier: another daemon of this state directory may have been sending alerts.
            self._reporter.start(lambda: self._make_alerts(self._topic_settings[0]))
            self._reporter.set_startup_error("")
            start_result = run_guarded("startup", self._threads.start)
            if isinstance(start_result, UnexpectedError):
                self._begin_shutdown(RESTART_EXIT_CODE, f"the start failed: {start_result.reason}")
                return
            self._publisher.state = "running"
            self._publisher.notify.ready("running")
            log.info("running", extra={"action": "ready"})

    # Each tick

    def _tick(self) -> None:
        mono = self._clock.monotonic()
        gap, self._last_tick = mono - self._last_tick, mono
        if gap > MAX_TICK_GAP_SECONDS:
            log.warning("The daemon was paused for %.0f s (stopped, suspended or starved of CPU).", gap,
                        extra={"action": "paused"})  # fmt: skip
        self._deadline.tick(mono, self._clock.now())
        self._finish_startup_if_done()
        self._advance_reload()
        self._threads.release_replaced()
        if self._resources.current.connection is not None:
            self._resources.current.connection.endpoints.close_idle()
        ledger = self._resources.ledger
        if ledger is not None and ledger.disk_failed and (self._shutdown is None or self._shutdown.since is None):
            self._begin_shutdown(
                RESTART_EXIT_CODE, "the disk of the ledger failed; a restart reconciles the ledger with the chain"
            )
        if self._shutdown is None and self._deadline_passed():
            log.info("The deadline %s has passed; no more cycles start.", to_iso(self._deadline.timestamp or 0.0))
            self._shutdown = Shutdown(ExitCode.SUCCESS, "the deadline has passed")
            self._threads.drain()
        self._publisher.tick()
        if self._on_status is not None:
            self._on_status(self._publisher.status())

    def _tick_delay(self) -> float:
        """Seconds until the next tick."""
        if self._publisher.state != "running" or self._reload_task is not None:
            return BUSY_TICK_SECONDS
        return min(
            TICK_SECONDS,
            self._publisher.watchdog_interval or TICK_SECONDS,
            TICK_SECONDS if self._on_status is None else LIVE_TICK_SECONDS,
        )

    def _deadline_passed(self) -> bool:
        return self._deadline.has_passed(self._clock.monotonic(), self._clock.now())

    def _block_time(self) -> float:
        return self._resources.endpoints.block_time()

    # Signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._begin_shutdown(ExitCode.SUCCESS, f"received {signal.Signals(number).name}")
        elif number == signal.SIGHUP:
            reopen()
            self._reload_requested = True
        elif number == signal.SIGUSR1:
            log.info("status: %s", self._publisher.status().to_json().decode(), extra={"action": "status"})
            log.info("stacks of all threads:\n%s", format_stacks(), extra={"action": "stacks"})

    def _begin_shutdown(self, exit_code: ExitCode, reason: str) -> None:
        """Begin to exit: running cycles finish what they can at once and abandon the rest; signed submissions are safe in the
        ledger."""
        if self._shutdown is not None and self._shutdown.since is not None:
            return
        self._shutdown = Shutdown(exit_code, reason, self._clock.monotonic())
        log.info("shutting down: %s", reason, extra={"action": "shutdown"})
        self._publisher.state = "stopping"
        self._publisher.notify.stopping(f"shutting down: {reason}")
        self._wake.set()
        self._threads.stop()

    # Reload

    def _prepare_reload(self) -> tuple[list[Settings], ResourceSet]:
        topics, settings_errors = self._load()
        problems = list(settings_errors)
        self._make_alerts(topics[0], problems)  # only to validate them: adds what is wrong to `problems`
        return topics, self._resources.prepare_reload(topics, problems)

    def _advance_reload(self) -> None:
        if self._reload_requested and self._reload_task is None and self._publisher.state == "running":
            self._reload_requested = False
            self._publisher.notify.reloading(int(self._clock.monotonic() * 1e6))
            log.info("reloading settings, topics and models", extra={"action": "reload"})
            self._reload_task = BackgroundTask("the reload", self._prepare_reload)
        if self._reload_task is None or not self._reload_task.done:
            return
        result, self._reload_task = self._reload_task.result, None
        if isinstance(result, tuple):
            self._apply_reload(*result)
        else:
            reason = result.reason if isinstance(result, UnexpectedError) else str(result)
            log.error("The reload failed; the old settings stay in force: %s", reason, extra={"action": "reload"})
        self._publisher.notify.ready("running")

    def _apply_reload(self, topics: list[Settings], resource_set: ResourceSet) -> None:
        previous, settings = self._topic_settings[0], topics[0]
        self._topic_settings, self._publisher.settings = topics, settings
        self._deadline.timestamp = _deadline_of(settings)
        self._threads.apply_reload(resource_set, settings.daemon.submission_interval)
        if previous.alerts != settings.alerts:
            self._reporter.start(lambda: self._make_alerts(settings))
        old, new = previous.values(), settings.values()
        deferred = [name.upper() for name in _STARTUP_SETTINGS if old[name] != new[name]]
        if deferred:
            log.warning("The new %s takes effect after a restart.", ", ".join(deferred), extra={"action": "reload"})
        log.info("reloaded", extra={"action": "reload"})

    def _make_alerts(self, settings: Settings, problems: list[str] | None = None) -> AlertDispatcher:
        """The dispatcher of these settings. If they are invalid, the error goes to `problems` and nothing is sent."""
        path, network = settings.state_path, settings.chain.network
        try:
            return AlertDispatcher(settings.alerts, path, self._clock, network=network)
        except NeedsHuman as error:
            (self._settings_errors if problems is None else problems).append(str(error))
        return AlertDispatcher(settings.alerts.without_receivers(), path, self._clock, network=network)

    def _serve_health(self, stack: ExitStack) -> None:
        port = self._topic_settings[0].daemon.health_port
        if port is not None:
            server = stack.enter_context(HealthServer(port, self._publisher.status, self._clock))
            self._publisher.health_port = server.port

    # Shutdown

    def _should_exit(self) -> bool:
        """Whether to exit: a shutdown was requested, and no cycle is running or it takes too long."""
        shutdown = self._shutdown
        if shutdown is None:
            return False
        if self._startup is None or not self._startup.done or not self._threads.has_running_workers:
            return True
        elapsed = 0.0 if shutdown.since is None else self._clock.monotonic() - shutdown.since
        if elapsed >= ABORT_CALLS_SECONDS:
            self._resources.abort_calls()
        return elapsed >= GRACE_SECONDS

    def _shut_down(self) -> ExitCode:
        shutdown = self._shutdown or Shutdown(ExitCode.SUCCESS, "done")
        since = self._clock.monotonic() if shutdown.since is None else shutdown.since
        self._publisher.state = "stopping"
        self._publisher.notify.stopping(f"shutting down: {shutdown.reason}")
        self._wake.set()
        self._threads.stop()
        log.info(
            "%s", log_lines.shutdown_summary(self._publisher.status(), shutdown.reason), extra={"action": "summary"}
        )
        if self._startup is not None and self._startup.done:
            cycles_running = self._threads.has_running_workers
            self._resources.close(max(0.5, since + CLOSE_SECONDS - self._clock.monotonic()))
            if cycles_running:
                log.warning("a running cycle is abandoned; the next start resumes it", extra={"action": "shutdown"})
            else:
                self._resources.close_storage()
        if shutdown.exit_code == ExitCode.SUCCESS:
            self._publisher.state = "ended"  # only a requested exit counts as ended
        self._publisher.write()
        self._reporter.close(1.0 if shutdown.exit_code == ExitCode.SUCCESS else 5.0)
        return shutdown.exit_code


def _deadline_of(settings: Settings) -> float | None:
    deadline = settings.daemon.submission_deadline
    return None if deadline is None else deadline.timestamp()
