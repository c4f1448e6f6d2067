"""`fleet serve`: one process from its first line in the log to its last.

The main thread does nothing that takes long: it waits for signals, feeds the service manager's watchdog as long as the fleet
gets on, and ends everything. What cannot be is found out before the first thread starts: a port that is taken, keys that are
missing, a state that another process uses.
"""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from forecastd import __version__
from forecastd.clock import Clock, ScaledClock, iso
from forecastd.daemon.signals import Signals
from forecastd.errors import NeedsHuman, RetryLater
from forecastd.fleet import report
from forecastd.fleet.api.address import listen
from forecastd.fleet.api.keys import ApiKeys, load_keys, require_keys
from forecastd.fleet.demo import Demo, DemoFeed
from forecastd.fleet.hold import Hold
from forecastd.fleet.service import Fleet
from forecastd.logs import reopen
from forecastd.notify import Notifier, watchdog_seconds
from forecastd.settings import Settings

if TYPE_CHECKING:
    from forecastd.fleet.api.listener import HttpServer

log = logging.getLogger(__name__)

LOG_NAME = "fleet.log"
REHEARSAL = "rehearsal"  # below STATE_DIR: the state of a fleet whose clock is not the real one
INTERRUPTED = 130
LOOK_SECONDS = 1.0
HOLD_SECONDS = 3.0  # for another process that is just ending
_LAST_WORDS = b"Interrupted again: ending at once.\n"


@dataclass
class _Served:
    """What the main loop looks after."""

    signals: Signals
    fleet: Fleet
    http: HttpServer
    notify: Notifier

    def stop(self) -> None:
        """Begin to end everything. Returns at once."""
        self.http.stop()
        self.fleet.stop()


def serve(settings: Settings, clock: Clock, demo: Demo | None = None) -> int:
    """Run a fleet until a signal; the exit code. With `demo` its servers are made up, and its state is of this run only.

    Raises:
        NeedsHuman: it cannot start, or cannot go on.
    """
    keys = load_keys(settings)
    require_keys(keys, settings.fleet_host)
    with Signals(_LAST_WORDS).caught() as signals, ExitStack() as stack:
        if demo is not None:
            state = stack.enter_context(tempfile.TemporaryDirectory(prefix="forecastd-fleet-demo-"))
            settings = _apart(settings, Path(state))
        elif isinstance(clock, ScaledClock) and clock.speed != 1:
            settings = _apart(settings, settings.state / REHEARSAL)
        listening = stack.enter_context(listen(settings.fleet_host, settings.fleet_port))
        stack.enter_context(_hold(settings, clock))
        fleet = Fleet(settings, clock, synthetic=demo is not None, on_fatal=signals.wake)
        stack.callback(fleet.close)
        if demo is not None:
            feed = DemoFeed(fleet, demo)
            feed.fill()
            stack.enter_context(feed)
        fleet.start()
        from forecastd.fleet.api.app import make_app  # takes half a second, in which the model loads already
        from forecastd.fleet.api.listener import HttpServer

        http = stack.enter_context(HttpServer(make_app(fleet, keys), listening))
        log.info("%s", _banner(fleet, http.port, keys), extra={"action": "start"})
        return _run(_Served(signals, fleet, http, Notifier(settings.notify_socket)))


def _apart(settings: Settings, state: Path) -> Settings:
    """The same with a state of its own: rows of a time that is made up must never be taken for real ones."""
    return settings.model_copy(update={"fleet_models_dir": settings.fleet_models, "state_dir": state})


def _hold(settings: Settings, clock: Clock) -> Hold:
    try:
        return Hold(settings.fleet_state / "serve.lock", clock, wait=HOLD_SECONDS)
    except RetryLater as error:
        raise NeedsHuman(str(error)) from None


def _banner(fleet: Fleet, port: int, keys: ApiKeys) -> str:
    """What runs, in one block."""
    settings, manifest = fleet.settings, fleet.model.manifest
    host = f"[{settings.fleet_host}]" if ":" in settings.fleet_host else settings.fleet_host
    lines = [
        ("serving", f"http://{host}:{port}  (POST /feed, GET /forecast, /docs)"),
        ("keys", f"{len(keys)} API keys" if keys else "none; only this machine can ask"),
        ("model", f"{manifest.name} ({manifest.sha256[:12]}), engine {settings.fleet_engine}"),
        ("forecast", f"{manifest.horizon} steps of {manifest.step} s from {manifest.encoder_minimum} to "
                     f"{manifest.encoder_length} ticks of each server"),
        ("state", str(settings.fleet_state)),
        ("now", iso(fleet.clock.now())),
    ]  # fmt: skip
    if isinstance(fleet.clock, ScaledClock) and fleet.speed != 1:
        lines.append(("speed", f"{fleet.speed:g}: time is made up"))
    if fleet.synthetic:
        lines.append(("servers", "made up (--demo)"))
    return "\n".join([f"forecastd {__version__} serves a fleet", *(f"  {name:<9} {text}" for name, text in lines)])


def _run(served: _Served) -> int:
    """Until a signal that ends the process; its exit code. Raises NeedsHuman when the fleet cannot go on."""
    settings, notify, fleet = served.fleet.settings, served.notify, served.fleet
    every = watchdog_seconds(settings.watchdog_usec, settings.watchdog_pid, os.getpid())
    notify.ready(f"serving on port {served.http.port}")
    status = ""
    while True:
        for number in served.signals.wait(min(LOOK_SECONDS, every or LOOK_SECONDS)):
            if number in {signal.SIGTERM, signal.SIGINT}:
                notify.stopping("ending")
                log.info("ending: %s", signal.Signals(number).name, extra={"action": "end"})
                served.stop()
                return INTERRUPTED if number == signal.SIGINT else 0
            if number == signal.SIGHUP:
                reopen()
            if number == signal.SIGUSR1:
                from forecastd.daemon.telling import stacks

                log.info("the stacks of all threads:\n%s", stacks(), extra={"action": "stacks"})
        if fleet.fatal is not None:
            served.stop()
            raise fleet.fatal
        if every is not None and _gets_on(served):
            notify.watchdog()
        told = _status(fleet)
        if told != status:
            status = told
            notify.status(told)


def _gets_on(served: _Served) -> bool:
    """Whether a new start would be of no use: what a dead thread stops is not, what a slow model does is."""
    fleet = served.fleet
    beats = fleet.clock.monotonic() - fleet.ticker.beat < report.LATE_BEATS
    return beats and fleet.forecasting.alive and fleet.judging.alive and served.http.alive


def _status(fleet: Fleet) -> str:
    """The line that `systemctl status` shows."""
    states, health = fleet.published.states(), report.health(fleet)
    told = f"{states['total']} servers, {states['ready']} ready, {fleet.published.alert_counts['open']} alerts"
    return told if health.ok else f"{told}; {health.reasons[0]}"
