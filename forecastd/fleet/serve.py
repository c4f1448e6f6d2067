"""`fleet serve`: runs one fleet and its HTTP server until a signal arrives.

The main thread only waits for signals, notifies the service manager's watchdog while the fleet makes progress, and
shuts everything down. Problems that prevent serving are found before the first thread starts: a port in use, missing
API keys, a state directory that another process uses.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from forecastd import __version__
from forecastd.clock import Clock, ScaledClock, to_iso
from forecastd.errors import ExitCode, NeedsHuman, RetryLater
from forecastd.fleet import status
from forecastd.fleet.api.keys import ApiKeys, load_keys, require_keys
from forecastd.fleet.api.listener import listen
from forecastd.fleet.demo import DemoFeed, DemoOptions
from forecastd.fleet.fleet import Fleet
from forecastd.fleet.window.store import LOCK_NAME
from forecastd.logs import reopen
from forecastd.runtime.formatting import format_count
from forecastd.runtime.locks import FileLock
from forecastd.runtime.sd_notify import SystemdNotifier, watchdog_interval
from forecastd.runtime.signals import SignalQueue
from forecastd.runtime.stacks import format_stacks
from forecastd.settings import Settings

if TYPE_CHECKING:
    from forecastd.fleet.api.http_server import FleetHttpServer

log = logging.getLogger(__name__)

LOG_NAME = "fleet.log"
REHEARSAL_DIR = "rehearsal"  # below STATE_DIR: the state of a fleet with an accelerated clock
POLL_SECONDS = 1.0
LOCK_WAIT_SECONDS = 3.0  # for another process that is shutting down
_SECOND_SIGNAL_MESSAGE = b"Interrupted again: exiting at once.\n"


def serve(settings: Settings, clock: Clock, demo: DemoOptions | None = None) -> int:
    """Run a fleet until a signal; returns the exit code. With `demo` the servers are simulated, in a temporary state
    directory.

    Raises:
        NeedsHuman: the fleet cannot start, or cannot continue.
    """
    keys = load_keys(settings)
    require_keys(keys, settings.fleet.host)
    with SignalQueue(_SECOND_SIGNAL_MESSAGE).handled() as signals, ExitStack() as stack:
        if demo is not None:
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="forecastd-fleet-demo-"))
            settings = _with_state_dir(settings, Path(state))
        elif isinstance(clock, ScaledClock) and clock.speed != 1:
            settings = _with_state_dir(settings, settings.state_path / REHEARSAL_DIR)
        listening_socket = stack.enter_context(listen(settings.fleet.host, settings.fleet.port, clock))
        stack.enter_context(_lock_state(settings, clock))
        fleet = Fleet(settings, clock, synthetic=demo is not None, on_fatal=signals.wake)
        stack.callback(fleet.close)
        if demo is not None:
            stack.enter_context(DemoFeed(fleet, demo))
        fleet.start()
        from forecastd.fleet.api.app import create_app  # takes half a second; the model loads meanwhile
        from forecastd.fleet.api.http_server import FleetHttpServer

        http = stack.enter_context(FleetHttpServer(create_app(fleet, keys), listening_socket))
        log.info("%s", _banner(fleet, http.port, keys), extra={"action": "start"})
        stack.callback(fleet.stop)
        stack.callback(http.stop)  # both begin to stop before either is waited for
        return _main_loop(signals, fleet, http)


def _with_state_dir(settings: Settings, state: Path) -> Settings:
    """The settings with another state directory: rows with simulated times must never be read as real ones."""
    return settings.with_values(fleet_models_dir=settings.fleet_models_path, state_dir=state)


def _lock_state(settings: Settings, clock: Clock) -> FileLock:
    try:
        return FileLock(settings.fleet_state_path / LOCK_NAME, clock, timeout=LOCK_WAIT_SECONDS)
    except RetryLater as error:
        raise NeedsHuman(str(error)) from None


def _banner(fleet: Fleet, port: int, keys: ApiKeys) -> str:
    """The log block that says what is running."""
    settings, manifest = fleet.settings, fleet.model.manifest
    host = f"[{settings.fleet.host}]" if ":" in settings.fleet.host else settings.fleet.host
    lines = [
        ("serving", f"http://{host}:{port}  (POST /feed, GET /forecast, /docs)"),
        ("keys", format_count(len(keys), "API key") if keys else "none; only this machine has access"),
        ("model", f"{manifest.name} ({manifest.sha256[:12]}), engine {settings.fleet.engine}"),
        ("forecast", f"{manifest.horizon} steps of {manifest.step} s from {manifest.encoder_minimum} to "
                     f"{manifest.encoder_length} ticks of each server"),
        ("state", str(settings.fleet_state_path)),
        ("now", to_iso(fleet.clock.now())),
    ]  # fmt: skip
    if isinstance(fleet.clock, ScaledClock) and fleet.speed != 1:
        lines.append(("speed", f"{fleet.speed:g}: simulated time"))
    if fleet.synthetic:
        lines.append(("servers", "simulated (--demo)"))
    return "\n".join([f"forecastd {__version__} serves a fleet", *(f"  {name:<9} {text}" for name, text in lines)])


def _main_loop(signals: SignalQueue, fleet: Fleet, http: FleetHttpServer) -> int:
    """Wait for a signal that ends the process; returns its exit code.

    Raises:
        NeedsHuman: the fleet cannot continue.
    """
    systemd = fleet.settings.systemd
    notify = SystemdNotifier(systemd.notify_socket)
    interval = watchdog_interval(systemd.watchdog_usec, systemd.watchdog_pid, os.getpid())
    notify.ready(f"serving on port {http.port}")
    last_line = ""
    while fleet.fatal_error is None:
        for number in signals.wait(min(POLL_SECONDS, interval or POLL_SECONDS)):
            if number in {signal.SIGTERM, signal.SIGINT}:
                notify.stopping("shutting down")
                log.info("shutting down: %s", signal.Signals(number).name, extra={"action": "end"})
                return ExitCode.INTERRUPTED if number == signal.SIGINT else ExitCode.SUCCESS
            if number == signal.SIGHUP:
                reopen()
            if number == signal.SIGUSR1:
                log.info("stacks of all threads:\n%s", format_stacks(), extra={"action": "stacks"})
        # A restart helps if a thread has ended, but not if the model is slow.
        if interval is not None and http.alive and not status.stopped_threads(fleet):
            notify.watchdog()
        line = _status_line(fleet)
        if line != last_line:
            last_line = line
            notify.status(line)
    raise fleet.fatal_error


def _status_line(fleet: Fleet) -> str:
    """The line that `systemctl status` shows."""
    states, health = fleet.snapshot.count_states(), status.check_health(fleet)
    line = (
        f"{format_count(states.total, 'server')}, {states.ready} ready, "
        f"{format_count(fleet.snapshot.alert_counts.open, 'alert')}"
    )
    return line if health.ok else f"{line}; {health.reasons[0]}"
