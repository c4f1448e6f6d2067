"""The manifest of a bundle as strict JSON: everything about a model except its arrays.

Reading one needs the standard library only and opens no other file. Invariant: a manifest is either completely valid
or not used. A field that is missing, unknown, of the wrong type or out of bounds is refused, and the error names it.
"""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from models.bundle.fields import StrictFields, check_name, parse_object, refuse
from models.bundle.files import check_directory, read_manifest_bytes
from models.bundle.records import (
    MAX_SIZES,
    MAX_STEP_SECONDS,
    FileRecord,
    TrainingRecord,
    read_files,
    read_levels,
    read_training,
    training_json,
)
from models.errors import BundleError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The fields that every kind of manifest has; a kind adds its own.

    `step` in seconds; `levels` increasing, with 0.5; `scores` of the validation and the test part; `sha256` of its own
    bytes. `KIND`: the field `kind` of the file. `FIELDS`: the fields of the file, in their order. `SCORES`: the name of
    the scores in the file.
    """

    KIND: ClassVar[str]
    FIELDS: ClassVar[tuple[str, ...]]
    SCORES: ClassVar[str] = "scores"

    name: str
    step: int
    encoder_length: int
    horizon: int
    levels: tuple[float, ...]
    training: TrainingRecord
    versions: Mapping[str, str]
    scores: Mapping[str, object]
    files: Mapping[str, FileRecord]
    sha256: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The manifest of the bundle at `path`. Neither reads nor checks the other files.

        Raises:
            BundleError: there is no bundle, it is a pickle or of another kind, or its manifest is not valid.
        """
        return _read(path, cls.parse)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read the bytes of `manifest.json`.

        Raises:
            BundleError: (check "schema") not JSON, of another kind, or a field is not valid; the message names it.
        """
        root = parse_object(content)
        if (schema := root.take("schema", int)) != SCHEMA:
            refuse(f"has schema {schema}; this version reads schema {SCHEMA}", "Use the version that wrote it.")
        if (kind := root.take("kind", str)) != cls.KIND:
            cls.refuse_kind(kind)
        manifest = cls(
            name=check_name(root.take("name", str), "name"),
            step=root.integer("step", 1, MAX_STEP_SECONDS),
            encoder_length=root.integer("encoder_length", 2, MAX_SIZES["encoder_length"]),
            horizon=root.integer("horizon", 1, MAX_SIZES["horizon"]),
            levels=read_levels(root),
            training=read_training(root.child("training")),
            versions=root.child("versions").strings(),
            scores=root.mapping(cls.SCORES),
            files=read_files(root.child("files")),
            sha256=hashlib.sha256(content).hexdigest(),
            **cls.read_own(root),
        )
        root.expect_empty()
        manifest.check()
        return manifest

    def to_json(self) -> bytes:
        """The bytes of `manifest.json`, without `sha256`, which is their hash."""
        fields = {
            **vars(self),
            "schema": SCHEMA,
            "kind": self.KIND,
            self.SCORES: self.scores,
            "training": training_json(self.training),
            "versions": dict(self.versions),
            "files": {name: vars(record) for name, record in self.files.items()},
            **self.own_json(),
        }
        document = {name: fields[name] for name in self.FIELDS}
        return (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()

    @classmethod
    @abstractmethod
    def refuse_kind(cls, kind: str) -> NoReturn:
        """Raise the error for a bundle of another kind."""

    @classmethod
    @abstractmethod
    def read_own(cls, root: StrictFields) -> dict[str, Any]:
        """Read the fields that only this kind has, as arguments of its class."""

    @abstractmethod
    def own_json(self) -> dict[str, object]:
        """The fields of the file that are not just the attributes of their names."""

    @abstractmethod
    def check(self) -> None:
        """Refuse fields that contradict each other."""


ManifestT = TypeVar("ManifestT", bound=Manifest)
T = TypeVar("T")


def read_kind(path: Path) -> str:
    """The kind of the bundle at `path`, by its manifest. Nothing else of the bundle is checked.

    Raises:
        BundleError: there is no bundle, or its manifest is not valid JSON.
    """
    return _read(path, lambda content: parse_object(content).take("kind", str))


def _read(path: Path, parse: Callable[[bytes], T]) -> T:
    check_directory(path)
    content = read_manifest_bytes(path)
    try:
        return parse(content)
    except BundleError as error:
        raise BundleError(f"The bundle {path}: {error.args[0]}", check=error.check) from error
