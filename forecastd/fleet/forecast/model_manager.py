"""The model that a fleet runs, and its replacement while the fleet is running.

Invariant: a new bundle replaces the old one only after one of its own children has passed the canary. Until then, and
if anything is wrong with the new bundle, the old one serves. A forecast that the old one has in progress is repeated
by the new one.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from forecastd.clock import Clock
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.fleet.documents import ModelReference, ReloadResponse
from forecastd.fleet.forecast.fleet_forecast import FleetForecast
from forecastd.fleet.forecast.forecaster import FleetForecaster
from forecastd.fleet.window.readiness import PreparedInput
from forecastd.fleet.window.window import WindowBlock
from forecastd.runtime.retry import backoff_seconds
from forecastd.settings import Settings
from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.policy import SupervisionPolicy, policy_from_settings
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LOOKBACK_TICKS = 5000  # ticks that the first model may look back
LOOKBACK_MARGIN = 30  # ticks that may close between two reads of the window
RETRY_SECONDS = (30.0, 600.0)  # before a quarantined model is opened again: first and maximum delay
STOP_SECONDS = 0.5  # for the model's processes, so that the whole service stops within a second


class FleetForecasterProtocol(Protocol):
    """One bundle in children of its own: `FleetForecaster`, or a fake in tests."""

    manifest: FleetManifest

    @property
    def counts(self) -> SupervisionCounts: ...
    def wait_until_ready(self, seconds: float | None = None, is_cancelled: Callable[[], bool] = ...) -> str: ...
    def forecast(
        self, block: WindowBlock, prepared: PreparedInput | None = None, is_cancelled: Callable[[], bool] = ...
    ) -> FleetForecast: ...
    def children(self) -> list[dict[str, object]]: ...
    def close(self) -> None: ...


ForecasterFactory = Callable[[Path, SupervisionPolicy], FleetForecasterProtocol]


class ReloadInProgress(ForecastdError):
    """Another model is being loaded. Try again when it is ready."""


class IncompatibleModel(ForecastdError):
    """The bundle cannot be run here. The old model stays."""


class ModelManager:
    """The bundle in use. `forecast` is for one thread; any thread may call the other methods.

    `retained_ticks`: how many ticks of each server this model and its successors may look back.
    """

    def __init__(self, settings: Settings, clock: Clock, factory: ForecasterFactory, retained_ticks: int) -> None:
        """Open the bundle of the settings; its children begin to load. `retained_ticks`: the minimum number of ticks
        in memory.

        Raises:
            NeedsHuman: there is no such bundle, or it does not fit this fleet.
        """
        self._settings, self._clock, self._factory, self._retained_ticks = settings, clock, factory, MAX_LOOKBACK_TICKS
        policy = policy_from_settings(settings, standbys=settings.supervision.standbys)
        limits = replace(policy.limits, stopping=min(policy.limits.stopping, STOP_SECONDS))
        self.policy = replace(policy, limits=limits)
        self._change_lock, self._lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._candidate: FleetForecasterProtocol | None = None
        self._path = settings.fleet.model_path
        self._current = self._open(self._path)
        self._reopenings, self._quarantined_at = 0, -math.inf
        self.retained_ticks = self._retained_ticks = max(retained_ticks, self.manifest.encoder_length + LOOKBACK_MARGIN)

    @property
    def manifest(self) -> FleetManifest:
        """The manifest of the bundle in use."""
        return self._current.manifest

    def counts(self) -> dict[str, Any]:
        """The counters of supervision for the bundle in use, and its children."""
        current = self._current
        return {**current.counts.as_json(), "children": current.children()}

    def wait_until_ready(self) -> None:
        """Wait until the bundle in use has passed its canary.

        Raises:
            NeedsHuman: the bundle is invalid.
            SkipEpoch, RetryLater: no child became ready.
        """
        self._reopen_after_quarantine()
        self._current.wait_until_ready(is_cancelled=self._is_closed)

    def forecast(self, block: WindowBlock) -> FleetForecast:
        """The forecast of all servers of a block. Raises as `FleetForecaster.forecast` does."""
        self._reopen_after_quarantine()
        while True:
            current = self._current
            try:
                return current.forecast(block, is_cancelled=self._is_closed)
            except ForecastdError:
                if self._current is current or self._closed:
                    raise  # otherwise the model was replaced meanwhile

    def _reopen_after_quarantine(self) -> None:
        """Open a quarantined bundle again after a delay: the cause of its failures may be over."""
        current, now = self._current, self._clock.monotonic()
        if not current.counts.quarantines or self._closed:
            return
        if self._quarantined_at == -math.inf:
            self._quarantined_at = now
        if now - self._quarantined_at < backoff_seconds(self._reopenings + 1, *RETRY_SECONDS, jitter=0):
            return
        self._quarantined_at, self._reopenings = -math.inf, self._reopenings + 1
        log.warning("reopening the quarantined model %s", current.manifest.name, extra={"action": "model"})
        new = self._open(self._path)
        with self._lock:
            if self._current is current and not self._closed:
                self._current, new = new, current
        new.close()

    def change_to(self, name: str) -> ReloadResponse:
        """Change to the bundle of this name, if it is valid.

        Raises:
            ReloadInProgress: another change is in progress.
            IncompatibleModel: there is no such bundle, or it cannot be run here.
        """
        if not self._change_lock.acquire(blocking=False):
            raise ReloadInProgress
        try:
            return self._replace(self._bundle_path(name))
        finally:
            self._change_lock.release()

    def _is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            forecasters = [self._current, *([self._candidate] if self._candidate else [])]
        for forecaster in forecasters:
            forecaster.close()

    def _replace(self, bundle: Path) -> ReloadResponse:
        try:
            new = self._open(bundle)
        except NeedsHuman as error:
            raise IncompatibleModel(str(error)) from None
        with self._lock:
            closed, self._candidate = self._closed, new
        try:
            if closed:
                raise IncompatibleModel("The fleet is shutting down.")
            new.wait_until_ready(is_cancelled=self._is_closed)
        except ForecastdError as error:
            self._candidate = None
            new.close()
            raise IncompatibleModel(str(error)) from None
        with self._lock:
            old, self._current, self._candidate, self._path = self._current, new, None, bundle
            self._reopenings, self._quarantined_at = 0, -math.inf
        old.close()
        log.info(
            "the model %s (%s) replaced %s (%s)", new.manifest.name, new.manifest.sha256[:12],
            old.manifest.name, old.manifest.sha256[:12], extra={"action": "model"},
        )  # fmt: skip
        return ReloadResponse(
            ModelReference(old.manifest.name, old.manifest.sha256),
            ModelReference(new.manifest.name, new.manifest.sha256),
        )

    def _bundle_path(self, name: str) -> Path:
        """The bundle of this name: in the directory of models, or the one the fleet was started with."""
        if not MODEL_NAME_PATTERN.fullmatch(name):
            raise IncompatibleModel(
                "A model name consists of letters, digits and . _ - and begins with a letter or digit."
            )
        path = self._settings.fleet_models_path / name
        initial_path = self._settings.fleet.model_path
        if not path.is_dir() and initial_path.name == name:
            return initial_path
        if not path.is_dir():
            raise IncompatibleModel(
                f"There is no model {name} in {self._settings.fleet_models_path}. "
                "Copy its bundle into that directory (FLEET_MODELS_DIR)."
            )
        return path

    def _open(self, bundle: Path) -> FleetForecasterProtocol:
        forecaster = self._factory(bundle, self.policy)
        length = forecaster.manifest.encoder_length
        if length > self._retained_ticks:
            forecaster.close()
            raise NeedsHuman(
                f"The model {forecaster.manifest.name} needs {length} ticks, but this fleet retains "
                f"{self._retained_ticks}. Restart the fleet with this model (FLEET_MODEL), or train one "
                "with a shorter encoder."
            )
        return forecaster


def forecaster_factory(settings: Settings, clock: Clock) -> ForecasterFactory:
    """A factory that opens bundles in supervised children."""

    def open_bundle(bundle: Path, policy: SupervisionPolicy) -> FleetForecasterProtocol:
        return FleetForecaster(
            bundle, policy=policy, clock=clock, engine=settings.fleet.engine, step=settings.fleet.step
        )

    return open_bundle
