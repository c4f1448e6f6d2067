"""The model that a fleet runs, and its replacement while the fleet is running.

Invariant: a new bundle replaces the old one only after one of its own children has passed the canary. Until then, and
if anything is wrong with the new bundle, the old one serves. A forecast that the old one has in progress is repeated
by the new one.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from forecastd.clock import Clock
from forecastd.errors import ForecastdError, NeedsHuman
from forecastd.fleet.documents import ModelReference, ReloadResponse
from forecastd.fleet.forecast.fleet_forecast import FleetForecast
from forecastd.fleet.forecast.forecaster import FleetForecaster
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.bundle_store import FallbackBundles
from forecastd.settings import Settings
from forecastd.supervise.policy import policy_from_settings
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

MODEL_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LOOKBACK_TICKS = 5000  # ticks that the first model may look back
LOOKBACK_MARGIN = 30  # ticks that may close between two reads of the window
STOP_SECONDS = 0.5  # for the model's processes, so that the whole service stops within a second

# Opens a bundle that the second argument accepts, with the last good ones as its fallback, or none.
FleetFallback = FallbackBundles[FleetManifest]
ForecasterFactory = Callable[[Path, Callable[[FleetManifest], None], FleetFallback | None], FleetForecaster]


class ReloadInProgress(ForecastdError):
    """Another model is being loaded. Try again when it is ready."""


class IncompatibleModel(ForecastdError):
    """The bundle cannot be run here. The old model stays."""


class ModelManager:
    """The bundle in use. `forecast` is for one thread; any thread may call the other methods.

    `retained_ticks`: how many ticks of each server this model and its successors may look back.
    """

    def __init__(
        self, settings: Settings, factory: ForecasterFactory, retained_ticks: int, fallback: FleetFallback | None
    ) -> None:
        """Open the bundle of the settings; its children begin to load. `retained_ticks`: the minimum number of ticks
        in memory. `fallback`: the last good bundles.

        Raises:
            NeedsHuman: there is no such bundle, or it does not fit this fleet.
        """
        self._settings, self._factory, self._fallback = settings, factory, fallback
        self._change_lock, self._lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._candidate: FleetForecaster | None = None
        self.retained_ticks = MAX_LOOKBACK_TICKS
        self._current = factory(settings.fleet.model_path, self._require_short_encoder, fallback)
        self.retained_ticks = max(retained_ticks, self.manifest.encoder_length + LOOKBACK_MARGIN)

    @property
    def manifest(self) -> FleetManifest:
        """The manifest of the bundle in use."""
        return self._current.manifest

    def counts(self) -> dict[str, Any]:
        """The counters of supervision for the bundle in use, and its children."""
        current = self._current
        return {**current.counts.as_json(), "children": current.children()}

    def check(self) -> None:
        """Wait until the bundle in use has passed its canary. Raises as `FleetForecaster.check` does."""
        self._current.check(self._is_closed)

    def forecast(self, block: WindowBlock) -> FleetForecast:
        """The forecast of all servers of a block. Raises as `FleetForecaster.forecast` does."""
        while True:
            current = self._current
            try:
                return current.forecast(block, self._is_closed)
            except ForecastdError:
                if self._current is current or self._closed:
                    raise  # otherwise the model was replaced meanwhile

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
        new = None
        try:
            new = self._factory(bundle, self._require_short_encoder, None)
            with self._lock:
                closed, self._candidate = self._closed, new
            if closed:
                raise IncompatibleModel("The fleet is shutting down.")
            new.check(self._is_closed)
        except ForecastdError as error:
            self._candidate = None
            if new is not None:
                new.close()
            raise IncompatibleModel(str(error)) from None
        with self._lock:
            old, self._current, self._candidate = self._current, new, None
            new.fallback = self._fallback
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
        models, initial = self._settings.fleet_models_path, self._settings.fleet.model_path
        if (models / name).is_dir():
            return models / name
        if initial.name == name:
            return initial
        raise IncompatibleModel(
            f"There is no model {name} in {models}. Copy its bundle into that directory (FLEET_MODELS_DIR)."
        )

    def _require_short_encoder(self, manifest: FleetManifest) -> None:
        if manifest.encoder_length > self.retained_ticks:
            raise NeedsHuman(
                f"The model {manifest.name} needs {manifest.encoder_length} ticks, but this fleet retains "
                f"{self.retained_ticks}. Restart the fleet with this model (FLEET_MODEL), or train one "
                "with a shorter encoder."
            )


def forecaster_factory(settings: Settings, clock: Clock) -> ForecasterFactory:
    """A factory that opens bundles in supervised children."""
    policy = policy_from_settings(settings, standbys=settings.supervision.standbys)
    limits = replace(policy.limits, stopping=min(policy.limits.stopping, STOP_SECONDS))

    def open_bundle(
        bundle: Path, validate: Callable[[FleetManifest], None], fallback: FleetFallback | None
    ) -> FleetForecaster:
        return FleetForecaster(
            bundle, engine=settings.fleet.engine, step=settings.fleet.step, policy=replace(policy, limits=limits),
            clock=clock, validate=validate, fallback=fallback,
        )  # fmt: skip

    return open_bundle
