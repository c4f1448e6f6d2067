"""The manifest of a bundle: everything about a model that is not a number of its network, as strict JSON.

Reading it needs the standard library only and opens no other file. A field that is missing, unknown, of the wrong type
or out of its bounds is refused by name: a manifest is either fully understood or not used.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from models.strict import Fields, name_of, read_object, refuse

SCHEMA = 1
KIND = "temporal-fusion-transformer"
TARGET = "log_close"
RELATIVE_TIME = "relative_time_idx"  # the library's name of the position in the window, divided by the encoder length
WEIGHTS = "weights.safetensors"
CANARY = "canary.safetensors"
NORMALIZER = "last-value"
PARTS = ("train", "validation", "test")
LARGEST_STEP = 366 * 86400
OF_THE_FLEET = ("targets", "profiles", "embedding_size")  # of a network; here they have their defaults
MOST = {  # the largest sizes that a manifest may name
    "encoder_length": 100_000, "horizon": 100_000, "hidden_size": 4096, "hidden_continuous_size": 4096,
    "attention_heads": 256, "lstm_layers": 16, "levels": 99,
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
class Interval:
    """One part of the rows, in unix seconds: opening of its first row, close of its last; how many windows it holds."""

    start: int
    end: int
    windows: int


@dataclass(frozen=True)
class Training:
    """What the model was made from. `start`, `end` in unix seconds: opening of the first row, close of the last.

    They span all rows, those held out for validation and test too; what the network learnt from ends at `learnt_until`.
    """

    start: int
    end: int
    rows: int
    data_sha256: str
    source: str
    synthetic: bool
    created: int  # unix seconds
    parts: Mapping[str, Interval]  # of the train, the validation and the test part
    config: Mapping[str, object]  # the options of the training, as given

    @property
    def learnt_until(self) -> int:
        """Unix seconds: close of the last row of the train part, the newest that the weights were fitted to."""
        return self.parts["train"].end


@dataclass(frozen=True)
class FileRecord:
    """What a file of the bundle must be."""

    sha256: str
    size: int


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


def iso(seconds: int) -> str:
    """Unix seconds as `2019-10-17T09:00:00Z`."""
    return datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def to_json(manifest: Manifest) -> bytes:
    """The manifest as the bytes of `manifest.json`. `sha256` is not part of them, it is their hash."""
    training = manifest.training
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
        "training": {
            **_times_json(training),
            "rows": training.rows,
            "data_sha256": training.data_sha256,
            "source": training.source,
            "synthetic": training.synthetic,
            "created": training.created,
            "parts": {name: _interval_json(part) for name, part in training.parts.items()},
            "config": training.config,
        },
        "versions": dict(manifest.versions),
        "metrics": manifest.metrics,
        "files": {name: {"sha256": f.sha256, "size": f.size} for name, f in manifest.files.items()},
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def _interval_json(part: Interval) -> dict[str, object]:
    return {**_times_json(part), "windows": part.windows}


def _times_json(part: Interval | Training) -> dict[str, object]:
    return {"start": part.start, "start_iso": iso(part.start), "end": part.end, "end_iso": iso(part.end)}


def parse(content: bytes, sha256: str) -> Manifest:
    """The manifest of the bytes of a `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, or a field that is not as it must be; the message names it.
    """
    root = read_object(content)
    if (schema := root.take("schema", int)) != SCHEMA:
        refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
    if (kind := root.take("kind", str)) != KIND:
        refuse(f"is of kind {kind!r}; this version runs {KIND!r} only", "Use the version that wrote it.")
    features = root.child("features")
    past, known = features.names("past"), features.names("known")
    features.end()
    every = (*past, *known)
    if len(set(every) | {TARGET, RELATIVE_TIME}) != len(every) + 2:
        refuse("names a feature twice, or one like the target")
    _check_target(root.child("target"))
    root.child("encoders").end()
    levels = _levels(root)
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
        training=_training(root.child("training")),
        versions=root.child("versions").strings(),
        metrics=root.free("metrics"),
        files=_files(root.child("files")),
        sha256=sha256,
    )
    root.end()
    return manifest


def _check_target(target: Fields) -> None:
    target.take("description", str)
    if target.take("name", str) != TARGET or target.take("normalizer", str) != NORMALIZER:
        refuse(f"has another target than {TARGET} with the {NORMALIZER} normalizer")
    target.end()


def _levels(root: Fields) -> tuple[float, ...]:
    levels = root.take("levels", list)
    if not all(isinstance(level, float) and 0 < level < 1 for level in levels) or len(levels) > MOST["levels"]:
        refuse("must have probabilities between 0 and 1 at levels")
    if any(b <= a for a, b in itertools.pairwise(levels)) or 0.5 not in levels:
        refuse("must have increasing levels with 0.5 among them")
    return tuple(levels)


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


def _network(network: Fields, past: tuple[str, ...], known: tuple[str, ...], outputs: int) -> Network:
    found = Network(
        hidden_size=network.integer("hidden_size", 1, MOST["hidden_size"]),
        hidden_continuous_size=network.integer("hidden_continuous_size", 1, MOST["hidden_continuous_size"]),
        attention_heads=network.integer("attention_heads", 1, MOST["attention_heads"]),
        lstm_layers=network.integer("lstm_layers", 1, MOST["lstm_layers"]),
        encoder_reals=network.names("encoder_reals"),
        decoder_reals=network.names("decoder_reals"),
        outputs=network.integer("outputs", 1, MOST["levels"]),
    )
    network.end()
    if (found.encoder_reals, found.decoder_reals) != network_reals(past, known) or found.outputs != outputs:
        refuse("has a network whose variables or outputs differ from its features and levels")
    if found.attention_heads > found.hidden_size:
        refuse("has more attention heads than hidden units")
    return found


def _training(training: Fields) -> Training:
    start, end = _times(training, "training")
    found = Training(
        start=start,
        end=end,
        rows=training.integer("rows", 1, 2**40),
        data_sha256=training.sha256("data_sha256"),
        source=training.take("source", str),
        synthetic=training.take("synthetic", bool),
        created=training.integer("created", 0, 2**40),
        parts=_parts(training.child("parts"), start, end),
        config=training.free("config"),
    )
    training.end()
    return found


def _parts(parts: Fields, start: int, end: int) -> Mapping[str, Interval]:
    """The parts of the rows, in the order of time, one after the other between `start` and `end`."""
    found = {}
    for name in PARTS:
        part = parts.child(name)
        found[name] = Interval(*_times(part, f"training.parts.{name}"), part.integer("windows", 1, 2**40))
        part.end()
        if not start <= found[name].start <= found[name].end <= end:
            refuse(f"has training parts that overlap, or lie outside the training interval, at training.parts.{name}")
        start = found[name].end
    parts.end()
    return found


def _times(interval: Fields, where: str) -> tuple[int, int]:
    start, end = interval.integer("start", 0, 2**40), interval.integer("end", 0, 2**40)
    try:
        times = iso(start), iso(end)
    except (ValueError, OverflowError, OSError):
        refuse(f"has an interval beyond the calendar at {where}")
    if (interval.take("start_iso", str), interval.take("end_iso", str)) != times or start >= end:
        refuse(f"has an interval that contradicts itself at {where}")
    return start, end


def _files(files: Fields) -> Mapping[str, FileRecord]:
    if set(files.keys()) != {WEIGHTS, CANARY}:
        refuse(f"must describe exactly the files {WEIGHTS} and {CANARY}")
    found = {}
    for name in files.keys():  # noqa: SIM118  # not a dict: it is emptied field by field
        record = files.child(name)
        found[name] = FileRecord(record.sha256("sha256"), record.integer("size", 1, 2**40))
        record.end()
    return found
