"""The manifest of a market bundle as strict JSON: everything about the model except the parameters of its network.

Reading it needs the standard library only and opens no other file. Invariant: a manifest is either completely valid
or not used. A field that is missing, unknown, of the wrong type or out of bounds is refused, and the error names it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.bundle.fields import StrictFields, check_name, parse_object, refuse
from models.bundle.records import (
    FLEET_KIND,
    MARKET_KIND,
    MAX_STEP_SECONDS,
    FileRecord,
    TrainingRecord,
    files_json,
    read_files,
    read_levels,
    read_training,
    training_json,
)
from models.tft.config import MAX_SIZES, RELATIVE_TIME, TftConfig, read_network_sizes

SCHEMA = 1
TARGET = "log_close"
NORMALIZER = "last-value"
DEFAULTED_SIZES = ("targets", "profiles", "embedding_size")  # of a network with one target and no profile: not written


@dataclass(frozen=True)
class Scaler:
    """The network reads a feature as `(value - center) / scale`; fitted on the train part only."""

    center: float
    scale: float


@dataclass(frozen=True)
class MarketManifest:
    """The manifest of a market bundle. `step` in seconds; `levels` increasing, with 0.5; `sha256` of its own bytes."""

    name: str
    past: tuple[str, ...]
    known: tuple[str, ...]
    scalers: Mapping[str, Scaler]
    step: int
    encoder_length: int
    horizon: int
    levels: tuple[float, ...]
    network: TftConfig
    training: TrainingRecord
    versions: Mapping[str, str]
    metrics: Mapping[str, object]
    files: Mapping[str, FileRecord]
    sha256: str = ""


def network_reals(past: tuple[str, ...], known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them."""
    decoder = (*known, RELATIVE_TIME)
    return (*decoder, *past, TARGET), decoder


def to_json(manifest: MarketManifest) -> bytes:
    """The bytes of `manifest.json`, without `sha256`, which is their hash."""
    document = {
        "schema": SCHEMA,
        "kind": MARKET_KIND,
        "name": manifest.name,
        "features": {"past": manifest.past, "known": manifest.known},
        "scalers": {name: {"center": s.center, "scale": s.scale} for name, s in manifest.scalers.items()},
        "encoders": {},
        "target": {
            "name": TARGET,
            "description": "natural logarithm of the closing price; the forecast is the log-return from the last close",
            "normalizer": NORMALIZER,
        },
        "step": manifest.step,
        "encoder_length": manifest.encoder_length,
        "horizon": manifest.horizon,
        "levels": manifest.levels,
        "network": {name: value for name, value in vars(manifest.network).items() if name not in DEFAULTED_SIZES},
        "training": training_json(manifest.training),
        "versions": dict(manifest.versions),
        "metrics": manifest.metrics,
        "files": files_json(manifest.files),
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def parse(content: bytes, sha256: str) -> MarketManifest:
    """Read the bytes of `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, or a field is not valid; the message names it.
    """
    root = parse_object(content)
    if (schema := root.take("schema", int)) != SCHEMA:
        refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
    if (kind := root.take("kind", str)) == FLEET_KIND:
        refuse(
            "is of a fleet model, not of a market model",
            "Run it with `forecastd fleet serve --model`, or choose another model.",
        )
    if kind != MARKET_KIND:
        refuse(f"is of kind {kind!r}; this version runs {MARKET_KIND!r} only", "Use the version that wrote it.")
    features = root.child("features")
    past, known = features.names("past"), features.names("known")
    features.expect_empty()
    names = (*past, *known)
    if len(set(names) | {TARGET, RELATIVE_TIME}) != len(names) + 2:
        refuse("has a feature twice, or one with the name of the target")
    _check_target(root.child("target"))
    root.child("encoders").expect_empty()
    levels = read_levels(root)
    manifest = MarketManifest(
        name=check_name(root.take("name", str), "name"),
        past=past,
        known=known,
        scalers=_scalers(root.child("scalers"), names),
        step=root.integer("step", 1, MAX_STEP_SECONDS),
        encoder_length=root.integer("encoder_length", 2, MAX_SIZES["encoder_length"]),
        horizon=root.integer("horizon", 1, MAX_SIZES["horizon"]),
        levels=levels,
        network=_network(root.child("network"), past, known, len(levels)),
        training=read_training(root.child("training")),
        versions=root.child("versions").strings(),
        metrics=root.mapping("metrics"),
        files=read_files(root.child("files")),
        sha256=sha256,
    )
    root.expect_empty()
    return manifest


def _check_target(target: StrictFields) -> None:
    target.take("description", str)
    if target.take("name", str) != TARGET or target.take("normalizer", str) != NORMALIZER:
        refuse(f"has another target than {TARGET} with the {NORMALIZER} normalizer")
    target.expect_empty()


def _scalers(scalers: StrictFields, features: tuple[str, ...]) -> Mapping[str, Scaler]:
    result = {}
    for name in features:
        scaler = scalers.child(name)
        result[name] = Scaler(center=scaler.number("center"), scale=scaler.number("scale"))
        scaler.expect_empty()
        if result[name].scale <= 0:
            refuse(f"must have a scale above 0 at scalers.{name}")
    scalers.expect_empty()
    return result


def _network(network: StrictFields, past: tuple[str, ...], known: tuple[str, ...], outputs: int) -> TftConfig:
    sizes = read_network_sizes(network)
    network.expect_empty()
    if (sizes.encoder_reals, sizes.decoder_reals) != network_reals(past, known) or sizes.outputs != outputs:
        refuse("has a network whose variables or outputs differ from its features and levels")
    if sizes.attention_heads > sizes.hidden_size:
        refuse("has more attention heads than hidden units")
    return sizes
