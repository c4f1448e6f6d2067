"""From a bundle's path to a checked forecast, by way of supervised child processes.

The children are started before anything else of a cycle, so that they load and prove the model while the parent talks to
the network. A model that is no good, or is in quarantine because it hung or crashed its children, is stood in for by the
last good one of the topic; without one it needs a person. A job that no child finished costs this epoch and nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from forecastd.candles import STALE_STEPS, Candles, check
from forecastd.clock import Clock, SystemClock
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.features import FeatureList, model_input, parse_features, warm_up
from forecastd.guards import GuardReport, check_forecast
from forecastd.shelf import Reserve
from forecastd.sources.base import Source
from forecastd.supervise.audience import Observer
from forecastd.supervise.board import Quarantined
from forecastd.supervise.jobs import check_job, predict_job
from forecastd.supervise.policy import Policy, Setup
from forecastd.supervise.pool import Pool
from forecastd.supervise.process import ChildFailed, ModelFailed
from forecastd.supervise.report import Counts
from forecastd.window import RollingWindow, refresh
from models.base import Forecast
from models.bundle import read_manifest
from models.errors import ModelError
from models.manifest import Manifest

log = logging.getLogger(__name__)


class TooFewCandles(SkipEpoch):
    """The model wants more candles than there are."""


class Forecaster:
    """One bundle, run in children of its own. Use as a context manager: leaving ends them.

    `manifest`, `features`: of the bundle that runs now. `remarks`: what a person should know of it. `counts`: of all
    that supervision saw, whichever bundle it was.
    """

    manifest: Manifest
    features: FeatureList

    def __init__(
        self,
        bundle: Path,
        features: FeatureList | None = None,
        *,
        policy: Policy | None = None,
        clock: Clock | None = None,
        reserve: Reserve | None = None,
        accept: Callable[[Manifest], None] = lambda _: None,
        observe: Observer | None = None,
    ) -> None:
        """Read the bundle's manifest, compare its features with the user's list, and start its children.

        `reserve`: where another bundle is found when this one is no good. `accept` raises NeedsHuman for a bundle that
        must not be run here, whichever it is.

        Raises:
            NeedsHuman: there is no bundle, its manifest is no good, it was trained on other features or is not accepted;
                and there is no other.
        """
        self.remarks: tuple[str, ...] = ()
        self.counts = Counts()
        self._asked, self._clock, self._reserve = features, clock or SystemClock(), reserve
        self._policy, self._accept, self._observe = policy or Policy(), accept, observe
        self._pool: Pool | None = None
        self._given_up: set[str] = set()  # by sha256: they hung or crashed, wherever they lie
        self._damaged: set[Path] = set()  # what lies there is no good; a copy elsewhere may be
        self._fresh = True
        try:
            manifest = _manifest(bundle)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise
            return
        held = self._reserve.shelf.quarantined().get(manifest.sha256) if self._reserve else None
        if held is not None:
            self._given_up.add(manifest.sha256)
            told = f"{manifest.name} ({manifest.sha256[:12]}) is in quarantine since {held.since}: {held.reason}"
            if self._fall_back(told):
                return
            log.error("%s There is no earlier model to fall back on, so it is tried again.", told)
        self._run(bundle, manifest)

    def check(self, over: Callable[[], bool] = lambda: False) -> str:
        """Have the bundle's hashes, weights and canary verified by the children that run it; gives its sha256.

        `over` is asked every second whether nobody waits any more.

        Raises:
            NeedsHuman: the model is no good, and there is no other.
            SkipEpoch: no process came to be ready.
        """
        pool, seconds = self._running(), self._policy.ready_seconds
        try:
            sha256 = pool.ready(seconds, over)
            if not self._fresh:  # it was proven when it was loaded, and is again before each cycle that follows
                sha256 = pool.run(check_job(self._clock.monotonic() + seconds, self._policy.attempts), over)
        except ModelFailed as error:
            if self._fall_back(str(error)):
                return self.check(over)
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            if self._quarantined(error):
                return self.check(over)
            raise SkipEpoch(str(error), check="model_process") from error
        if sha256 != self.manifest.sha256:
            self._renew(str(sha256))
            return self.check(over)
        self._fresh = False
        return str(sha256)

    @property
    def needed(self) -> int:
        """How many candles a forecast needs: the encoder's, and those that warm its features up."""
        return needed_candles(self.manifest)

    def gather(self, source: Source, window: RollingWindow, now: float) -> tuple[Candles, tuple[str, ...]]:
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
        return gather(self.manifest, source, window, now)

    def forecast(self, candles: Candles, over: Callable[[], bool] = lambda: False) -> Forecast:
        """The forecast from the end of `candles`. `over` is asked every second whether nobody wants it any more.

        Raises:
            TooFewCandles: another model stands in by now, and wants more of them.
            SkipEpoch: the model cannot make it, or no child finished it.
            NeedsHuman: the model is no good any more, and there is no other.
        """
        manifest = self.manifest
        if len(candles) < self.needed:
            raise TooFewCandles(
                f"The model {manifest.name} wants {self.needed} candles, and {len(candles)} were fetched for another.",
                check="model_process",
            )
        inputs = model_input(self.features, candles, manifest.encoder_length, manifest.horizon)
        job = predict_job(
            inputs,
            name=f"forecast from {candles.end}",
            deadline=self._clock.monotonic() + self._policy.forecast_seconds,
            attempts=self._policy.attempts,
            rows=manifest.horizon,
            levels=manifest.levels,
        )
        try:
            forecast: Forecast = self._running().run(job, over)
        except ModelFailed as error:
            if not (error.kind == "bundle" and self._fall_back(str(error))):
                raise SkipEpoch(str(error), check="model") from error
        except ChildFailed as error:
            if not self._quarantined(error):
                raise SkipEpoch(str(error), check="model_process") from error
        else:
            if forecast.bundle_sha256 == self.manifest.sha256:
                return forecast
            self._renew(forecast.bundle_sha256)
        self.check(over)
        return self.forecast(candles, over)

    def guard(self, forecast: Forecast, candles: Candles, consensus: tuple[float, ...] = ()) -> GuardReport:
        """The guards' report on a forecast; raises SkipEpoch when it must not be signed."""
        age_counts = not candles.provenance.synthetic
        report = check_forecast(
            forecast,
            candles,
            horizon=self.manifest.horizon,
            trained_until=float(self.manifest.training.learnt_until) if age_counts else None,
            consensus=consensus,
        )
        if self._reserve is not None:
            self._reserve.shelf.keep(self._reserve.topic, self._bundle, self.manifest)
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

    def _running(self) -> Pool:
        """The pool; a new one for a bundle that was given up without another to fall back on."""
        if self._pool is None:
            self._run(self._bundle, self.manifest)
        if self._pool is None:
            raise AssertionError  # `_run` has just made it
        return self._pool

    def _run(self, bundle: Path, manifest: Manifest) -> None:
        """Run this bundle from now on. Raises NeedsHuman when it may not be run here."""
        features = parse_features((*manifest.past, *manifest.known), f"The bundle {bundle}")
        asked = self._asked
        if asked is not None and (asked.past, asked.known) != (features.past, features.known):
            raise NeedsHuman(_difference((*asked.past, *asked.known), features.names))
        self._accept(manifest)
        self.close()
        self._bundle, self.manifest, self.features, self._fresh = bundle, manifest, features, True
        setup = Setup(bundle, manifest.name)
        self._pool = Pool(setup, self._policy, self._clock, counts=self.counts, observe=self._observe)

    def _renew(self, sha256: str) -> None:
        """A child tells that it runs another bundle than the one that was asked for: run what lies there now.

        Raises:
            SkipEpoch: nothing else lies there.
            NeedsHuman: what lies there is no good, and there is no other.
        """
        try:
            manifest = _manifest(self._bundle)
            if manifest.sha256 == self.manifest.sha256:
                told = f"A process says that it runs the model {sha256[:12]}, not {manifest.sha256[:12]} as it was told to."
                raise SkipEpoch(told, check="model_process")
            log.warning("%s was replaced while it ran: %s runs from now on.", self._bundle, manifest.name)
            self._run(self._bundle, manifest)
        except NeedsHuman as error:
            if not self._fall_back(str(error)):
                raise

    def _quarantined(self, error: ChildFailed) -> bool:
        """Whether the bundle was given up just now and another one stands in for it."""
        if not isinstance(error, Quarantined):
            return False
        self._given_up.add(self.manifest.sha256)
        if self._reserve is not None:
            self._reserve.shelf.quarantine(self.manifest, str(error))
        if self._fall_back(str(error)):
            return True
        self.close()
        self._pool = None  # tried anew at the next attempt: without another one, an unsure model is better than none
        return False

    def _fall_back(self, reason: str) -> bool:
        """Run the last good bundle of the topic instead, because of `reason`. Whether there is one."""
        reserve = self._reserve
        if self._pool is not None:
            self._damaged.add(self._bundle)
        for path, manifest in [] if reserve is None else reserve.best(self._given_up):
            if path in self._damaged:
                continue
            try:
                self._run(path, manifest)
            except NeedsHuman as error:
                log.warning("The earlier model %s cannot stand in: %s", manifest.name, error)
                continue
            told = f"{reason} The last good model, {manifest.name} ({manifest.sha256[:12]}), stands in for it."
            self.remarks = (told,)
            log.error("%s", told)
            return True
        return False


