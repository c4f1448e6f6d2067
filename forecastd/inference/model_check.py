"""`model check`: everything a cycle demands of a model, without a chain.

Hashes, schema, feature list, finite weights and canary in the child process, then a test prediction on recent candles that
has to pass the guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from forecastd.clock import Clock
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import (
    StageResult,
    describe_candles,
    describe_forecast,
    describe_guards,
    describe_model,
    stage_timer,
)
from forecastd.market.features import load_features
from forecastd.market.sources import open_source
from forecastd.market.window import RollingWindow
from forecastd.settings import Settings
from models.bundle.files import unknown_files
from models.market.manifest import MarketManifest


def check_model(
    settings: Settings,
    bundle: Path,
    clock: Clock,
    *,
    now: float,
    report: Callable[[StageResult], None] = lambda _: None,
) -> MarketManifest:
    """Check a bundle as a cycle at `now` would, reporting each stage as it passes; gives the manifest of a good one.

    Raises:
        NeedsHuman: the bundle is no good, or the feature list is another one; the message says what to do.
        SkipEpoch, RetryLater: the candles for the test prediction, or the prediction itself, are no good.
    """
    stage = stage_timer(clock, report)
    features = load_features(settings.features_path)
    source = open_source(settings.data_source, settings)
    with (
        Forecaster(bundle, features) as forecaster,
        RollingWindow.open(settings.state_path / "window.sqlite") as window,
    ):
        with stage("model") as lines:
            forecaster.check()
            lines.append(describe_model(forecaster))
            lines.extend(_warnings(bundle, forecaster.manifest))
        with stage("data") as lines:
            candles, repairs = forecaster.gather_candles(source, window, now)
            lines.append(describe_candles(candles, source.name, now))
            lines.extend(repairs)
        with stage("forecast") as lines:
            forecast = forecaster.forecast(candles)
            lines.extend(describe_forecast(forecast))
        with stage("guards") as lines:
            lines.extend(describe_guards(forecaster.check_guards(forecast, candles)))
        return forecaster.manifest


def _warnings(bundle: Path, manifest: MarketManifest) -> Iterator[str]:
    """What does not make a bundle bad, but matters to whoever wants to use it."""
    if manifest.training.synthetic:
        yield "trained on made-up data: for the local network only, testnet and mainnet refuse it"
    if unknown := unknown_files(bundle, manifest.files):
        yield f"not in its manifest, never read: {', '.join(unknown)}"
