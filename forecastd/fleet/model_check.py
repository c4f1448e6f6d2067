"""`model check` of a fleet bundle: checks everything that a fleet requires of a model, without a fleet.

It checks hashes, weights and canary in a child process with the engine that would serve the model, then forecasts
simulated servers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from forecastd.clock import Clock
from forecastd.errors import SkipEpoch
from forecastd.fleet.forecast.fleet_forecast import TFT
from forecastd.fleet.forecast.forecaster import FleetForecaster
from forecastd.fleet.simulator import Simulator
from forecastd.fleet.window.window import WindowBlock
from forecastd.inference.model_check import check_bundle, stage_timer
from forecastd.inference.stages import StageResult
from forecastd.runtime.formatting import format_duration
from forecastd.settings import Settings
from forecastd.supervise.policy import policy_from_settings
from models.fleet.manifest import FleetManifest

SAMPLE_SERVERS = 20
_SYNTHETIC = "trained on simulated data; a model trained on your own servers' history is more accurate"


def check_fleet_model(
    settings: Settings, clock: Clock, *, now: float, report: Callable[[StageResult], None] = lambda _: None
) -> FleetManifest:
    """Check the bundle of the settings as a fleet would, and report each stage that passes. Returns the manifest.

    Raises:
        NeedsHuman: the bundle is invalid, or does not fit the contract; the message says what to do.
        SkipEpoch: no child became ready, or none finished the test forecast.
    """
    stage = stage_timer(clock, report)
    policy = policy_from_settings(settings, standbys=0)
    with FleetForecaster(settings.model_path, policy=policy, clock=clock, engine=settings.fleet.engine) as forecaster:
        check_bundle(forecaster, stage, _SYNTHETIC)
        with stage("forecast") as lines:
            lines.append(_run_forecast(forecaster, now))
        return forecaster.manifest


def _run_forecast(forecaster: FleetForecaster, now: float) -> str:
    """Forecast simulated servers; returns a line that describes the result."""
    manifest = forecaster.manifest
    tick = int(now // manifest.step)
    simulator = Simulator(0, SAMPLE_SERVERS, "healthy", manifest.step, start=tick)
    values = simulator.block(tick - manifest.encoder_length + 1, manifest.encoder_length)
    forecast = forecaster.forecast(
        WindowBlock(tick, simulator.names, simulator.profiles, ("ok",) * SAMPLE_SERVERS, values)
    )
    if set(forecast.models) != {TFT} or not np.isfinite(forecast.quantiles).all():
        raise SkipEpoch("The model did not forecast all servers. Train it again.", check="fleet_forecast")
    ahead = format_duration(manifest.horizon * manifest.step)
    return (
        f"{SAMPLE_SERVERS} simulated servers, {len(manifest.metrics)} metrics, {manifest.horizon} steps of {manifest.step} s "
        f"({ahead}) ahead, engine {forecaster.engine}"
    )
