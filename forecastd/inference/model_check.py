"""`model check`: every check that a cycle makes of a model, without a chain.

The child process checks hashes, schema, feature list, finite weights and canary; then a test prediction on recent candles
must pass the guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from forecastd.clock import Clock
from forecastd.inference.forecaster import Forecaster
from forecastd.inference.stages import (
    StageResult,
    describe_candles,
    describe_forecast,
    describe_guards,
    describe_model,
)
from forecastd.inference.supervised_model import SupervisedModel
from forecastd.market.features import load_features
from forecastd.market.sources import open_source
from forecastd.market.window import RollingWindow
from forecastd.settings import Settings
from models.bundle.files import unknown_files
from models.market.manifest import MarketManifest

_SYNTHETIC = "trained on synthetic data: for the local network only; testnet and mainnet refuse it"
Stage = Callable[[str], AbstractContextManager[list[str]]]


def stage_timer(clock: Clock, report: Callable[[StageResult], None]) -> Stage:
    """A context manager that times a stage. Its block appends lines of text, which are reported when it succeeds."""

    @contextmanager
    def stage(name: str) -> Iterator[list[str]]:
        lines: list[str] = []
        start = clock.monotonic()
        yield lines
        report(StageResult(name, "\n".join(lines), clock.monotonic() - start))

    return stage


def check_model(
    settings: Settings, clock: Clock, *, now: float, report: Callable[[StageResult], None] = lambda _: None
) -> MarketManifest:
    """Check the bundle of the settings as a cycle at `now` (unix seconds) would; return its manifest.

    Each stage that passes is reported.

    Raises:
        NeedsHuman: the bundle is invalid, or its feature list differs from the configured one.
        SkipEpoch, RetryLater: the candles for the test prediction cannot be used, or the prediction failed.
    """
    stage = stage_timer(clock, report)
    features = load_features(settings.model.features_path)
    source = open_source(settings.source.name, settings)
    with (
        Forecaster(settings.model_path, features) as forecaster,
        RollingWindow.open(settings.state_path / "window.sqlite") as window,
    ):
        check_bundle(forecaster, stage, _SYNTHETIC)
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


def check_bundle(model: SupervisedModel[Any], stage: Stage, synthetic: str) -> None:
    """The first stage: a child checks the bundle. `synthetic`: what it means that the training data was simulated.

    Raises as `SupervisedModel.check` does.
    """
    with stage("model") as lines:
        model.check()
        lines.append(describe_model(model))
        if model.manifest.training.synthetic:
            lines.append(synthetic)
        if unknown := unknown_files(model.bundle, model.manifest.files):
            lines.append(f"not in the manifest and never read: {', '.join(unknown)}")
