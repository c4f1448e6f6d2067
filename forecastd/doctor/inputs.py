"""Checks of what a forecast is made from: the data source and the model, as a cycle at this moment would use them."""

from __future__ import annotations

from collections.abc import Collection

from forecastd.candles import STALE_STEPS, check
from forecastd.clock import Clock, iso
from forecastd.doctor.finding import Finding, Level, split
from forecastd.errors import ForecastdError, NeedsHuman, SkipEpoch
from forecastd.features import load_features, parse_features
from forecastd.forecaster import Forecaster, needed_candles
from forecastd.guards import DAY, MAX_MODEL_AGE_DAYS
from forecastd.settings import Settings
from forecastd.shelf import Reserve, open_shelf
from forecastd.sources import open_source
from forecastd.stages import describe_candles, describe_model
from forecastd.supervise.policy import policy_of
from forecastd.survey import HOURS
from models.bundle import read_manifest
from models.errors import ModelError
from models.manifest import Manifest

MODEL_FIX = "Correct MODEL and FEATURES, or try `forecastd model check`."
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
        parse_features((*manifest.past, *manifest.known), "The bundle")
    except (ModelError, ForecastdError):
        return None
    return manifest.step, needed_candles(manifest)


def check_model(settings: Settings, clock: Clock) -> list[Finding]:
    """Load the bundle in its child process: hashes, weights, canary; its features against the list; its age; quarantine.

    It is the configured bundle that is judged. That an earlier one is kept to stand in for a bad one is a line more.
    """
    features, path = load_features(settings.features_path), settings.model_path
    reserve = Reserve(open_shelf(settings, clock), settings.topic_id)
    try:
        manifest = read_manifest(path)
    except ModelError as error:
        return _no_good(*split(str(error)), reserve)
    held = reserve.shelf.quarantined().get(manifest.sha256)
    if held is not None:
        told = f"{held.name} ({held.sha256[:12]}) is in quarantine since {held.since}: {held.reason}"
        fix = f"Choose or train another, or try it again: forecastd model quarantine --release {held.sha256[:12]}"
        return _no_good(told, fix, reserve, {manifest.sha256})
    with Forecaster(path, features, policy=policy_of(settings, standbys=0), clock=clock) as forecaster:
        try:
            forecaster.check()
        except NeedsHuman as error:  # what lies there is damaged; a copy of it may not be
            return _no_good(*split(str(error)), reserve)
        except SkipEpoch as error:
            return _no_good(*split(str(error)), reserve, {manifest.sha256})
        told = f"{describe_model(forecaster)}; {len(forecaster.features.names)} features"
    return [_of_age(manifest, told, settings, clock)]


def _no_good(cause: str, fix: str, reserve: Reserve, besides: Collection[str] = ()) -> list[Finding]:
    """The bundle is not run; what is kept to run in its place, other than those of these sha256."""
    found = [Finding("model", Level.FAIL, cause, fix or MODEL_FIX)]
    for _, other in reserve.best(set(besides))[:1]:
        told = f"the last good model of topic {reserve.topic}, {other.name} ({other.sha256[:12]}), stands in for it"
        found.append(Finding("model", Level.WARN, told, "Mend the configured model all the same."))
    return found


def _of_age(manifest: Manifest, told: str, settings: Settings, clock: Clock) -> Finding:
    """The finding on a good bundle, `told`: where it may serve, and how old what it learnt is."""
    training = manifest.training
    if training.synthetic:
        if settings.allora_network != "local":
            fix = "Train one on real candles with `forecastd train --source ...`."
            return Finding("model", Level.FAIL, f"{told}; trained on made-up candles", fix)
        return Finding("model", Level.OK, f"{told}; trained on made-up candles, for the local network")
    days = (clock.now() - training.learnt_until) / DAY
    told = f"{told}; trained to {iso(training.learnt_until)}, {days:.0f} days ago"
    if days <= OLD * MAX_MODEL_AGE_DAYS:
        return Finding("model", Level.OK, told)
    late = days > MAX_MODEL_AGE_DAYS
    fix = f"Train it again with `forecastd train`; from {MAX_MODEL_AGE_DAYS:.0f} days on it is refused."
    return Finding("model", Level.FAIL if late else Level.WARN, told, fix)
