"""Checks of what a forecast is made from: the data source and the model, as a cycle at this moment would use them."""

from __future__ import annotations

from forecastd.candles import STALE_STEPS, check
from forecastd.clock import Clock, iso
from forecastd.doctor.finding import Finding, Level
from forecastd.errors import ForecastdError, SkipEpoch
from forecastd.features import load_features, parse_features, warm_up
from forecastd.forecaster import Forecaster
from forecastd.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.settings import Settings
from forecastd.sources import open_source
from forecastd.stages import describe_candles, describe_model
from forecastd.survey import HOURS
from models.bundle import read_manifest
from models.errors import ModelError

OLD = 0.9  # of the greatest age of a model, from which on it is told


def check_source(settings: Settings, clock: Clock) -> list[Finding]:
    """Fetch what a forecast needs from the source itself, past the rolling window, and check it."""
    source, now = open_source(settings.data_source, settings), clock.now()
    if source.synthetic and settings.allora_network != "local":
        told = f"{source.name} is made up and serves the local network only"
        return [Finding("source", Level.FAIL, told, "Set DATA_SOURCE to tiingo, exchange:NAME or file:PATH.")]
    step, needed = _wanted(settings) or (source.step, HOURS)
    if step != source.step:
        told = f"{source.name} gives candles of {source.step} s, the model wants {step} s"
        return [Finding("source", Level.FAIL, told, "Choose another source, or train a model on this one.")]
    try:
        # As the rolling window does: more than needed, for the newest may be late.
        fetched = source.fetch(int(now) - (needed + STALE_STEPS) * step, int(now), now)
        candles, repairs = check(fetched, now=now, needed=needed, max_age=STALE_STEPS * step)
    except SkipEpoch as error:
        fix = "`forecastd data inspect` shows more; data usually mends itself by the next epoch."
        return [Finding("source", Level.FAIL, f"{error.check}: {error}", fix)]
    return [Finding("source", Level.OK, "; ".join((describe_candles(candles, source.name, now), *repairs)))]


def _wanted(settings: Settings) -> tuple[int, int] | None:
    """Step and number of candles that the model wants; None where there is no sound model, which is told elsewhere."""
    try:
        manifest = read_manifest(settings.model_path)
        features = parse_features((*manifest.past, *manifest.known), "The bundle")
    except (ModelError, ForecastdError):
        return None
    return manifest.step, manifest.encoder_length + warm_up(features.past, manifest.step)


def check_model(settings: Settings, clock: Clock) -> list[Finding]:
    """Load the bundle in its child process: hashes, weights, canary; its features against the list; its age."""
    features = load_features(settings.features_path)
    with Forecaster(settings.model_path, features) as forecaster:
        forecaster.check()
        training = forecaster.manifest.training
        told = f"{describe_model(forecaster)}; {len(forecaster.features.names)} features"
    if training.synthetic:
        if settings.allora_network != "local":
            fix = "Train one on real candles with `forecastd train --source ...`."
            return [Finding("model", Level.FAIL, f"{told}; trained on made-up candles", fix)]
        return [Finding("model", Level.OK, f"{told}; trained on made-up candles, for the local network")]
    days = (clock.now() - training.learnt_until) / DAY
    told = f"{told}; trained to {iso(training.learnt_until)}, {days:.0f} days ago"
    if days <= OLD * MAX_MODEL_AGE_DAYS:
        return [Finding("model", Level.OK, told)]
    late = days > MAX_MODEL_AGE_DAYS
    fix = f"Train it again with `forecastd train`; from {MAX_MODEL_AGE_DAYS:.0f} days on it is refused."
    return [Finding("model", Level.FAIL if late else Level.WARN, told, fix)]
