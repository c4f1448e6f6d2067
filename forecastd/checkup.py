"""`model check`: everything a cycle demands of a model, without a chain.

Hashes, schema, feature list, finite weights and canary in the child process, then a test prediction on recent candles that
has to pass the guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from forecastd.clock import Clock
from forecastd.features import load_features
from forecastd.forecaster import Forecaster
from forecastd.settings import Settings
from forecastd.sources import open_source
from forecastd.stages import Stage, describe_candles, describe_forecast, describe_guards, describe_model, staged
from forecastd.window import RollingWindow
from models.bundlefiles import unknown_files
from models.manifest import Manifest


def check_model(
    settings: Settings, bundle: Path, clock: Clock, *, now: float, report: Callable[[Stage], None] = lambda _: None
) -> Manifest:
    """Check a bundle as a cycle at `now` would, reporting each stage as it passes; gives the manifest of a good one.

    Raises:
        NeedsHuman: the bundle is no good, or the feature list is another one; the message says what to do.
        SkipEpoch, RetryLater: the candles for the test prediction, or the prediction itself, are no good.
    """
    stage = staged(clock, report)
    features = load_features(settings.features_path)
    source = open_source(settings.data_source, settings)
    with Forecaster(bundle, features) as forecaster, RollingWindow.open(settings.state / "window.sqlite") as window:
        with stage("model") as told:
            forecaster.check()
            told.append(describe_model(forecaster))
            told.extend(_remarks(bundle, forecaster.manifest))
        with stage("data") as told:
            candles, repairs = forecaster.gather(source, window, now)
            told.append(describe_candles(candles, source.name, now))
            told.extend(repairs)
        with stage("forecast") as told:
            forecast = forecaster.forecast(candles)
            told.extend(describe_forecast(forecast))
        with stage("guards") as told:
            told.extend(describe_guards(forecaster.guard(forecast, candles)))
        return forecaster.manifest


def _remarks(bundle: Path, manifest: Manifest) -> Iterator[str]:
    """What does not make a bundle bad, but matters to whoever wants to use it."""
    if manifest.training.synthetic:
        yield "trained on made-up data: for the local network only, testnet and mainnet refuse it"
    if unknown := unknown_files(bundle, manifest.files):
        yield f"not in its manifest, never read: {', '.join(unknown)}"
