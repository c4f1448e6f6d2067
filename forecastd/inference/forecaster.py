"""From a bundle's path to a checked forecast, by way of supervised child processes.

The children are started before anything else of a cycle, so that they load and prove the model while the parent talks to
the network. A model that is no good, or is in quarantine because it hung or crashed its children, is stood in for by the
last good one of the topic; without one it needs a person. A job that no child finished costs this epoch and nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from forecastd.clock import Clock, SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference.bundle_store import FallbackBundles
from forecastd.market.candles import MAX_STALE_STEPS, Candles, check_candles
from forecastd.market.features import FeatureList, build_model_input, parse_features, warm_up_candles
from forecastd.market.guards import GuardReport, check_forecast
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow, refresh
from forecastd.supervise.event_dispatcher import Observer
from forecastd.supervise.events import SupervisionCounts
from forecastd.supervise.jobs import check_job, predict_job
from forecastd.supervise.policy import ChildSetup, SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.queue import BundleQuarantined
from models.base import Forecast
from models.errors import ModelError
from models.market.bundle import read_market_manifest
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)


class TooFewCandles(SkipEpoch):
    """The model wants more candles than there are."""


class Forecaster:
    """One bundle, run in children of its own. Use as a context manager: leaving ends them.

    `manifest`, `features`: of the bundle that runs now. `remarks`: what a person should know of it. `counts`: of all
    that supervision saw, whichever bundle it was.
    """

    manifest: MarketManifest
    features: FeatureList

    def __init__(
        self,
        bundle: Path,
        features: FeatureList | None = None,
        *,
        policy: SupervisionPolicy | None = None,
        clock: Clock | None = None,
        fallback: FallbackBundles | None = None,
        validate: Callable[[MarketManifest], None] = lambda _: None,
        observer: Observer | None = None,
    ) -> None:
        """Read the bundle's manifest, compare its features with the user's list, and start its children.

        `reserve`: where another bundle is found when this one is no good. `accept` raises NeedsHuman for a bundle that
        must not be run here, whichever it is.

        Raises:
            NeedsHuman: there is no bundle, its manifest is no good, it was trained on other features or is not accepted;
                and there is no other.
        """
        self.warnings: tuple[str, ...] = ()
        self.counts = SupervisionCounts()
        self._user_features, self._clock, self._fallback = features, clock or SystemClock(), fallback
        self._policy, self._validate, self._observer = policy or SupervisionPolicy(), validate, observer
        self._pool: ProcessPool | None = None
        self._quarantined_hashes: set[str] = set()  # by sha256: they hung or crashed, wherever they lie
        self._unusable_paths: set[Path] = set()  # what lies there is no good; a copy elsewhere may be
        self._just_loaded = True
        try:
            manifest = _read_manifest(bundle)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise
            return
        entry = self._fallback.store.list_quarantined().get(manifest.sha256) if self._fallback else None
        if entry is not None:
            self._quarantined_hashes.add(manifest.sha256)
            message = f"{manifest.name} ({manifest.sha256[:12]}) is in quarantine since {entry.since}: {entry.reason}"
            if self._fall_back(message):
                return
            log.error("%s There is no earlier model to fall back on, so it is tried again.", message)
        self._start(bundle, manifest)

    def check(self, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Have the bundle's hashes, weights and canary verified by the children that run it; gives its sha256.

        `over` is asked every second whether nobody waits any more.

        Raises:
            NeedsHuman: the model is no good, and there is no other.
            SkipEpoch: no process came to be ready.
        """
        pool, seconds = self._current_pool(), self._policy.ready_seconds
        try:
            sha256 = pool.wait_ready(seconds, should_stop)
            if not self._just_loaded:  # it was proven when it was loaded, and is again before each cycle that follows
                sha256 = pool.run(check_job(self._clock.monotonic() + seconds, self._policy.attempts), should_stop)
        except ModelFailed as error:
            if self._fall_back(str(error)):
                return self.check(should_stop)
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            if self._handle_quarantine(error):
                return self.check(should_stop)
            raise SkipEpoch(str(error), check="model_process") from error
        if sha256 != self.manifest.sha256:
            self._reload(str(sha256))
            return self.check(should_stop)
        self._just_loaded = False
        return str(sha256)

    @property
    def required_candles(self) -> int:
        """How many candles a forecast needs: the encoder's, and those that warm its features up."""
        return required_candles(self.manifest)

    def gather_candles(self, source: Source, window: RollingWindow, now: float) -> tuple[Candles, tuple[str, ...]]:
        """The candles for a forecast at `now`, fetched where missing and checked; and the repairs made, in words.

        Raises:
            SkipEpoch: they are not fit for a forecast.
            RetryLater, NeedsHuman: as the source does, or its candles are of another step than the model's.
        """
        step = self.manifest.step
        if source.step != step:
            raise NeedsHuman(
                f"The model wants candles of {step} s, {source.name} gives {source.step} s. "
                "Choose another source, or train a model on this one."
            )
        return gather_candles(self.manifest, source, window, now)

    def forecast(self, candles: Candles, should_stop: Callable[[], bool] = lambda: False) -> Forecast:
        """The forecast from the end of `candles`. `over` is asked every second whether nobody wants it any more.

        Raises:
            TooFewCandles: another model stands in by now, and wants more of them.
            SkipEpoch: the model cannot make it, or no child finished it.
            NeedsHuman: the model is no good any more, and there is no other.
        """
        manifest = self.manifest
        if len(candles) < self.required_candles:
            raise TooFewCandles(
                f"The model {manifest.name} wants {self.required_candles} candles, and {len(candles)} were fetched for another.",
                check="model_process",
            )
        inputs = build_model_input(self.features, candles, manifest.encoder_length, manifest.horizon)
        job = predict_job(
            inputs,
            name=f"forecast from {candles.end}",
            deadline=self._clock.monotonic() + self._policy.forecast_seconds,
            attempts=self._policy.attempts,
            rows=manifest.horizon,
            levels=manifest.levels,
        )
        try:
            forecast: Forecast = self._current_pool().run(job, should_stop)
        except ModelFailed as error:
            if not (error.kind == "bundle" and self._fall_back(str(error))):
                raise SkipEpoch(str(error), check="model") from error
        except ChildFailed as error:
            if not self._handle_quarantine(error):
                raise SkipEpoch(str(error), check="model_process") from error
        else:
            if forecast.bundle_sha256 == self.manifest.sha256:
                return forecast
            self._reload(forecast.bundle_sha256)
        self.check(should_stop)
        return self.forecast(candles, should_stop)

    def check_guards(self, forecast: Forecast, candles: Candles, consensus: tuple[float, ...] = ()) -> GuardReport:
        """The guards' report on a forecast; raises SkipEpoch when it must not be signed."""
        age_counts = not candles.provenance.synthetic
        report = check_forecast(
            forecast,
            candles,
            horizon=self.manifest.horizon,
            training_end=float(self.manifest.training.trained_until) if age_counts else None,
            consensus=consensus,
        )
        if self._fallback is not None:
            self._fallback.store.add(self._fallback.topic, self._bundle, self.manifest)
        return report

    def children(self) -> list[dict[str, object]]:
        """What each child is at, as `Pool.children` tells."""
        return [] if self._pool is None else self._pool.children()

    def close(self) -> None:
        """End the children."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Forecaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _current_pool(self) -> ProcessPool:
        """The pool; a new one for a bundle that was given up without another to fall back on."""
        if self._pool is None:
            self._start(self._bundle, self.manifest)
        if self._pool is None:
            raise AssertionError  # `_run` has just made it
        return self._pool

    def _start(self, bundle: Path, manifest: MarketManifest) -> None:
        """Run this bundle from now on. Raises NeedsHuman when it may not be run here."""
        features = parse_features((*manifest.past, *manifest.known), f"The bundle {bundle}")
        user_features = self._user_features
        if user_features is not None and (user_features.past, user_features.known) != (features.past, features.known):
            raise NeedsHuman(_describe_difference((*user_features.past, *user_features.known), features.names))
        self._validate(manifest)
        self.close()
        self._bundle, self.manifest, self.features, self._just_loaded = bundle, manifest, features, True
        setup = ChildSetup(bundle, manifest.name)
        self._pool = ProcessPool(setup, self._policy, self._clock, counts=self.counts, observer=self._observer)

    def _reload(self, sha256: str) -> None:
        """A child tells that it runs another bundle than the one that was asked for: run what lies there now.

        Raises:
            SkipEpoch: nothing else lies there.
            NeedsHuman: what lies there is no good, and there is no other.
        """
        try:
            manifest = _read_manifest(self._bundle)
            if manifest.sha256 == self.manifest.sha256:
                message = f"A process says that it runs the model {sha256[:12]}, not {manifest.sha256[:12]} as it was told to."
                raise SkipEpoch(message, check="model_process")
            log.warning("%s was replaced while it ran: %s runs from now on.", self._bundle, manifest.name)
            self._start(self._bundle, manifest)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise

    def _handle_quarantine(self, error: ChildFailed) -> bool:
        """Whether the bundle was given up just now and another one stands in for it."""
        if not isinstance(error, BundleQuarantined):
            return False
        self._quarantined_hashes.add(self.manifest.sha256)
        if self._fallback is not None:
            self._fallback.store.quarantine(self.manifest, str(error))
        if self._fall_back(str(error)):
            return True
        self.close()
        self._pool = None  # tried anew at the next attempt: without another one, an unsure model is better than none
        return False

    def _fall_back(self, reason: str) -> bool:
        """Run the last good bundle of the topic instead, because of `reason`. Whether there is one."""
        fallback = self._fallback
        if self._pool is not None:
            self._unusable_paths.add(self._bundle)
        for path, manifest in [] if fallback is None else fallback.candidates(self._quarantined_hashes):
            if path in self._unusable_paths:
                continue
            try:
                self._start(path, manifest)
            except NeedsHuman as error:
                log.warning("The earlier model %s cannot stand in: %s", manifest.name, error)
                continue
            message = f"{reason} The last good model, {manifest.name} ({manifest.sha256[:12]}), stands in for it."
            self.warnings = (message,)
            log.error("%s", message)
            return True
        return False


def required_candles(manifest: MarketManifest) -> int:
    """How many candles a forecast of this model needs: the encoder's, and those that warm its features up."""
    return manifest.encoder_length + warm_up_candles(manifest.past, manifest.step)


