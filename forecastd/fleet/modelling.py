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
from forecastd.fleet.grid import Block
from forecastd.fleet.readiness import Prepared
from forecastd.fleet.snapshot import FleetForecast
from forecastd.settings import Settings
from forecastd.supervise.policy import Policy, policy_of
from forecastd.supervise.report import Counts
from models.fleet.manifest import FleetManifest

log = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST_KEPT = 5000  # ticks that the model of the start may look back
MARGIN = 30  # ticks that may be closed between two looks at the window
AGAIN_SECONDS = (30.0, 600.0)  # before a model that was given up is tried anew: at first, and at most
STOPPING_SECONDS = 0.5  # for the model's processes, so that the whole service ends within a second


class Forecaster(Protocol):
    """One bundle in children of its own: `inference.FleetForecaster`, or what stands in for it where no model is at hand."""

    manifest: FleetManifest

    @property
    def counts(self) -> Counts: ...
    def ready(self, seconds: float | None = None, over: Callable[[], bool] = ...) -> str: ...
    def forecast(
        self, block: Block, prepared: Prepared | None = None, over: Callable[[], bool] = ...
    ) -> FleetForecast: ...
    def children(self) -> list[dict[str, object]]: ...
    def close(self) -> None: ...


Opener = Callable[[Path, Policy], Forecaster]


class Busy(ForecastdError):
    """Another model is being loaded; try again when that is done."""


class Unfit(ForecastdError):
    """The bundle cannot be run here; the old one goes on."""


@dataclass(frozen=True)
class Change:
    """One model took another's place: their names and sha256."""

    old_name: str
    old_sha256: str
    name: str
    sha256: str

    def as_json(self) -> dict[str, object]:
        """As `POST /admin/reload-model` answers."""
        old, new = (self.old_name, self.old_sha256), (self.name, self.sha256)
        return {key: {"name": one[0], "sha256": one[1]} for key, one in (("old", old), ("new", new))}


class Model:
    """The bundle in use. `forecast` is for one thread; everything else may be called from any.

    `keep`: how many ticks of each server it and its successors may look back.
    """

    def __init__(self, settings: Settings, clock: Clock, opener: Opener, keep: int) -> None:
        """Open the bundle of the settings; its children begin to load. `keep`: ticks of each server in memory, at least.

        Raises:
            NeedsHuman: there is no such bundle, or it is not for this fleet.
        """
        self._settings, self._clock, self._opener, self._keep = settings, clock, opener, MOST_KEPT
        policy = policy_of(settings, standbys=settings.standbys)
        limits = replace(policy.limits, stopping=min(policy.limits.stopping, STOPPING_SECONDS))
        self.policy = replace(policy, limits=limits)
        self._changing, self._lock = threading.Lock(), threading.Lock()
        self._closed = False
        self._candidate: Forecaster | None = None
        self._path = settings.fleet_model_path
        self._current = self._open(self._path)
        self._patience, self._given_up = AGAIN_SECONDS[0], -math.inf
        self.keep = self._keep = max(keep, self.manifest.encoder_length + MARGIN)

    @property
    def manifest(self) -> FleetManifest:
        """Of the bundle in use."""
        return self._current.manifest

    def counts(self) -> dict[str, Any]:
        """What supervision saw of the bundle in use, and its children."""
        current = self._current
        return {**current.counts.as_json(), "children": current.children()}

    def ready(self) -> None:
        """Wait until the bundle in use is proven.

        Raises:
            NeedsHuman: it is no good.
            SkipEpoch, RetryLater: no child came to be ready.
        """
        self._try_anew()
        self._current.ready(over=self._is_closed)

    def forecast(self, block: Block) -> FleetForecast:
        """The forecast of all servers of a block. Raises as inference does."""
        self._try_anew()
        while True:
            current = self._current
            try:
                return current.forecast(block, over=self._is_closed)
            except ForecastdError:
                if self._current is current or self._closed:
                    raise  # else it was replaced meanwhile

    def _try_anew(self) -> None:
        """Open a bundle again that supervision has given up: what its children died of may be over, and nobody is there."""
        current, now = self._current, self._clock.monotonic()
        if not current.counts.quarantines or self._closed:
            return
        if self._given_up == -math.inf:
            self._given_up = now
        if now - self._given_up < self._patience:
            return
        self._given_up, self._patience = -math.inf, min(2 * self._patience, AGAIN_SECONDS[1])
        log.warning("the model %s is tried anew", current.manifest.name, extra={"action": "model"})
        new = self._open(self._path)
        with self._lock:
            if self._current is current and not self._closed:
                self._current, new = new, current
        new.close()

    def change(self, name: str) -> Change:
        """Run the bundle of this name from now on, if it is good.

        Raises:
            Busy: another change is under way.
            Unfit: there is no such bundle, or it is no good here.
        """
        if not self._changing.acquire(blocking=False):
            raise Busy
        try:
            return self._change(self._find(name))
        finally:
            self._changing.release()

    def _is_closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            ending = [self._current, *([self._candidate] if self._candidate else [])]
        for one in ending:
            one.close()

    def _change(self, bundle: Path) -> Change:
        try:
            new = self._open(bundle)
        except NeedsHuman as error:
            raise Unfit(str(error)) from None
        with self._lock:
            closed, self._candidate = self._closed, new
        try:
            if closed:
                raise Unfit("The fleet is ending.")
            new.ready(over=self._is_closed)
        except ForecastdError as error:
            self._candidate = None
            new.close()
            raise Unfit(str(error)) from None
        with self._lock:
            old, self._current, self._candidate, self._path = self._current, new, None, bundle
            self._patience, self._given_up = AGAIN_SECONDS[0], -math.inf
        old.close()
        log.info(
            "the model %s (%s) took the place of %s (%s)", new.manifest.name, new.manifest.sha256[:12],
            old.manifest.name, old.manifest.sha256[:12], extra={"action": "model"},
        )  # fmt: skip
        return Change(old.manifest.name, old.manifest.sha256, new.manifest.name, new.manifest.sha256)

    def _find(self, name: str) -> Path:
        """The bundle of this name: in the directory of models, or the one this fleet was started with."""
        if not NAME.fullmatch(name):
            raise Unfit("The name of a model is letters, digits and . _ -, and begins with a letter or digit.")
        path = self._settings.fleet_models / name
        first = self._settings.fleet_model_path
        if not path.is_dir() and first.name == name:
            return first
        if not path.is_dir():
            raise Unfit(
                f"There is no model {name} in {self._settings.fleet_models}. Put its bundle there (FLEET_MODELS_DIR)."
            )
        return path

    def _open(self, bundle: Path) -> Forecaster:
        forecaster = self._opener(bundle, self.policy)
        length = forecaster.manifest.encoder_length
        if length > self._keep:
            forecaster.close()
            told = f"The model {forecaster.manifest.name} looks back {length} ticks, and this fleet keeps {self._keep}"
            raise NeedsHuman(f"{told}. Start the fleet anew with it (FLEET_MODEL), or train one that looks back less.")
        return forecaster


def open_forecaster(settings: Settings, clock: Clock) -> Opener:
    """How a bundle is opened that runs in supervised children."""

    def opened(bundle: Path, policy: Policy) -> Forecaster:
        from forecastd.fleet.inference import FleetForecaster

        return FleetForecaster(
            bundle, policy=policy, clock=clock, engine=settings.fleet_engine, step=settings.fleet_step
        )

    return opened
