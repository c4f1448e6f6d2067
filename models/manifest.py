"""The manifest of a bundle: everything about a model that is not a number of its network, as strict JSON.

Reading it needs the standard library only and opens no other file. A field that is missing, unknown, of the wrong type
or out of its bounds is refused by name: a manifest is either fully understood or not used.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NoReturn, TypeVar

from models.errors import BundleError

SCHEMA = 1
KIND = "temporal-fusion-transformer"
TARGET = "log_close"
RELATIVE_TIME = "relative_time_idx"  # the library's name of the position in the window, divided by the encoder length
WEIGHTS = "weights.safetensors"
CANARY = "canary.safetensors"
NORMALIZER = "last-value"
LARGEST_STEP = 366 * 86400

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@dataclass(frozen=True)
class Scaler:
    """A feature enters the network as `(value - center) / scale`; fitted on the training part only."""

    center: float
    scale: float


@dataclass(frozen=True)
class Network:
    """The sizes of a Temporal Fusion Transformer and its variables, in the order the network reads them."""

    hidden_size: int
    hidden_continuous_size: int
    attention_heads: int
    lstm_layers: int
    encoder_reals: tuple[str, ...]
    decoder_reals: tuple[str, ...]
    outputs: int


@dataclass(frozen=True)
class Training:
    """What the model was trained on. `start`, `end` in unix seconds: opening of the first row, close of the last."""

    start: int
    end: int
    rows: int
    data_sha256: str
    source: str
    synthetic: bool
    created: int  # unix seconds
    parts: Mapping[str, object]  # the intervals of training, validation and test part, and their windows
    config: Mapping[str, object]  # the options of the training, as given


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
        "network": vars(manifest.network),
        "training": {
            "start": training.start,
            "start_iso": iso(training.start),
            "end": training.end,
            "end_iso": iso(training.end),
            "rows": training.rows,
            "data_sha256": training.data_sha256,
            "source": training.source,
            "synthetic": training.synthetic,
            "created": training.created,
            "parts": training.parts,
            "config": training.config,
        },
        "versions": dict(manifest.versions),
        "metrics": manifest.metrics,
        "files": {name: {"sha256": f.sha256, "size": f.size} for name, f in manifest.files.items()},
    }
    return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()


def parse(content: bytes, sha256: str) -> Manifest:
    """The manifest of the bytes of a `manifest.json`.

    Raises:
        BundleError: (check "schema") not JSON, or a field that is not as it must be; the message names it.
    """
    try:
        document = json.loads(content, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        _refuse(f"is not valid JSON ({error})")
    root = _Object(document, "")
    if root.take("schema", int) != SCHEMA:
        _refuse(f"has schema {document['schema']}; this version reads schema {SCHEMA}. Use the version that wrote it")
    if root.take("kind", str) != KIND:
        _refuse(f"is of kind {document['kind']!r}; this version runs {KIND!r} only")
    features = root.child("features")
    past, known = features.names("past"), features.names("known")
    features.end()
    every = (*past, *known)
    if len(set(every) | {TARGET, RELATIVE_TIME}) != len(every) + 2:
        _refuse("names a feature twice, or one like the target")
    _check_target(root.child("target"))
    root.child("encoders").end()
    levels = _levels(root)
    manifest = Manifest(
        name=_name(root.take("name", str), "name"),
        past=past,
        known=known,
        scalers=_scalers(root.child("scalers"), every),
        step=root.integer("step", 1, LARGEST_STEP),
        encoder_length=root.integer("encoder_length", 2, 100_000),
        horizon=root.integer("horizon", 1, 100_000),
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


class _Object:
    """One JSON object, taken apart field by field; `end` refuses whatever was not asked for."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            _refuse(f"must have an object at {where or 'its top'}")
        self._fields: dict[str, object] = dict(value)
        self._where = where

    def _path(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name

    def take(self, name: str, kind: type[T]) -> T:
        if name not in self._fields:
            _refuse(f"lacks {self._path(name)}")
        value = self._fields.pop(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            _refuse(f"must have a {kind.__name__} at {self._path(name)}")
        return value

    def child(self, name: str) -> _Object:
        return _Object(self.take(name, dict), self._path(name))

    def free(self, name: str) -> Mapping[str, object]:
        value: dict[str, object] = self.take(name, dict)
        return value

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.take(name, int)
        if not low <= value <= high:
            _refuse(f"must have a number from {low} to {high} at {self._path(name)}, not {value}")
        return value

    def number(self, name: str) -> float:
        value = self._fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            self._fields[name] = float(value) if abs(value) < 2**53 else math.inf
        number = self.take(name, float)
        if not math.isfinite(number):
            _refuse(f"must have a finite number at {self._path(name)}")
        return number

    def names(self, name: str) -> tuple[str, ...]:
        return tuple(_name(item, self._path(name)) for item in self.take(name, list))

    def strings(self) -> Mapping[str, str]:
        return {name: self.take(name, str) for name in self.keys()}

    def sha256(self, name: str) -> str:
        value = self.take(name, str)
        if not _SHA256.fullmatch(value):
            _refuse(f"must have 64 lower-case hexadecimal digits at {self._path(name)}")
        return value

    def keys(self) -> tuple[str, ...]:
        return tuple(self._fields)

    def end(self) -> None:
        if self._fields:
            _refuse(f"has unknown fields: {', '.join(self._path(name) for name in self._fields)}")


def _name(value: object, where: str) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value.replace("-", "_")):
        _refuse(f"must have names of letters, digits and _ at {where}, not {value!r}")
    return value


def _check_target(target: _Object) -> None:
    target.take("description", str)
    if target.take("name", str) != TARGET or target.take("normalizer", str) != NORMALIZER:
        _refuse(f"has another target than {TARGET} with the {NORMALIZER} normalizer")
    target.end()


def _levels(root: _Object) -> tuple[float, ...]:
    levels = root.take("levels", list)
    if not all(isinstance(level, float) and 0 < level < 1 for level in levels) or len(levels) > 99:
        _refuse("must have probabilities between 0 and 1 at levels")
    if any(b <= a for a, b in itertools.pairwise(levels)) or 0.5 not in levels:
        _refuse("must have increasing levels with 0.5 among them")
    return tuple(levels)


def _scalers(scalers: _Object, features: tuple[str, ...]) -> Mapping[str, Scaler]:
    found = {}
    for name in features:
        scaler = scalers.child(name)
        found[name] = Scaler(center=scaler.number("center"), scale=scaler.number("scale"))
        scaler.end()
        if found[name].scale <= 0:
            _refuse(f"must have a scale above 0 at scalers.{name}")
    scalers.end()
    return found


def _network(network: _Object, past: tuple[str, ...], known: tuple[str, ...], outputs: int) -> Network:
    found = Network(
        hidden_size=network.integer("hidden_size", 1, 4096),
        hidden_continuous_size=network.integer("hidden_continuous_size", 1, 4096),
        attention_heads=network.integer("attention_heads", 1, 256),
        lstm_layers=network.integer("lstm_layers", 1, 16),
        encoder_reals=network.names("encoder_reals"),
        decoder_reals=network.names("decoder_reals"),
        outputs=network.integer("outputs", 1, 99),
    )
    network.end()
    if (found.encoder_reals, found.decoder_reals) != network_reals(past, known) or found.outputs != outputs:
        _refuse("has a network whose variables or outputs differ from its features and levels")
    if found.attention_heads > found.hidden_size:
        _refuse("has more attention heads than hidden units")
    return found


def _training(training: _Object) -> Training:
    found = Training(
        start=training.integer("start", 0, 2**40),
        end=training.integer("end", 0, 2**40),
        rows=training.integer("rows", 1, 2**40),
        data_sha256=training.sha256("data_sha256"),
        source=training.take("source", str),
        synthetic=training.take("synthetic", bool),
        created=training.integer("created", 0, 2**40),
        parts=training.free("parts"),
        config=training.free("config"),
    )
    try:
        times = iso(found.start), iso(found.end)
    except (ValueError, OverflowError, OSError):
        _refuse("has a training interval beyond the calendar")
    if (training.take("start_iso", str), training.take("end_iso", str)) != times or found.start >= found.end:
        _refuse("has a training interval that contradicts itself")
    training.end()
    return found


def _files(files: _Object) -> Mapping[str, FileRecord]:
    if set(files.keys()) != {WEIGHTS, CANARY}:
        _refuse(f"must describe exactly the files {WEIGHTS} and {CANARY}")
    found = {}
    for name in files.keys():  # noqa: SIM118  # not a dict: it is emptied field by field
        record = files.child(name)
        found[name] = FileRecord(record.sha256("sha256"), record.integer("size", 1, 2**40))
        record.end()
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key appears twice in one object")
    return found


def _refuse(what: str) -> NoReturn:
    raise BundleError(f"The bundle's manifest.json {what}.", check="schema")
