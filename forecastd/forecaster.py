"""From a bundle's path to a checked forecast, by way of a child process.

The child is started before anything else of a cycle, so that it loads and proves the model while the parent talks to
the network. A model that is no good needs a person; one that crashes or hangs costs this epoch and nothing more.
"""

from __future__ import annotations

from pathlib import Path

from forecastd.candles import STALE_STEPS, Candles, check
from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.features import FeatureList, model_input, parse_features, warm_up
from forecastd.guards import GuardReport, check_forecast
from forecastd.sources.base import Source
from forecastd.supervise.process import ChildFailed, ModelFailed, ModelProcess
from forecastd.window import RollingWindow, refresh
from models.base import Forecast
from models.bundle import read_manifest
from models.errors import ModelError
from models.manifest import Manifest

LOAD_SECONDS = 60.0
PREDICT_SECONDS = 60.0


class Forecaster:
    """One bundle, run in a child of its own. Use as a context manager: leaving ends the child."""

    def __init__(self, bundle: Path, features: FeatureList | None = None) -> None:
        """Read the bundle's manifest, compare its features with the user's list, and start the child.

        Raises:
            NeedsHuman: there is no bundle, its manifest is no good, or it was trained on other features.
            SkipEpoch: no process can be started for it.
        """
        try:
            self.manifest: Manifest = read_manifest(bundle)
        except ModelError as error:
            raise NeedsHuman(str(error)) from error
        self.features = parse_features((*self.manifest.past, *self.manifest.known), f"The bundle {bundle}")
        if features is not None and (features.past, features.known) != (self.features.past, self.features.known):
            raise NeedsHuman(_difference((*features.past, *features.known), self.features.names))
        self._bundle = bundle
        self._process = self._started()

    def check(self) -> str:
        """Wait until the child has verified the bundle's hashes, its weights and its canary; gives the bundle's sha256.

        Raises:
            NeedsHuman: the model is no good.
            SkipEpoch: its process died or hung.
        """
        try:
            return self._process.ready(LOAD_SECONDS)
        except ModelFailed as error:
            raise NeedsHuman(str(error)) from error
        except ChildFailed as error:
            raise self._replaced(error) from error

    @property
    def needed(self) -> int:
        """How many candles a forecast needs: the encoder's, and those that warm its features up."""
        return self.manifest.encoder_length + warm_up(self.features.past, self.manifest.step)

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
        candles = refresh(window, source, now=now, length=self.needed)
        return check(candles, now=now, needed=self.needed, max_age=STALE_STEPS * step)

    def forecast(self, candles: Candles) -> Forecast:
        """The forecast from the end of `candles`. Raises SkipEpoch when the model cannot make it."""
        inputs = model_input(self.features, candles, self.manifest.encoder_length, self.manifest.horizon)
        try:
            return self._process.predict(inputs, PREDICT_SECONDS)
        except ModelFailed as error:
            raise SkipEpoch(str(error), check="model") from error
        except ChildFailed as error:
            raise self._replaced(error) from error

    def guard(self, forecast: Forecast, candles: Candles, consensus: tuple[float, ...] = ()) -> GuardReport:
        """The guards' report on a forecast; raises SkipEpoch when it must not be signed."""
        age_counts = not candles.provenance.synthetic
        return check_forecast(
            forecast,
            candles,
            horizon=self.manifest.horizon,
            trained_until=float(self.manifest.training.learnt_until) if age_counts else None,
            consensus=consensus,
        )

    def _replaced(self, error: ChildFailed) -> SkipEpoch:
        """Put a new child in the place of one that failed, for whoever tries again."""
        self._process.stop()
        self._process = self._started()
        return SkipEpoch(str(error), check="model_process")

    def _started(self) -> ModelProcess:
        try:
            return ModelProcess(self._bundle)
        except ChildFailed as error:
            raise SkipEpoch(str(error), check="model_process") from error

    def close(self) -> None:
        """End the child."""
        self._process.stop()

    def __enter__(self) -> Forecaster:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
