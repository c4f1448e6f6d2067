"""The running fleet: rows in, a forecast after each tick, and what everybody reads.

Four kinds of threads, none of which waits for another: requests put rows into memory and read what is published, the ticker
closes ticks and writes them down, one thread has the model forecast, and one judges each tick with the newest forecast there
is. What is published is one immutable value, replaced as a whole.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from forecastd.alerts import Alerts
from forecastd.clock import Clock, ScaledClock
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.fleet.contract import FeedAnswer
from forecastd.fleet.intake import Rows
from forecastd.fleet.judging import Judge
from forecastd.fleet.latest import Latest
from forecastd.fleet.memory import FleetMemory
from forecastd.fleet.modelling import Change, Model, Opener, open_forecaster
from forecastd.fleet.published import Published
from forecastd.fleet.pulling import Puller, parse_targets
from forecastd.fleet.store import TickStore
from forecastd.fleet.thresholds import load_thresholds
from forecastd.fleet.ticker import Ticker
from forecastd.settings import Settings

log = logging.getLogger(__name__)

KEEP = 360  # ticks of each server in memory; half an hour of 5 s
FORECAST_SHARE = 0.5  # of a tick, for which its forecast is waited for before it is judged without
CLOSE_SECONDS = 0.5  # for all threads and processes together
AGAIN_SECONDS = 5.0  # between two attempts to get the model ready


class Fleet:
    """One fleet. Use as a context manager: entering starts it, leaving ends it. `published` may be read at any time.

    `synthetic`: its rows are made up. `fatal`: why it cannot go on, when it has found out that it cannot.
    """

    def __init__(
        self, settings: Settings, clock: Clock, *, opener: Opener | None = None, synthetic: bool = False,
        on_fatal: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Open everything; the model begins to load. `on_fatal` is called when `fatal` is set.

        Raises:
            NeedsHuman: the model, the thresholds or the settings are not fit for it.
        """
        self.settings, self.clock, self.synthetic = settings, clock, synthetic
        self.step = settings.fleet_step
        self.speed = clock.speed if isinstance(clock, ScaledClock) else 1.0
        self.fatal: NeedsHuman | None = None
        self.failures = 0
        self.trouble: str | None = None  # why the newest forecast could not be made
        self.started_at, self.started = clock.now(), clock.monotonic()
        self._on_fatal = on_fatal
        thresholds = load_thresholds(settings.fleet_thresholds)
        self.puller = Puller(parse_targets(settings.fleet_scrape), self.step, clock)
        self._alerts = _alerts(settings, clock, synthetic=synthetic)
        self._judge = Judge(thresholds, settings.fleet_state / "alertbook.json", self.step, self._alerts)
        store = TickStore(
            settings.fleet_state / "window.sqlite", step=self.step, hours=settings.fleet_history_hours,
            megabytes=settings.fleet_history_mb,
        )  # fmt: skip
        self.model = Model(settings, clock, opener or open_forecaster(settings, clock), KEEP)
        self.memory = FleetMemory(settings, clock, store, self.model.keep)
        self.published = Published(tick=-1)
        self._publishing = threading.Lock()
        self._attempted = threading.Condition()
        self._attempted_tick = -1
        self._ending = threading.Event()
        self._closing = threading.Thread(target=self.model.close, name="closing", daemon=True)
        self.ticker = Ticker(clock, self.step, self._close_tick, self._set_back)
        self.forecasting = Latest("the fleet's forecast", self._forecast, self._get_ready)
        self.judging = Latest("the fleet's judgement", self._judge_tick)

    def __enter__(self) -> Fleet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin: the first forecast is made from what the window holds, as soon as the model is ready."""
        self._alerts.__enter__()
        if not self.synthetic:
            self.memory.load()
        self._offer(self.memory.window.newest)
        for thread in (self.ticker, self.forecasting, self.judging):
            thread.start()
        if not self.synthetic:
            self.puller.start(self.feed)

    def stop(self) -> None:
        """Begin to end. Returns at once."""
        if self._ending.is_set():
            return
        self._ending.set()
        self.puller.close()
        self.ticker.tell_to_stop()
        self.forecasting.tell_to_stop()
        self.judging.tell_to_stop()
        with self._attempted:
            self._attempted.notify_all()
        self._closing.start()

    def close(self) -> None:
        """End everything, soon: what hangs is left to end with the process. Only the rows of the open tick are unsaved."""
        self.stop()
        end = self.clock.monotonic() + CLOSE_SECONDS

        def left() -> float:
            return max(0.0, end - self.clock.monotonic())

        if self.ticker.join(left()):
            self.memory.save()
        self._closing.join(left())
        self.judging.join(left())
        self.forecasting.join(left())
        self._alerts.close(left())
        self.memory.store.close()

    def feed(self, body: bytes, content_type: str | None) -> FeedAnswer:
        """Take a feed in. Raises FeedError when the body is none."""
        return self.memory.take(body, content_type)

    def put(self, rows: Rows) -> None:
        """Take rows in that are known to be good, such as a simulator's."""
        self.memory.put(rows)

    def reload(self, name: str) -> Change:
        """Run the model of this name from now on. Raises Busy or Unfit, and the old one goes on."""
        change = self.model.change(name)
        self.trouble = None
        self.forecasting.offer(self.memory.window.newest)
        return change

    # ---- the ticker's thread ------------------------------------------------------------------------------------------

    def _close_tick(self, tick: int) -> None:
        self.memory.advance(tick)
        self._offer(tick)
        self.memory.save()

    def _set_back(self, tick: int) -> None:
        self.memory.set_back()
        self._attempted_tick = -1
        with self._publishing:
            self.published = replace(self.published, forecast=None, places={})
        self._offer(tick)

    def _offer(self, tick: int) -> None:
        if len(self.memory.window):
            self.forecasting.offer(tick)
        self.judging.offer(tick)

    # ---- the forecast's thread ----------------------------------------------------------------------------------------

    def _get_ready(self) -> bool:
        """Wait for the model's children; False when there is no use in going on."""
        while not self._ending.is_set():
            try:
                self.model.ready()
            except NeedsHuman as error:
                self.fatal = error
                self._on_fatal()
                return False
            except ForecastdError as error:
                self._failed(error)
                self._ending.wait(AGAIN_SECONDS)
            else:
                self.trouble = None
                return True
        return False

    def _forecast(self, tick: int) -> None:
        """Have the newest tick forecast, whichever it is by now."""
        block = self.memory.block(self.model.manifest.encoder_length)
        try:
            if block.servers:
                forecast = self.model.forecast(block)
                places = {server: place for place, server in enumerate(forecast.servers)}
                with self._publishing:
                    self.published = replace(self.published, forecast=forecast, places=places)
                self.trouble = None
        except (SkipEpoch, RetryLater, NeedsHuman) as error:
            if not self._ending.is_set():
                self._failed(error)
        finally:
            with self._attempted:
                self._attempted_tick = max(tick, block.tick)
                self._attempted.notify_all()

    def _failed(self, error: ForecastdError) -> None:
        self.failures += 1
        if self.trouble != str(error):
            log.error("no forecast: %s", error, extra={"action": "forecast"})
        self.trouble = str(error)

    # ---- the judge's thread -------------------------------------------------------------------------------------------

    def _judge_tick(self, tick: int) -> None:
        """Judge the newest tick, with its forecast if it comes soon."""
        if len(self.memory.window):
            with self._attempted:
                self._attempted.wait_for(lambda: self._attempted_tick >= tick or self._ending.is_set(), self._patience)
        manifest = self.model.manifest
        block = self.memory.block(manifest.encoder_length)
        judged = self._judge.judge(
            block, self.published.forecast, manifest.names, manifest.encoder_minimum, self.published
        )
        with self._publishing:
            now = self.published
            self.published = replace(judged, forecast=now.forecast, places=now.places)

    @property
    def _patience(self) -> float:
        return FORECAST_SHARE * self.step / self.speed


def _alerts(settings: Settings, clock: Clock, *, synthetic: bool) -> Alerts:
    """Who is told of servers in trouble; of servers that are made up, nobody but the log."""
    webhook = settings.alert_webhook.get_secret_value() if settings.alert_webhook and not synthetic else None
    command = None if synthetic else settings.alert_command
    return Alerts(webhook, command, interval=settings.alert_interval, clock=clock, state_dir=settings.fleet_state)
