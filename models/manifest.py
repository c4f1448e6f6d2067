"""The manifest of a bundle: everything about a model that is not a number of its network, as strict JSON.

Reading it needs the standard library only and opens no other file. A field that is missing, unknown, of the wrong type
or out of its bounds is refused by name: a manifest is either fully understood or not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from models.records import (
    MOST_LEVELS,
    FileRecord,
    Training,
    files_json,
    read_files,
    read_levels,
    read_training,
    training_json,
)
from models.strict import Fields, name_of, read_object, refuse

SCHEMA = 1
KIND = "temporal-fusion-transformer"
KIND_OF_A_FLEET = "temporal-fusion-transformer-fleet"
TARGET = "log_close"
RELATIVE_TIME = "relative_time_idx"  # the library's name of the position in the window, divided by the encoder length
NORMALIZER = "last-value"
LARGEST_STEP = 366 * 86400
OF_THE_FLEET = ("targets", "profiles", "embedding_size")  # of a network; here they have their defaults
MOST = {  # the largest sizes that a manifest may name
    "encoder_length": 100_000, "horizon": 100_000, "hidden_size": 4096, "hidden_continuous_size": 4096,
    "attention_heads": 256, "lstm_layers": 16, "levels": MOST_LEVELS,
}  # fmt: skip


@dataclass(frozen=True)
class Scaler:
    """A feature enters the network as `(value - center) / scale`; fitted on the training part only."""

    center: float
    scale: float


@dataclass(frozen=True)
class Network:
    """The sizes of a Temporal Fusion Transformer and its variables, in the order the network reads them.

    `outputs`: of each target. `profiles`, `embedding_size`: the static profile's values and the numbers each is told by; 0
    for a network without one.
    """

    hidden_size: int
    hidden_continuous_size: int
    attention_heads: int
    lstm_layers: int
    encoder_reals: tuple[str, ...]
    decoder_reals: tuple[str, ...]
    outputs: int
    targets: int = 1
    profiles: int = 0
    embedding_size: int = 0


@dataclass(frozen=True)
class Manifest:
    """A bundle's description. `step` in seconds; `levels` increasing, 0.5 among them; `sha256` of its own bytes."""

    name: str
    past: tuple[str, ...]
    known: tuple[str, ...]
    scalers: Mapping[str, Scaler]
    step: int
    encoder_length: int
    horizon: int
    levels: tuple[float, ...]
    network: Network
    training: Training
    versions: Mapping[str, str]
    metrics: Mapping[str, object]
    files: Mapping[str, FileRecord]
    sha256: str = ""


def network_reals(past: tuple[str, ...], known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The variables of the network's encoder and decoder, in the order pytorch_forecasting gives them."""
    decoder = (*known, RELATIVE_TIME)
    return (*decoder, *past, TARGET), decoder


def to_json(manifest: Manifest) -> bytes:
    """The manifest as the bytes of `manifest.json`. `sha256` is not part of them, it is their hash."""
    document = {
        "schema": SCHEMA,
        "kind": KIND,
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
        "network": {name: value for name, value in vars(manifest.network).items() if name not in OF_THE_FLEET},
        "training": training_json(manifest.training),
        "versions": dict(manifest.versions),
        "metrics": manifest.metrics,
        "files": files_json(manifest.files),
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def parse(content: bytes, sha256: str) -> Manifest:
    """The manifest of the bytes of a `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, or a field that is not as it must be; the message names it.
    """
    root = read_object(content)
    if (schema := root.take("schema", int)) != SCHEMA:
        refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
    if (kind := root.take("kind", str)) == KIND_OF_A_FLEET:
        refuse(
            "is of a model of a fleet of servers",
            "Run it with `forecastd fleet serve --model`, or choose another model.",
        )
    if kind != KIND:
        refuse(f"is of kind {kind!r}; this version runs {KIND!r} only", "Use the version that wrote it.")
    features = root.child("features")
    past, known = features.names("past"), features.names("known")
    features.end()
    every = (*past, *known)
    if len(set(every) | {TARGET, RELATIVE_TIME}) != len(every) + 2:
        refuse("names a feature twice, or one like the target")
    _check_target(root.child("target"))
    root.child("encoders").end()
    levels = read_levels(root)
    manifest = Manifest(
        name=name_of(root.take("name", str), "name"),
        past=past,
        known=known,
        scalers=_scalers(root.child("scalers"), every),
        step=root.integer("step", 1, LARGEST_STEP),
        encoder_length=root.integer("encoder_length", 2, MOST["encoder_length"]),
        horizon=root.integer("horizon", 1, MOST["horizon"]),
        levels=levels,
        network=_network(root.child("network"), past, known, len(levels)),
        training=read_training(root.child("training")),
        versions=root.child("versions").strings(),
        metrics=root.free("metrics"),
        files=read_files(root.child("files")),
        sha256=sha256,
    )
    root.end()
    return manifest


def _check_target(target: Fields) -> None:
    target.take("description", str)
    if target.take("name", str) != TARGET or target.take("normalizer", str) != NORMALIZER:
        refuse(f"has another target than {TARGET} with the {NORMALIZER} normalizer")
    target.end()


def _scalers(scalers: Fields, features: tuple[str, ...]) -> Mapping[str, Scaler]:
    found = {}
    for name in features:
        scaler = scalers.child(name)
        found[name] = Scaler(center=scaler.number("center"), scale=scaler.number("scale"))
        scaler.end()
        if found[name].scale <= 0:
            refuse(f"must have a scale above 0 at scalers.{name}")
    scalers.end()
    return found


def read_sizes(network: Fields) -> Network:
    """The sizes and variables that every network has."""
    return Network(
        hidden_size=network.integer("hidden_size", 1, MOST["hidden_size"]),
        hidden_continuous_size=network.integer("hidden_continuous_size", 1, MOST["hidden_continuous_size"]),
        attention_heads=network.integer("attention_heads", 1, MOST["attention_heads"]),
        lstm_layers=network.integer("lstm_layers", 1, MOST["lstm_layers"]),
        encoder_reals=network.names("encoder_reals"),
        decoder_reals=network.names("decoder_reals"),
        outputs=network.integer("outputs", 1, MOST["levels"]),
    )


def _network(network: Fields, past: tuple[str, ...], known: tuple[str, ...], outputs: int) -> Network:
    found = read_sizes(network)
    network.end()
    if (found.encoder_reals, found.decoder_reals) != network_reals(past, known) or found.outputs != outputs:
        refuse("has a network whose variables or outputs differ from its features and levels")
    if found.attention_heads > found.hidden_size:
        refuse("has more attention heads than hidden units")
    return found
