"""The running fleet: accepts rows, forecasts after each tick, and publishes one snapshot that every reader uses.

It has four kinds of threads, and none waits for another: requests put rows into memory and read the snapshot, the
ticker closes ticks and saves them, one thread runs the model, and one evaluates each tick with the newest forecast.
The snapshot is an immutable value and is replaced as a whole.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from forecastd.alerts import AlertDispatcher
from forecastd.clock import Clock, ScaledClock
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.fleet.documents import ReloadResponse
from forecastd.fleet.forecast.latest_tick_worker import LatestTickWorker
from forecastd.fleet.forecast.model_manager import ForecasterFactory, ModelManager, forecaster_factory
from forecastd.fleet.ingest.scraper import Scraper, parse_targets
from forecastd.fleet.risk.thresholds import load_thresholds
from forecastd.fleet.snapshot import FleetSnapshot
from forecastd.fleet.tick_evaluator import TickEvaluator
from forecastd.fleet.ticker import Ticker
from forecastd.fleet.window.persistent_window import PersistentWindow
from forecastd.fleet.window.store import FILE_NAME, TickStore
from forecastd.inference.bundle_store import FallbackBundles, open_bundle_store
from forecastd.runtime.closeable import Closeable
from forecastd.settings import Settings
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

WINDOW_TICKS = 360  # ticks of each server in memory; half an hour at 5 s
FORECAST_SHARE = 0.5  # of a tick: how long an evaluation waits for the forecast of its tick
CLOSE_SECONDS = 0.5  # for all threads and processes together
RETRY_SECONDS = 5.0  # between two attempts to start the model


class Fleet(Closeable):
    """One fleet. Use as a context manager: entering starts it, leaving stops it.

    `snapshot`: what readers need; any thread may read it at any time. `synthetic`: the rows are simulated.
    `fatal_error`: why the fleet cannot continue, or None.
    """

    def __init__(
        self, settings: Settings, clock: Clock, *, factory: ForecasterFactory | None = None, synthetic: bool = False,
        on_fatal: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Open the store and the model; the model begins to load. `on_fatal` is called when `fatal_error` is set.

        Raises:
            NeedsHuman: the model, the thresholds or the settings are invalid.
        """
        self.settings, self.clock, self.synthetic = settings, clock, synthetic
        self.step = settings.fleet.step
        self.speed = clock.speed if isinstance(clock, ScaledClock) else 1.0
        self.fatal_error: NeedsHuman | None = None
        self.failures = 0
        self.last_error: str | None = None  # why the newest forecast failed
        self.started_at, self.started_monotonic = clock.now(), clock.monotonic()
        self._on_fatal = on_fatal
        thresholds = load_thresholds(settings.fleet.thresholds)
        self.scraper = Scraper(parse_targets(settings.fleet.scrape), self.step, clock)
        # Alerts about simulated servers go only to the log.
        receivers = settings.alerts.without_receivers() if synthetic else settings.alerts
        self._alerts = AlertDispatcher(receivers, settings.fleet_state_path, clock)
        self._evaluator = TickEvaluator(
            thresholds, settings.fleet_state_path / "alertbook.json", self.step, self._alerts
        )
        store = TickStore(
            settings.fleet_state_path / FILE_NAME, step=self.step, hours=settings.fleet.history_hours,
            megabytes=settings.fleet.history_mb,
        )  # fmt: skip
        fallback = FallbackBundles(open_bundle_store(settings, clock), "fleet", FleetManifest.read)
        self.model = ModelManager(
            settings, factory or forecaster_factory(settings, clock), WINDOW_TICKS, None if synthetic else fallback
        )
        self.window = PersistentWindow(settings, clock, store, self.model.retained_ticks)
        self.snapshot = FleetSnapshot(tick=-1)
        self._snapshot_lock = threading.Lock()
        self._attempt_condition = threading.Condition()
        self._attempted_tick = -1
        self._stopping = threading.Event()
        self._model_close_thread = threading.Thread(target=self.model.close, name="closing the model", daemon=True)
        self.ticker = Ticker("the fleet ticker", clock, self.step, self._close_tick, self._rewind)
        self.forecast_worker = LatestTickWorker("the fleet forecast", self._forecast, self._wait_for_model)
        self.evaluation_worker = LatestTickWorker("the fleet evaluation", self._evaluate_tick)
        self.threads = (self.ticker, self.forecast_worker, self.evaluation_worker)

    def start(self) -> None:
        """Start the threads. The first forecast uses the loaded window and is made as soon as the model is ready."""
        self._alerts.start()
        if not self.synthetic:
            self.window.load()
        self._submit_tick(self.window.memory.newest)
        for thread in self.threads:
            thread.start()
        if not self.synthetic:
            self.scraper.start(self.window.ingest)

    def stop(self) -> None:
        """Ask all threads to stop. Returns immediately."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self.scraper.close()
        for thread in self.threads:
            thread.request_stop()
        with self._attempt_condition:
            self._attempt_condition.notify_all()
        self._model_close_thread.start()

    def close(self) -> None:
        """Stop everything within `CLOSE_SECONDS`; a thread that hangs ends with the process.

        Rows of the open tick are lost.
        """
        self.stop()
        end = self.clock.monotonic() + CLOSE_SECONDS

        def remaining() -> float:
            return max(0.0, end - self.clock.monotonic())

        for thread in (self.ticker, self._model_close_thread, self.evaluation_worker, self.forecast_worker):
            if thread.ident is not None:  # otherwise it was never started
                thread.join(remaining())
            if thread is self.ticker and not thread.is_alive():
                self.window.save()
        self._alerts.close(remaining())
        self.window.store.close()

    def reload(self, name: str) -> ReloadResponse:
        """Change to the model of this name. If it raises ReloadInProgress or IncompatibleModel, the old model stays."""
        change = self.model.change_to(name)
        self.last_error = None
        self.forecast_worker.submit(self.window.memory.newest)
        return change

    def _close_tick(self, tick: int) -> None:
        """Close a tick: forecast, evaluate, save. Runs in the ticker thread."""
        self.window.advance(tick)
        self._submit_tick(tick)
        self.window.save()

    def _rewind(self, tick: int) -> None:
        """Reload the window after the clock was set back. Runs in the ticker thread."""
        self.window.rewind()
        with self._attempt_condition:
            self._attempted_tick = -1
        with self._snapshot_lock:
            self.snapshot = replace(self.snapshot, forecast=None, forecast_rows={})
        self._submit_tick(tick)

    def _submit_tick(self, tick: int) -> None:
        if len(self.window.memory):
            self.forecast_worker.submit(tick)
        self.evaluation_worker.submit(tick)

    def _wait_for_model(self) -> bool:
        """Wait until the model is ready. Runs in the forecast thread; False if the fleet is stopping or cannot continue."""
        while not self._stopping.is_set():
            try:
                self.model.check()
            except NeedsHuman as error:
                self.fatal_error = error
                self._on_fatal()
                return False
            except ForecastdError as error:
                self._record_failure(error)
                self._stopping.wait(RETRY_SECONDS)
            else:
                self.last_error = None
                return True
        return False

    def _forecast(self, tick: int) -> None:
        """Forecast the newest tick, which may be later than `tick`. Runs in the forecast thread."""
        block = self.window.block(self.model.manifest.encoder_length)
        try:
            if block.servers:
                forecast = self.model.forecast(block)
                row_by_server = {server: row for row, server in enumerate(forecast.servers)}
                with self._snapshot_lock:
                    self.snapshot = replace(self.snapshot, forecast=forecast, forecast_rows=row_by_server)
                self.last_error = None
        except (SkipEpoch, RetryLater, NeedsHuman) as error:
            if not self._stopping.is_set():
                self._record_failure(error)
        finally:
            with self._attempt_condition:
                self._attempted_tick = max(tick, block.tick)
                self._attempt_condition.notify_all()

    def _record_failure(self, error: ForecastdError) -> None:
        self.failures += 1
        if self.last_error != str(error):
            log.error("the forecast failed: %s", error, extra={"action": "forecast"})
        self.last_error = str(error)

    def _evaluate_tick(self, tick: int) -> None:
        """Evaluate the newest tick, with its forecast if that arrives in time. Runs in the evaluation thread."""
        if len(self.window.memory):
            with self._attempt_condition:
                self._attempt_condition.wait_for(
                    lambda: self._attempted_tick >= tick or self._stopping.is_set(),
                    FORECAST_SHARE * self.step / self.speed,
                )
        manifest = self.model.manifest
        block = self.window.block(manifest.encoder_length)
        evaluated = self._evaluator.evaluate(block, self.snapshot.forecast, manifest.names, manifest.encoder_minimum)
        with self._snapshot_lock:
            current = self.snapshot
            self.snapshot = replace(evaluated, forecast=current.forecast, forecast_rows=current.forecast_rows)
