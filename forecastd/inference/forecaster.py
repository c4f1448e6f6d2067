"""From a market bundle to a checked forecast, in supervised child processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Unpack

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.inference.market_runner import market_setup, predict_job
from forecastd.inference.supervised_model import ModelOptions, SupervisedModel
from forecastd.market.candles import MAX_STALE_STEPS, Candles, check_candles
from forecastd.market.features import FeatureList, build_model_input, parse_features, warm_up_candles
from forecastd.market.guards import GuardReport, check_forecast
from forecastd.market.sources.base import Source
from forecastd.market.window import RollingWindow, refresh
from forecastd.supervise.jobs import ChildSetup
from models.base import Forecast
from models.market.manifest import MarketManifest


class TooFewCandles(SkipEpoch):
    """The model needs more candles than there are."""


class Forecaster(SupervisedModel[MarketManifest]):
    """Runs one market bundle in its own children. `features`: of the bundle in use."""

    manifest_type = MarketManifest
    features: FeatureList

    def __init__(
        self, bundle: Path, features: FeatureList | None = None, **options: Unpack[ModelOptions[MarketManifest]]
    ) -> None:
        """See `SupervisedModel`. `features`: the user's list; a bundle that was trained on other ones is refused."""
        self._user_features = features
        super().__init__(bundle, **options)

    def _setup(self, bundle: Path, manifest: MarketManifest) -> ChildSetup:
        return market_setup(bundle, manifest.name)

    def _accept(self, bundle: Path, manifest: MarketManifest) -> None:
        features = parse_features((*manifest.past, *manifest.known), f"The bundle {bundle}")
        user_features = self._user_features
        if user_features is not None and (user_features.past, user_features.known) != (features.past, features.known):
            raise NeedsHuman(_describe_difference((*user_features.past, *user_features.known), features.names))
        super()._accept(bundle, manifest)
        self.features = features

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
        forecast: Forecast | None = None
        while forecast is None:
            manifest = self.manifest
            if len(candles) < self.required_candles:
                raise TooFewCandles(
                    f"The model {manifest.name} needs {self.required_candles} candles; "
                    f"{len(candles)} were fetched for the previous model.",
                    check="model_process",
                )
            job = predict_job(
                build_model_input(self.features, candles, manifest.encoder_length, manifest.horizon),
                name=f"forecast from {candles.end}",
                deadline=self._job_deadline(),
                attempts=self._policy.attempts,
                rows=manifest.horizon,
                levels=manifest.levels,
            )
            forecast = self._run(job, should_stop)
        return forecast

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
        self.keep_bundle()
        return report


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
