"""Checks of the inputs of a forecast, the data source and the model, as a cycle would use them now."""

from __future__ import annotations

from collections.abc import Collection

from forecastd.clock import Clock, to_iso
from forecastd.doctor.finding import Finding, Level, failure, ok, split_message, warning
from forecastd.errors import ForecastdError, NeedsHuman, SkipEpoch
from forecastd.inference.bundle_store import FallbackBundles, open_bundle_store
from forecastd.inference.forecaster import Forecaster, required_candles
from forecastd.inference.stages import describe_candles, describe_model
from forecastd.market.candles import MAX_STALE_STEPS, check_candles
from forecastd.market.features import load_features, parse_features
from forecastd.market.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.market.inspect import DEFAULT_HOURS
from forecastd.market.sources import open_source
from forecastd.runtime.formatting import format_duration
from forecastd.settings import Settings
from forecastd.supervise.policy import policy_from_settings
from models.errors import ModelError
from models.market.manifest import MarketManifest

MODEL_FIX = "Correct MODEL and FEATURES, or try `forecastd model check`."
AGE_WARNING_FRACTION = 0.9  # of the maximum model age; an older model causes a warning


def check_source(settings: Settings, clock: Clock) -> list[Finding]:
    """Fetch the candles of a forecast directly from the source, without the rolling window, and check them."""
    source, now = open_source(settings.source.name, settings), clock.now()
    if source.synthetic and settings.chain.network != "local":
        message = f"{source.name} is synthetic and is for the local network only"
        return [failure("source", message, "Set DATA_SOURCE to tiingo, exchange:NAME or file:PATH.")]
    step, min_length = _model_requirements(settings) or (source.step, DEFAULT_HOURS)
    if step != source.step:
        message = f"{source.name} provides candles of {source.step} s, but the model requires {step} s"
        return [failure("source", message, "Choose another source, or train a model on this one.")]
    try:
        # Like the rolling window, request more than needed, because the newest candles may be late.
        fetched = source.fetch(int(now) - (min_length + MAX_STALE_STEPS) * step, int(now), now)
        candles, repairs = check_candles(fetched, now=now, min_length=min_length, max_age=MAX_STALE_STEPS * step)
    except SkipEpoch as error:
        fix = "Run `forecastd data inspect` for details; such faults often disappear by the next epoch."
        return [failure("source", f"{error.check}: {error}", fix)]
    return [ok("source", "; ".join((describe_candles(candles, source.name, now), *repairs)))]


def _model_requirements(settings: Settings) -> tuple[int, int] | None:
    """Step and number of candles that the model requires; None without a valid model, which its own check reports."""
    try:
        manifest = MarketManifest.read(settings.model_path)
        parse_features((*manifest.past, *manifest.known), "The bundle")
    except (ModelError, ForecastdError):
        return None
    return manifest.step, required_candles(manifest)


def check_model(settings: Settings, clock: Clock) -> list[Finding]:
    """Load the configured bundle in a child process; check hashes, weights, canary, features, age and quarantine.

    If the bundle fails, a second finding names the fallback bundle, if there is one.
    """
    features, path = load_features(settings.model.features_path), settings.model_path
    fallbacks = FallbackBundles(open_bundle_store(settings, clock), settings.topic.id, MarketManifest.read)
    try:
        manifest = MarketManifest.read(path)
    except ModelError as error:
        return _model_failure(*split_message(str(error)), fallbacks)
    entry = fallbacks.store.list_quarantined().get(manifest.sha256)
    if entry is not None:
        message = f"{entry.name} ({entry.sha256[:12]}) is in quarantine since {entry.since}: {entry.reason}"
        fix = f"Choose or train another, or try it again: forecastd model quarantine --release {entry.sha256[:12]}"
        return _model_failure(message, fix, fallbacks, {manifest.sha256})
    with Forecaster(path, features, policy=policy_from_settings(settings, standbys=0), clock=clock) as forecaster:
        try:
            forecaster.check()
        except NeedsHuman as error:  # the bundle on disk is damaged; its stored copy may be intact
            return _model_failure(*split_message(str(error)), fallbacks)
        except SkipEpoch as error:
            return _model_failure(*split_message(str(error)), fallbacks, {manifest.sha256})
        message = f"{describe_model(forecaster)}; {len(forecaster.features.names)} features"
    return [_model_age_finding(manifest, message, settings, clock)]


def _model_failure(
    cause: str, fix: str, fallbacks: FallbackBundles[MarketManifest], excluded: Collection[str] = ()
) -> list[Finding]:
    """The finding on a bundle that cannot run, and one on its fallback. `excluded`: sha256 of bundles not to use."""
    findings = [failure("model", cause, fix or MODEL_FIX)]
    for _, bundle in fallbacks.candidates(set(excluded))[:1]:
        message = (
            f"falling back to the last good model of topic {fallbacks.owner}, {bundle.name} ({bundle.sha256[:12]})"
        )
        findings.append(warning("model", message, "Fix the configured model nevertheless."))
    return findings


def _model_age_finding(manifest: MarketManifest, message: str, settings: Settings, clock: Clock) -> Finding:
    """The finding on a bundle that runs, which `message` describes: its allowed network and the age of its data."""
    training = manifest.training
    if training.synthetic:
        if settings.chain.network != "local":
            fix = "Train one on real candles with `forecastd train --source ...`."
            return failure("model", f"{message}; trained on synthetic candles", fix)
        return ok("model", f"{message}; trained on synthetic candles, for the local network")
    age = clock.now() - training.trained_until
    days = age / DAY
    message = f"{message}; trained to {to_iso(training.trained_until)}, {format_duration(age)} ago"
    if days <= AGE_WARNING_FRACTION * MAX_MODEL_AGE_DAYS:
        return ok("model", message)
    is_expired = days > MAX_MODEL_AGE_DAYS
    fix = f"Train it again with `forecastd train`; forecasts are refused after {MAX_MODEL_AGE_DAYS:.0f} days."
    return Finding("model", Level.FAIL if is_expired else Level.WARN, message, fix)