def needed_candles(manifest: Manifest) -> int:
    """How many candles a forecast of this model needs: the encoder's, and those that warm its features up."""
    return manifest.encoder_length + warm_up(manifest.past, manifest.step)


def gather(manifest: Manifest, source: Source, window: RollingWindow, now: float) -> tuple[Candles, tuple[str, ...]]:
    """The candles that the model needs at `now`, of a source with its step; and the repairs made. Raises as the method."""
    needed = needed_candles(manifest)
    candles = refresh(window, source, now=now, length=needed)
    return check(candles, now=now, needed=needed, max_age=STALE_STEPS * manifest.step)


def _manifest(bundle: Path) -> Manifest:
    try:
        return read_manifest(bundle)
    except ModelError as error:
        raise NeedsHuman(str(error)) from error


def _difference(asked: tuple[str, ...], bundle: tuple[str, ...]) -> str:
    """How two feature lists differ, in words."""
    missing = [name for name in bundle if name not in asked]
    extra = [name for name in asked if name not in bundle]
    parts = [f"missing in your list: {', '.join(missing)}"] if missing else []
    parts += [f"unknown to the bundle: {', '.join(extra)}"] if extra else []
    if not parts:
        place = next(i for i, (ours, theirs) in enumerate(zip(asked, bundle, strict=True)) if ours != theirs)
        parts = [f"another order, from place {place + 1} on: {asked[place]} where the bundle has {bundle[place]}"]
    return (
        f"The feature list differs from the bundle's ({'; '.join(parts)}). "
        "Use the list the bundle was trained with, or train a new bundle with yours."
    )
