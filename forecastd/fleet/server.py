"""`fleet serve`: one process from its first line in the log to its last.

The main thread does nothing that takes long: it waits for signals, feeds the service manager's watchdog as long as the fleet
gets on, and ends everything. What cannot be is found out before the first thread starts: a port that is taken, keys that are
missing, a state that another process uses.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import ExitStack

from forecastd.clock import Clock
from forecastd.daemon.signals import Signals
from forecastd.fleet.api.app import make_app
from forecastd.fleet.api.keys import load_keys, require_keys
from forecastd.fleet.api.listener import HttpServer, listen
from forecastd.fleet.service import Fleet
from forecastd.logs import reopen
from forecastd.notify import Notifier, watchdog_seconds
from forecastd.settings import Settings

log = logging.getLogger(__name__)

LOG_NAME = "fleet.log"
INTERRUPTED = 130
LOOK_SECONDS = 1.0
_LAST_WORDS = b"Interrupted again: ending at once.\n"


def serve(settings: Settings, clock: Clock) -> int:
    """Run a fleet until a signal; the exit code.

    Raises:
        NeedsHuman: it cannot start.
    """
    keys = load_keys(settings)
    require_keys(keys, settings.fleet_host)
    with Signals(_LAST_WORDS).caught() as signals, ExitStack() as stack:
        listening = stack.enter_context(listen(settings.fleet_host, settings.fleet_port))
        fleet = stack.enter_context(Fleet(settings, clock))
        http = stack.enter_context(HttpServer(make_app(fleet, keys), listening))
        log.info("serving on http://%s:%d", settings.fleet_host, http.port, extra={"action": "start"})
        notify = Notifier(settings.notify_socket)
        notify.ready("serving")
        return _wait(signals, fleet, notify, settings)


def _wait(signals: Signals, fleet: Fleet, notify: Notifier, settings: Settings) -> int:
    """Until a signal that ends the process; its exit code."""
    every = watchdog_seconds(settings.watchdog_usec, settings.watchdog_pid, os.getpid())
    while True:
        for number in signals.wait(min(LOOK_SECONDS, every or LOOK_SECONDS)):
            if number in {signal.SIGTERM, signal.SIGINT}:
                notify.stopping("ending")
                log.info("ending: %s", signal.Signals(number).name, extra={"action": "end"})
                return INTERRUPTED if number == signal.SIGINT else 0
            if number == signal.SIGHUP:
                reopen()
        if every is not None and fleet.health().ok:
            notify.watchdog()
