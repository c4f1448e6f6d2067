"""The main loop: a tick every second or two, from the start to the last words.

It does nothing that takes long itself. Starting, reloading, watching and serving go on in threads of their own; the loop
looks whether they still make progress, and only as long as they all do is the service manager's watchdog fed.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from forecastd.alerts import Alerts
from forecastd.clock import Clock, iso
from forecastd.daemon import pulses, telling
from forecastd.daemon.background import Background
from forecastd.daemon.beats import Beats
from forecastd.daemon.book import Book
from forecastd.daemon.crew import Crew, Tuning
from forecastd.daemon.deadline import Deadline
from forecastd.daemon.face import Body, Face
from forecastd.daemon.guarded import Unforeseen, guarded
from forecastd.daemon.reports import Desk
from forecastd.daemon.signals import Signals
from forecastd.daemon.start import ask_chain, banner, look_at_host
from forecastd.daemon.workshop import Outfit, Problems, Workshop
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater
from forecastd.health.server import HealthServer
from forecastd.logs import reopen
from forecastd.patience import again_while
from forecastd.pulse import Mode, Pulse
from forecastd.settings import Settings

log = logging.getLogger(__name__)

TICK, BUSY_TICK = 2.0, 0.1  # seconds between two ticks: while all goes its way, and while it starts, reloads or ends
SHOWN_TICK = 1.0  # seconds, while somebody watches
CUT, GRACE, LAST_GRACE = 2.5, 5.0, 8.0  # seconds after SIGTERM, see `_finished` and `_leave`
AFTER_A_FAULT = 10.0  # seconds between two ticks that an error ended which nobody foresaw
RESTART = 6  # exit code that asks the service manager for a new start
STILL = 15.0  # seconds between two ticks that are worth telling: the process was stopped, or got no processor
_AT_START = ("log_dir", "logs_directory", "log_format", "health_port")  # settings that a reload leaves as they were

Load = Callable[[], tuple[list[Settings], list[str]]]


@dataclass
class Ending:
    """Why the daemon ends, and with which code. `since`: the monotonic second from which on it is to end at once."""

    code: int
    reason: str
    since: float | None = None


class Daemon:
    """One daemon. `run` in the main thread, once."""

    def __init__(
        self, load: Load, clock: Clock, *, mode: Mode = "daemon", register: bool = False,
        watch: Callable[[Pulse], None] | None = None, tuning: Tuning | None = None,
    ) -> None:  # fmt: skip
        """`load` gives the settings of each topic and what is wrong with them; it is called again for each reload.

        `watch` is called with the daemon's pulse at every tick.
        """
        self._load, self._clock, self._watch, self._register = load, clock, watch, register
        self._topics, self._wrong = load()
        common = self._topics[0]
        self._signals, self._wake = Signals(), threading.Event()
        self._deadline = Deadline(_deadline_of(common), clock.monotonic(), clock.now(), self._block_time)
        beats, book = Beats(clock), Book()
        self._shop = Workshop(clock, register=register)
        self._desk = Desk(self._alerts(common))
        self._crew = Crew(
            self._shop, clock, beats, book, self._desk, interval=common.submission_interval,
            may_start=lambda: not self._over(), tuning=tuning or Tuning(),
        )  # fmt: skip
        self._face = Face(common, mode, clock, Body(beats, book, self._crew, self._shop, self._desk))
        self._ticked = clock.monotonic()
        self._ending: Ending | None = None
        self._starting: Background[None] | None = None
        self._reloading: Background[tuple[list[Settings], Outfit]] | None = None
        self._reload_wanted = False

    def run(self) -> int:
        """Serve until a signal, the deadline, or something that a new start has to mend; the exit code."""
        with self._signals.caught(), ExitStack() as stack:
            if self._over():
                log.info("The deadline %s has passed: nothing is started.", iso(self._deadline.at or 0.0))
                self._face.notify.ready("the deadline has passed")  # or systemd would take the end for a failed start
                return 0
            log.info("%s", banner(self._topics, pulses.versions(), self._clock.now()), extra={"action": "start"})
            self._serve_health(stack)
            self._starting = Background("the start", self._open)
            while not self._finished():
                for number in self._signals.wait(self._pause()):
                    self._on_signal(number)
                if isinstance(guarded("the main loop", self._tick), Unforeseen):
                    self._wake.wait(AFTER_A_FAULT)
            return self._leave()

    # The start

    def _open(self) -> None:
        """In a thread of its own: check and open everything, patiently where that may help."""
        common, wrong = self._topics[0], [*self._wrong, *look_at_host(self._topics[0])]

        def equip() -> None:
            self._shop.equip(
                self._topics, wrong, lambda way, gears: ask_chain(way, gears, self._clock, register=self._register)
            )

        again_while(lambda: True, equip, self._wake)
        again_while(lambda: True, lambda: self._shop.open_books(common.state), self._wake)

    def _look_at_start(self) -> None:
        if self._face.state != "starting" or self._starting is None or not self._starting.done or self._ending:
            return
        result = self._starting.result
        if isinstance(result, Problems):
            for number, problem in enumerate(result.all, start=1):
                log.error("%d. %s", number, problem, extra={"action": "start"})
            self._desk.open(lambda: self._alerts(self._topics[0]))
            self._desk.start_trouble(str(result))
            self._end(result.exit_code, f"a person is needed before this can run, see 1 to {len(result.all)} above")
            self._face.write(always=True)
        elif isinstance(result, ForecastdError):
            log.error("%s", result, extra={"action": "start"})
            self._end(result.exit_code, "it could not start")
        elif isinstance(result, Unforeseen):
            self._end(RESTART, f"it could not start: {result.reason}")
        else:
            self._desk.open(lambda: self._alerts(self._topics[0]))  # not before: another daemon may be telling
            self._desk.start_trouble("")
            begun = guarded("the start", self._crew.begin)
            if isinstance(begun, Unforeseen):
                self._end(RESTART, f"it could not start: {begun.reason}")
                return
            self._face.state = "running"
            self._face.notify.ready("running")
            log.info("running", extra={"action": "ready"})

    # Each second

    def _tick(self) -> None:
        mono = self._clock.monotonic()
        still, self._ticked = mono - self._ticked, mono
        if still > STILL:
            log.warning("This process stood still for %.0f s: it was stopped, or got no processor.", still,
                        extra={"action": "still"})  # fmt: skip
        self._deadline.tick(mono, self._clock.now())
        self._look_at_start()
        self._look_at_reload()
        self._crew.tidy()
        ledger = self._shop.ledger
        if ledger is not None and ledger.failed and (self._ending is None or self._ending.since is None):
            self._end(RESTART, "the disk of the ledger failed; a new start reconciles with the chain")
        if self._ending is None and self._over():
            log.info("The deadline %s has come: no cycle starts any more.", iso(self._deadline.at or 0.0))
            self._ending = Ending(0, "the deadline has come")
            self._crew.retire()
        self._face.tick()
        if self._watch is not None:
            self._watch(self._face.pulse())

    def _pause(self) -> float:
        """Seconds until the next tick."""
        if self._face.state != "running" or self._reloading is not None:
            return BUSY_TICK
        return min(TICK, self._face.feed_every or TICK, TICK if self._watch is None else SHOWN_TICK)

    def _over(self) -> bool:
        return self._deadline.passed(self._clock.monotonic(), self._clock.now())

    def _block_time(self) -> float:
        way = self._shop.outfit.way
        if way is None:
            raise RetryLater("The way to the chain is not open yet.")
        return way.chain.block_time()

    # Signals

    def _on_signal(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._end(0, f"told to by {signal.Signals(number).name}")
        elif number == signal.SIGHUP:
            reopen()
            self._reload_wanted = True
        elif number == signal.SIGUSR1:
            log.info("state: %s", self._face.pulse().as_text().decode(), extra={"action": "state"})
            log.info("the stacks of all threads:\n%s", telling.stacks(), extra={"action": "stacks"})

    def _end(self, code: int, reason: str) -> None:
        """End now: cycles finish what can be finished at once, and abandon the rest. What is signed is on record."""
        if self._ending is not None and self._ending.since is not None:
            return
        self._ending = Ending(code, reason, self._clock.monotonic())
        log.info("ending: %s", reason, extra={"action": "ending"})
        self._face.state = "stopping"
        self._face.notify.stopping(f"ending: {reason}")
        self._wake.set()
        self._crew.stop()

    # A reload

    def _reload(self) -> tuple[list[Settings], Outfit]:
        topics, wrong = self._load()
        problems = list(wrong)
        self._alerts(topics[0], problems)
        return topics, self._shop.reloaded(topics, problems)

    def _look_at_reload(self) -> None:
        if self._reload_wanted and self._reloading is None and self._face.state == "running":
            self._reload_wanted = False
            self._face.notify.reloading(int(self._clock.monotonic() * 1e6))
            log.info("reloading: settings, topics and models are read again", extra={"action": "reload"})
            self._reloading = Background("the reload", self._reload)
        if self._reloading is None or not self._reloading.done:
            return
        result, self._reloading = self._reloading.result, None
        if isinstance(result, tuple):
            self._adopt(*result)
        else:
            why = result.reason if isinstance(result, Unforeseen) else str(result)
            log.error("Not reloaded, the old settings stay in force: %s", why, extra={"action": "reload"})
        self._face.notify.ready("running")

    def _adopt(self, topics: list[Settings], new: Outfit) -> None:
        before, common = self._topics[0], topics[0]
        self._topics, self._face.common = topics, common
        self._deadline.at = _deadline_of(common)
        self._crew.adopt(new, common.submission_interval)
        if _alert_settings(before) != _alert_settings(common):
            self._desk.open(lambda: self._alerts(common))
        later = [name.upper() for name in _AT_START if getattr(before, name) != getattr(common, name)]
        if later:
            log.warning(
                "What is new of %s counts from the next start on.", ", ".join(later), extra={"action": "reload"}
            )
        log.info("reloaded", extra={"action": "reload"})

    def _alerts(self, common: Settings, problems: list[str] | None = None) -> Alerts:
        """Who is to be told of misses. What does not fit goes to `problems`, and nobody is told then."""
        webhook, command, interval = _alert_settings(common)
        try:
            return Alerts(webhook, command, interval=interval, clock=self._clock, state_dir=common.state,
                          network=common.allora_network)  # fmt: skip
        except NeedsHuman as error:
            (self._wrong if problems is None else problems).append(str(error))
        return Alerts(None, None, interval=interval, clock=self._clock, state_dir=common.state)

    def _serve_health(self, stack: ExitStack) -> None:
        port = self._topics[0].health_port
        if port is not None:
            server = stack.enter_context(HealthServer(port, self._face.pulse, self._clock))
            self._face.health_port = server.port

    # The end

    def _finished(self) -> bool:
        """Whether it is time to go: told to, and nothing is under way, or it takes too long."""
        ending = self._ending
        if ending is None:
            return False
        if self._starting is None or not self._starting.done or not self._crew.working:
            return True
        passed = 0.0 if ending.since is None else self._clock.monotonic() - ending.since
        if passed >= CUT:
            self._shop.cut()
        return passed >= GRACE

    def _leave(self) -> int:
        ending = self._ending or Ending(0, "the end")
        since = self._clock.monotonic() if ending.since is None else ending.since
        self._face.state = "stopping"
        self._face.notify.stopping(f"ending: {ending.reason}")
        self._wake.set()
        self._crew.stop()
        log.info("%s", telling.summary(self._face.pulse(), ending.reason), extra={"action": "summary"})
        if self._starting is not None and self._starting.done:
            abandoned = self._crew.working
            self._shop.close(max(0.5, since + LAST_GRACE - self._clock.monotonic()))
            if abandoned:
                log.warning("a cycle under way is abandoned; the next start goes on with it", extra={"action": "end"})
            else:
                self._shop.close_books()
        if ending.code == 0:
            self._face.state = "ended"  # else whoever looks must not take it for an end that was wanted
        self._face.write()
        self._desk.close(1.0 if ending.code == 0 else 5.0)
        return ending.code


def _deadline_of(settings: Settings) -> float | None:
    deadline = settings.submission_deadline
    return None if deadline is None else deadline.timestamp()


def _alert_settings(settings: Settings) -> tuple[str | None, str | None, float]:
    webhook = settings.alert_webhook
    return None if webhook is None else webhook.get_secret_value(), settings.alert_command, settings.alert_interval
