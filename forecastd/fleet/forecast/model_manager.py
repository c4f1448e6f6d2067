"""The model that a fleet runs, and the change to another one while it is running.

The one thing to know before changing it: a new bundle takes over only when a child of its own has proven it. Until then, and
whatever is wrong with it, the old one goes on. What the old one is at when it is replaced is done again by the new one.
"""

from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from forecastd.clock import Clock
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.fleet.forecast.fleet_forecast import FleetForecast
from forecastd.fleet.window.readiness import PreparedInput
from forecastd.fleet.window.window import WindowBlock
from forecastd.settings import Settings
from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.policy import SupervisionPolicy, policy_from_settings
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LOOKBACK_TICKS = 5000  # ticks that the model of the start may look back
LOOKBACK_MARGIN = 30  # ticks that may be closed between two looks at the window
RETRY_SECONDS = (30.0, 600.0)  # before a model that was given up is tried anew: at first, and at most
STOP_SECONDS = 0.5  # for the model's processes, so that the whole service ends within a second


class FleetForecasterProtocol(Protocol):
    """One bundle in children of its own: `inference.FleetForecaster`, or what stands in for it where no model is at hand."""

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
    """Another model is being loaded; try again when that is done."""


class IncompatibleModel(ForecastdError):
    """The bundle cannot be run here; the old one goes on."""


@dataclass(frozen=True)
class ModelChange:
    """One model took another's place: their names and sha256."""

    old_name: str
    old_sha256: str
    new_name: str
    new_sha256: str

    def as_json(self) -> dict[str, object]:
        """As `POST /admin/reload-model` answers."""
        old, new = (self.old_name, self.old_sha256), (self.new_name, self.new_sha256)
        return {key: {"name": identity[0], "sha256": identity[1]} for key, identity in (("old", old), ("new", new))}


class ModelManager:
    """The bundle in use. `forecast` is for one thread; everything else may be called from any.

    `keep`: how many ticks of each server it and its successors may look back.
    """

    def __init__(self, settings: Settings, clock: Clock, factory: ForecasterFactory, retained_ticks: int) -> None:
        """Open the bundle of the settings; its children begin to load. `keep`: ticks of each server in memory, at least.

        Raises:
            NeedsHuman: there is no such bundle, or it is not for this fleet.
        """
        self._settings, self._clock, self._factory, self._retained_ticks = settings, clock, factory, MAX_LOOKBACK_TICKS
        policy = policy_from_settings(settings, standbys=settings.standbys)
        limits = replace(policy.limits, stopping=min(policy.limits.stopping, STOP_SECONDS))
        self.policy = replace(policy, limits=limits)
        self._change_lock, self._lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._candidate: FleetForecasterProtocol | None = None
        self._path = settings.fleet_model_path
        self._current = self._open(self._path)
        self._retry_delay, self._quarantined_at = RETRY_SECONDS[0], -math.inf
        self.retained_ticks = self._retained_ticks = max(retained_ticks, self.manifest.encoder_length + LOOKBACK_MARGIN)

    @property
    def manifest(self) -> FleetManifest:
        """Of the bundle in use."""
        return self._current.manifest

    def counts(self) -> dict[str, Any]:
        """What supervision saw of the bundle in use, and its children."""
        current = self._current
        return {**current.counts.as_json(), "children": current.children()}

    def wait_until_ready(self) -> None:
        """Wait until the bundle in use is proven.

        Raises:
            NeedsHuman: it is no good.
            SkipEpoch, RetryLater: no child came to be ready.
        """
        self._reopen_after_quarantine()
        self._current.wait_until_ready(is_cancelled=self._is_closed)

    def forecast(self, block: WindowBlock) -> FleetForecast:
        """The forecast of all servers of a block. Raises as inference does."""
        self._reopen_after_quarantine()
        while True:
            current = self._current
            try:
                return current.forecast(block, is_cancelled=self._is_closed)
            except ForecastdError:
                if self._current is current or self._closed:
                    raise  # else it was replaced meanwhile

    def _reopen_after_quarantine(self) -> None:
        """Open a bundle again that supervision has given up: what its children died of may be over, and nobody is there."""
        current, now = self._current, self._clock.monotonic()
        if not current.counts.quarantines or self._closed:
            return
        if self._quarantined_at == -math.inf:
            self._quarantined_at = now
        if now - self._quarantined_at < self._retry_delay:
            return
        self._quarantined_at, self._retry_delay = -math.inf, min(2 * self._retry_delay, RETRY_SECONDS[1])
        log.warning("the model %s is tried anew", current.manifest.name, extra={"action": "model"})
        new = self._open(self._path)
        with self._lock:
            if self._current is current and not self._closed:
                self._current, new = new, current
        new.close()

    def change_to(self, name: str) -> ModelChange:
        """Run the bundle of this name from now on, if it is good.

        Raises:
            Busy: another change is under way.
            Unfit: there is no such bundle, or it is no good here.
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

    def _replace(self, bundle: Path) -> ModelChange:
        try:
            new = self._open(bundle)
        except NeedsHuman as error:
            raise IncompatibleModel(str(error)) from None
        with self._lock:
            closed, self._candidate = self._closed, new
        try:
            if closed:
                raise IncompatibleModel("The fleet is ending.")
            new.wait_until_ready(is_cancelled=self._is_closed)
        except ForecastdError as error:
            self._candidate = None
            new.close()
            raise IncompatibleModel(str(error)) from None
        with self._lock:
            old, self._current, self._candidate, self._path = self._current, new, None, bundle
            self._retry_delay, self._quarantined_at = RETRY_SECONDS[0], -math.inf
        old.close()
        log.info(
            "the model %s (%s) took the place of %s (%s)", new.manifest.name, new.manifest.sha256[:12],
            old.manifest.name, old.manifest.sha256[:12], extra={"action": "model"},
        )  # fmt: skip
        return ModelChange(old.manifest.name, old.manifest.sha256, new.manifest.name, new.manifest.sha256)

    def _bundle_path(self, name: str) -> Path:
        """The bundle of this name: in the directory of models, or the one this fleet was started with."""
        if not MODEL_NAME_PATTERN.fullmatch(name):
            raise IncompatibleModel(
                "The name of a model is letters, digits and . _ -, and begins with a letter or digit."
            )
        path = self._settings.fleet_models_path / name
        initial_path = self._settings.fleet_model_path
        if not path.is_dir() and initial_path.name == name:
            return initial_path
        if not path.is_dir():
            raise IncompatibleModel(
                f"There is no model {name} in {self._settings.fleet_models_path}. Put its bundle there (FLEET_MODELS_DIR)."
            )
        return path

    def _open(self, bundle: Path) -> FleetForecasterProtocol:
        forecaster = self._factory(bundle, self.policy)
        length = forecaster.manifest.encoder_length
        if length > self._retained_ticks:
            forecaster.close()
            problem = f"The model {forecaster.manifest.name} looks back {length} ticks, and this fleet keeps {self._retained_ticks}"
            raise NeedsHuman(
                f"{problem}. Start the fleet anew with it (FLEET_MODEL), or train one that looks back less."
            )
        return forecaster


def forecaster_factory(settings: Settings, clock: Clock) -> ForecasterFactory:
    """How a bundle is opened that runs in supervised children."""

    def opened(bundle: Path, policy: SupervisionPolicy) -> FleetForecasterProtocol:
        from forecastd.fleet.forecast.forecaster import FleetForecaster

        return FleetForecaster(
            bundle, policy=policy, clock=clock, engine=settings.fleet_engine, step=settings.fleet_step
        )

    return opened
