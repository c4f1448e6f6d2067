"""`model check`: every check that a cycle makes of a model, without a chain.

The child process checks hashes, schema, feature list, finite weights and canary; then a test prediction on recent candles
must pass the guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
from forecastd.inference.supervised_model import SupervisedModel
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
    """Check a bundle as a cycle at `now` (unix seconds) would, and return its manifest. Each passed stage is reported.

    Raises:
        NeedsHuman: the bundle is invalid, or its feature list differs from the configured one.
        SkipEpoch, RetryLater: the candles for the test prediction cannot be used, or the prediction failed.
    """
    stage = stage_timer(clock, report)
    features = load_features(settings.model.features_path)
    source = open_source(settings.source.name, settings)
    with (
        Forecaster(bundle, features) as forecaster,
        RollingWindow.open(settings.state_path / "window.sqlite") as window,
    ):
        with stage("model") as lines:
            forecaster.check()
            lines.append(describe_model(forecaster))
            lines.extend(
                bundle_notes(
                    forecaster, "trained on synthetic data: for the local network only; testnet and mainnet refuse it"
                )
            )
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


def bundle_notes(model: SupervisedModel[Any], synthetic: str) -> Iterator[str]:
    """Facts that do not make a bundle invalid, but matter to its user. `synthetic`: what simulated training data means."""
    if model.manifest.training.synthetic:
        yield synthetic
    if unknown := unknown_files(model.bundle, model.manifest.files):
        yield f"not in the manifest and never read: {', '.join(unknown)}"
