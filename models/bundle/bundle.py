"""A bundle: a directory, which is checked completely before anything in it is used.

`manifest.json` describes the model and records the size and the sha256 of the other files; its own sha256 identifies
the bundle. `weights.safetensors` holds the parameters of the network, `canary.safetensors` an input and the expected
output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np
from numpy.typing import NDArray

from models.bundle.arrays import Shapes, dump_arrays, read_arrays
from models.bundle.files import MANIFEST, fail, read_file, read_manifest_bytes, unknown_files, write_directory
from models.bundle.manifest import ManifestT
from models.bundle.records import CANARY, WEIGHTS, FileRecord


@dataclass(frozen=True, eq=False)
class Bundle(Generic[ManifestT]):
    """A checked bundle. `canary`: arrays of an input and of the quantiles that the trained network gave for it.

    `ignored`: files that are not in the manifest and are never read.
    """

    path: Path
    manifest: ManifestT
    weights: Mapping[str, NDArray[np.float32]]
    canary: Mapping[str, NDArray[Any]]
    ignored: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The hash of the manifest, which identifies the bundle."""
        return self.manifest.sha256


def load_bundle(path: Path, manifest: ManifestT, weights: Shapes, canary: Shapes) -> Bundle[ManifestT]:
    """The bundle at `path` with this manifest and arrays of these shapes; every hash, name, shape and number is checked.

    Raises:
        BundleError: a check failed; the error names it.
    """
    return Bundle(
        path,
        manifest,
        read_arrays(path, WEIGHTS, manifest.files[WEIGHTS], weights, np.float32),
        read_arrays(path, CANARY, manifest.files[CANARY], canary, np.float64),
        unknown_files(path, manifest.files),
    )


def write_bundle(path: Path, bundle: Bundle[ManifestT], *, replace_old: bool = False) -> ManifestT:
    """Write a bundle at `path`, whole or not at all; returns its manifest as it will be read, with `files` and `sha256`.

    Raises:
        BundleError: (check "exists") `path` exists and `replace_old` is false; or the manifest could not be read again.
        OSError: the disk is full, or `path` may not be written.
    """
    if not replace_old and path.exists():
        fail("exists", f"{path} exists already. Choose another path, or replace it with --force.")
    contents = {WEIGHTS: dump_arrays(bundle.weights, np.float32), CANARY: dump_arrays(bundle.canary, np.float64)}
    files = {name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()}
    content = replace(bundle.manifest, files=files).to_json()
    manifest = bundle.manifest.parse(content)
    write_directory(path, {**contents, MANIFEST: content})
    return manifest


def copy_bundle(source: Path, target: Path, manifest: ManifestT) -> None:
    """Copy the bundle with this manifest, whole or not at all: the manifest and the files in it, with checked hashes.

    Raises:
        BundleError: there is no bundle or another one at `source`, or a file of it is missing or was changed.
        OSError: the disk is full, or `target` may not be written.
    """
    contents = {MANIFEST: read_manifest_bytes(source)}
    if hashlib.sha256(contents[MANIFEST]).hexdigest() != manifest.sha256:
        fail("hash", f"{source} is no longer the bundle {manifest.sha256[:12]}: it was replaced by another one.")
    for name, record in manifest.files.items():
        contents[name] = read_file(source, name, record.size)
        if hashlib.sha256(contents[name]).hexdigest() != record.sha256:
            fail("hash", f"{source / name} was changed since the bundle was loaded: its hash is not the manifest's.")
    write_directory(target, contents)