def gather_candles(
    manifest: MarketManifest, source: Source, window: RollingWindow, now: float
) -> tuple[Candles, tuple[str, ...]]:
    """The candles that the model needs at `now`, of a source with its step; and the repairs made. Raises as the method."""
    required = required_candles(manifest)
    candles = refresh(window, source, now=now, length=required)
    return check_candles(candles, now=now, min_length=required, max_age=MAX_STALE_STEPS * manifest.step)


def _read_manifest(bundle: Path) -> MarketManifest:
    try:
        return read_market_manifest(bundle)
    except ModelError as error:
        raise NeedsHuman(str(error)) from error


def _describe_difference(user_names: tuple[str, ...], bundle_names: tuple[str, ...]) -> str:
    """How two feature lists differ, in words."""
    missing = [name for name in bundle_names if name not in user_names]
    extra = [name for name in user_names if name not in bundle_names]
    parts = [f"missing in your list: {', '.join(missing)}"] if missing else []
    parts += [f"unknown to the bundle: {', '.join(extra)}"] if extra else []
    if not parts:
        index = next(i for i, (ours, theirs) in enumerate(zip(user_names, bundle_names, strict=True)) if ours != theirs)
        parts = [
            f"another order, from place {index + 1} on: {user_names[index]} where the bundle has {bundle_names[index]}"
        ]
    return (
        f"The feature list differs from the bundle's ({'; '.join(parts)}). "
        "Use the list the bundle was trained with, or train a new bundle with yours."
    )
