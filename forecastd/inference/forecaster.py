"""From a bundle to a checked forecast, in supervised child processes.

The children start before the rest of a cycle, so that they load and check the model while the parent talks to the network.
When a model is invalid, or quarantined because it hung or crashed its children, the last good bundle of the topic is used
instead; without one a person is needed. A job that no child finishes skips the epoch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from forecastd.clock import Clock, SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference.bundle_store import FallbackBundles
from forecastd.inference.market_runner import market_setup, predict_job
from forecastd.market.candles import MAX_STALE_STEPS, Candles, check_candles
from forecastd.market.features import FeatureList, build_model_input, parse_features, warm_up_candles
from forecastd.market.guards import GuardReport, check_forecast
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow, refresh
from forecastd.runtime.closeable import Closeable
from forecastd.runtime.jobs import ChildFailed, ModelFailed
from forecastd.supervise.events import Observer, SupervisionCounts
from forecastd.supervise.jobs import check_job
from forecastd.supervise.policy import SupervisionPolicy
from forecastd.supervise.pool import ProcessPool
from forecastd.supervise.queue import BundleQuarantined
from models.base import Forecast
from models.errors import ModelError
from models.market.bundle import read_market_manifest
from models.market.manifest import MarketManifest

log = logging.getLogger(__name__)


class TooFewCandles(SkipEpoch):
    """The model needs more candles than there are."""


class Forecaster(Closeable):
    """Runs one bundle in its own children. A context manager that stops them on exit.

    `manifest`, `features`: of the current bundle. `warnings`: what a person should know about it. `counts`: supervision
    counters over all bundles that were used.
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

        `fallback`: the bundles to use when this one is unusable. `validate` raises NeedsHuman for a bundle that must not run
        here; it is applied to every bundle.

        Raises:
            NeedsHuman: the bundle is missing, its manifest is invalid, it was trained on other features, or `validate`
                rejects it; and there is no fallback.
        """
        self.warnings: tuple[str, ...] = ()
        self.counts = SupervisionCounts()
        self._user_features, self._clock, self._fallback = features, clock or SystemClock(), fallback
        self._policy, self._validate, self._observer = policy or SupervisionPolicy(), validate, observer
        self._pool: ProcessPool | None = None
        self._quarantined_hashes: set[str] = set()  # sha256 of bundles that hung or crashed, at whatever path
        self._unusable_paths: set[Path] = set()  # the bundle at this path is invalid; a copy elsewhere may be valid
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
            log.error("%s There is no fallback model, so it runs again.", message)
        self._start(bundle, manifest)

    def check(self, should_stop: Callable[[], bool] = lambda: False) -> str:
        """Have a child verify the bundle's hashes, weights and canary; return the bundle's sha256.

        `should_stop` is polled every second; true ends the wait.

        Raises:
            NeedsHuman: the model is invalid, and there is no fallback.
            SkipEpoch: no child became ready.
        """
        pool, seconds = self._current_pool(), self._policy.ready_seconds
        try:
            sha256 = pool.wait_ready(seconds, should_stop)
            if not self._just_loaded:  # loading has run the canary; later cycles run it again
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
        """The number of candles that a forecast needs: encoder length plus warm-up of the features."""
        return required_candles(self.manifest)

    def gather_candles(self, source: Source, window: RollingWindow, now: float) -> tuple[Candles, tuple[str, ...]]:
        """Fetch missing candles for a forecast at `now` and check them. Returns the candles and a list of repairs, in words.

        Raises:
            SkipEpoch: the candles are not fit for a forecast.
            RetryLater: a temporary fault of the source.
            NeedsHuman: a permanent fault of the source, or its step differs from the model's.
        """
        step = self.manifest.step
        if source.step != step:
            raise NeedsHuman(
                f"The model needs candles of {step} s, but {source.name} has candles of {source.step} s. "
                "Choose another source, or train a model on this one."
            )
        return gather_candles(self.manifest, source, window, now)

    def forecast(self, candles: Candles, should_stop: Callable[[], bool] = lambda: False) -> Forecast:
        """The forecast from the end of `candles`. `should_stop` is polled every second; true abandons the forecast.

        Raises:
            TooFewCandles: a fallback model is used now, and it needs more candles.
            SkipEpoch: the model cannot make the forecast, or no child finished it.
            NeedsHuman: the model is invalid now, and there is no fallback.
        """
        manifest = self.manifest
        if len(candles) < self.required_candles:
            raise TooFewCandles(
                f"The model {manifest.name} needs {self.required_candles} candles; "
                f"{len(candles)} were fetched for the previous model.",
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
        """Run the guards on a forecast, and store its bundle as a good one. Raises SkipEpoch when it must not be signed."""
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
        """The state of each child, as in `ProcessPool.children`."""
        return [] if self._pool is None else self._pool.children()

    def close(self) -> None:
        """Stop the children."""
        if self._pool is not None:
            self._pool.close()

    def _current_pool(self) -> ProcessPool:
        """The pool; a new one when the bundle was quarantined without a fallback."""
        if self._pool is None:
            self._start(self._bundle, self.manifest)
        if self._pool is None:
            raise AssertionError  # `_start` has just created it
        return self._pool

    def _start(self, bundle: Path, manifest: MarketManifest) -> None:
        """Use this bundle from now on. Raises NeedsHuman when it must not run here."""
        features = parse_features((*manifest.past, *manifest.known), f"The bundle {bundle}")
        user_features = self._user_features
        if user_features is not None and (user_features.past, user_features.known) != (features.past, features.known):
            raise NeedsHuman(_describe_difference((*user_features.past, *user_features.known), features.names))
        self._validate(manifest)
        self.close()
        self._bundle, self.manifest, self.features, self._just_loaded = bundle, manifest, features, True
        setup = market_setup(bundle, manifest.name)
        self._pool = ProcessPool(setup, self._policy, self._clock, counts=self.counts, observer=self._observer)

    def _reload(self, sha256: str) -> None:
        """A child runs another bundle than expected: use the bundle that is at the path now.

        Raises:
            SkipEpoch: the bundle at the path has not changed.
            NeedsHuman: the new bundle is invalid, and there is no fallback.
        """
        try:
            manifest = _read_manifest(self._bundle)
            if manifest.sha256 == self.manifest.sha256:
                message = f"The child runs the model {sha256[:12]} instead of {manifest.sha256[:12]}."
                raise SkipEpoch(message, check="model_process")
            log.warning("%s was replaced while it was in use: now using %s.", self._bundle, manifest.name)
            self._start(self._bundle, manifest)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise

    def _handle_quarantine(self, error: ChildFailed) -> bool:
        """Record a quarantine and fall back. True when a fallback is used now."""
        if not isinstance(error, BundleQuarantined):
            return False
        self._quarantined_hashes.add(self.manifest.sha256)
        if self._fallback is not None:
            self._fallback.store.quarantine(self.manifest, str(error))
        if self._fall_back(str(error)):
            return True
        self.close()
        self._pool = None  # the next attempt starts it again: without a fallback, a doubtful model is better than none
        return False

    def _fall_back(self, reason: str) -> bool:
        """Use the last good bundle of the topic instead, because of `reason`. False when there is none."""
        fallback = self._fallback
        if self._pool is not None:
            self._unusable_paths.add(self._bundle)
        for path, manifest in [] if fallback is None else fallback.candidates(self._quarantined_hashes):
            if path in self._unusable_paths:
                continue
            try:
                self._start(path, manifest)
            except NeedsHuman as error:
                log.warning("Cannot fall back to the model %s: %s", manifest.name, error)
                continue
            message = f"{reason} Falling back to the last good model, {manifest.name} ({manifest.sha256[:12]})."
            self.warnings = (message,)
            log.error("%s", message)
            return True
        return False


def required_candles(manifest: MarketManifest) -> int:
    """The number of candles that a forecast of this model needs: encoder length plus warm-up of the features."""
    return manifest.encoder_length + warm_up_candles(manifest.past, manifest.step)


def gather_candles(
    manifest: MarketManifest, source: Source, window: RollingWindow, now: float
) -> tuple[Candles, tuple[str, ...]]:
    """The candles that the model needs at `now`, and the repairs. See `Forecaster.gather_candles`."""
    required = required_candles(manifest)
    candles = refresh(window, source, now=now, length=required)
    return check_candles(candles, now=now, min_length=required, max_age=MAX_STALE_STEPS * manifest.step)


def _read_manifest(bundle: Path) -> MarketManifest:
    try:
        return read_market_manifest(bundle)
    except ModelError as error:
        raise NeedsHuman(str(error)) from error


def _describe_difference(user_names: tuple[str, ...], bundle_names: tuple[str, ...]) -> str:
    """The difference of two feature lists, in words."""
    missing = [name for name in bundle_names if name not in user_names]
    extra = [name for name in user_names if name not in bundle_names]
    parts = [f"missing in your list: {', '.join(missing)}"] if missing else []
    parts += [f"unknown to the bundle: {', '.join(extra)}"] if extra else []
    if not parts:
        index = next(i for i, (ours, theirs) in enumerate(zip(user_names, bundle_names, strict=True)) if ours != theirs)
        parts = [
            f"another order, from position {index + 1} on: {user_names[index]} where the bundle has {bundle_names[index]}"
        ]
    return (
        f"The feature list differs from the bundle's ({'; '.join(parts)}). "
        "Use the list the bundle was trained with, or train a new bundle with yours."
    )
