"""A bundle: a directory with everything one model is, checked whole before anything in it is used.

`manifest.json` describes the model and holds size and sha256 of the other files; its own sha256 names the bundle.
`weights.safetensors` holds the network's parameters, `canary.safetensors` an input with the output it must give.
Nothing is ever unpickled. Each file is read once, through a bounded read, and the very bytes that were hashed are parsed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.base import FloatArray, ModelInput
from models.errors import BundleError
from models.manifest import CANARY, WEIGHTS, FileRecord, Manifest, parse, to_json
from models.shapes import expected_shapes

MANIFEST = "manifest.json"
MANIFEST_LIMIT = 1 << 20
HEADER_ROOM = 1 << 20  # what a safetensors file may hold beside its numbers

Scalar = TypeVar("Scalar", bound=np.generic)

_PICKLE_SUFFIXES = (
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".bin",
    ".zip",
    ".npy",
    ".npz",
    ".h5",
    ".onnx",
)
_ZIP, _PICKLE, _OLD_PICKLE = b"PK\x03\x04", b"\x80", b"(dp"


@dataclass(frozen=True, eq=False)
class Canary:
    """An input and the quantiles `[H, Q]` that the trained network itself gave for it."""

    inputs: ModelInput
    quantiles: FloatArray


@dataclass(frozen=True, eq=False)
class Bundle:
    """A checked bundle. `sha256` is its manifest's; `ignored` names files the manifest does not know: never read."""

    path: Path
    manifest: Manifest
    sha256: str
    weights: Mapping[str, NDArray[np.float32]]
    canary: Canary
    ignored: tuple[str, ...]


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle at `path`. Reads no other file and proves nothing about them.

    Raises:
        BundleError: missing, a pickle instead of a bundle, or a manifest that is not as it must be.
    """
    try:
        _check_directory(path)
    except OSError as error:
        _fail("missing", f"Cannot look into {path}: {error.strerror}. Check the path and its permissions.")
    content = _read(path, MANIFEST, MANIFEST_LIMIT)
    try:
        return parse(content, hashlib.sha256(content).hexdigest())
    except BundleError as error:
        raise BundleError(f"The bundle {path}: {error.args[0]}", check=error.check) from error


def unknown_files(path: Path, manifest: Manifest) -> tuple[str, ...]:
    """The names of what lies in the bundle and is not in its manifest; none of it is ever read."""
    return tuple(sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *manifest.files}))


def load_bundle(path: Path) -> Bundle:
    """The bundle at `path`, every hash, name, shape and number checked. The canary is compared by `verify_canary`.

    Raises:
        BundleError: whatever is wrong, with the name of the check that found it.
    """
    manifest = read_manifest(path)
    shapes = expected_shapes(manifest.network)
    canary_shapes = _canary_shapes(manifest)
    contents = {
        WEIGHTS: _verified(path, manifest, WEIGHTS, shapes, 4),
        CANARY: _verified(path, manifest, CANARY, canary_shapes, 8),
    }
    weights = _tensors(path, WEIGHTS, contents[WEIGHTS], shapes, np.float32)
    canary = _tensors(path, CANARY, contents[CANARY], canary_shapes, np.float64)
    inputs = ModelInput(
        end=int(canary["end"][0]),
        step=manifest.step,
        target=canary["target"],
        past=canary["past"],
        known=canary["known"],
    )
    return Bundle(
        path=path,
        manifest=manifest,
        sha256=manifest.sha256,
        weights=weights,
        canary=Canary(inputs, canary["quantiles"]),
        ignored=unknown_files(path, manifest),
    )


def write_bundle(
    path: Path,
    manifest: Manifest,
    weights: Mapping[str, NDArray[np.float32]],
    canary: Canary,
    *,
    replace_old: bool = False,
) -> Manifest:
    """Write a bundle, whole or not at all, and return its manifest with the files' hashes and its own.

    `manifest.files` and `manifest.sha256` are made here.

    Raises:
        BundleError: (check "exists") something is there already and `replace_old` is false.
        OSError: the disk is full, or the place may not be written.
    """
    from safetensors.numpy import save

    if not replace_old and path.exists():
        raise BundleError(
            f"{path} exists already. Choose another place, or have it replaced (--force).", check="exists"
        )
    arrays = {
        "end": np.array([canary.inputs.end], dtype=np.float64),
        "target": canary.inputs.target,
        "past": canary.inputs.past,
        "known": canary.inputs.known,
        "quantiles": canary.quantiles,
    }
    contents = {
        WEIGHTS: save({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}),
        CANARY: save({name: np.ascontiguousarray(value, dtype=np.float64) for name, value in arrays.items()}),
    }
    files = {name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()}
    contents[MANIFEST] = to_json(replace(manifest, files=files))
    written = parse(contents[MANIFEST], hashlib.sha256(contents[MANIFEST]).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    _place(path, contents)
    return written


def copy_bundle(source: Path, target: Path, sha256: str) -> None:
    """Copy the bundle `sha256` from `source`: what its manifest knows, whole or not at all, and only with the right hashes.

    Raises:
        BundleError: another bundle or none lies there now, or a file of it is missing or was changed.
        OSError: the disk is full, or `target` may not be written.
    """
    content = _read(source, MANIFEST, MANIFEST_LIMIT)
    manifest = parse(content, hashlib.sha256(content).hexdigest())
    if manifest.sha256 != sha256:
        _fail("hash", f"At {source} lies another bundle than {sha256[:12]} now.")
    contents = {name: _read(source, name, record.size) for name, record in manifest.files.items()}
    for name, record in manifest.files.items():
        if hashlib.sha256(contents[name]).hexdigest() != record.sha256:
            _fail("hash", f"{source / name} was changed since the bundle was loaded: its hash is not the manifest's.")
    contents[MANIFEST] = content
    target.parent.mkdir(parents=True, exist_ok=True)
    _place(target, contents)


def _place(path: Path, contents: Mapping[str, bytes]) -> None:
    """Put a directory with these files at `path`."""
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in contents.items():
            _write(staging / name, content)
        staging.chmod(0o755)
        _sync_directory(staging)
        _swap(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _swap(staging: Path, path: Path) -> None:
    """Put the finished directory in its place; what was there is removed last, and is put back when that fails."""
    old = staging.with_name(f"{staging.name}.old")
    existed = path.exists()
    if existed:
        path.rename(old)
    try:
        staging.rename(path)
    except OSError:
        if existed:
            old.rename(path)
        raise
    _sync_directory(path.parent)
    if existed:
        shutil.rmtree(old) if old.is_dir() else old.unlink()


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_directory(path: Path) -> None:
    if not path.exists():
        _fail("missing", f"There is no model at {path}. Check the path, or train one with `forecastd train`.")
    if not path.is_dir():
        if path.suffix in _PICKLE_SUFFIXES or (path.is_file() and _is_pickle(_head(path))):
            _fail("pickle", _pickle_message(path))
        _fail("missing", f"{path} is a file, not a bundle. Give the directory that holds {MANIFEST}.")
    if not (path / MANIFEST).exists():
        pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
        if pickles:
            _fail("pickle", _pickle_message(path / pickles[0]))
        _fail("missing", f"{path} is not a bundle: it has no {MANIFEST}. Train one with `forecastd train`.")


def _pickle_message(path: Path) -> str:
    return (
        f"{path} is a checkpoint or pickle, which can run code when it is opened; it was not opened. "
        "Models are bundles (safetensors and JSON): train one with `forecastd train`."
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _is_pickle(head: bytes) -> bool:
    # 0x80 and a protocol number up to 5 start a pickle; a safetensors file starts with its header's length.
    binary = head.startswith(_PICKLE) and len(head) > 1 and head[1] <= 5 and head[2:8] != b"\0" * 6
    return binary or head.startswith((_ZIP, _OLD_PICKLE))


def _read(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a regular file inside the bundle, at most `limit` of them."""
    inside = (path / name).resolve()
    if not inside.is_relative_to(path.resolve()):
        _fail("missing", f"{path / name} is a link that leads out of the bundle. Copy the file into the bundle.")
    try:
        descriptor = os.open(inside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        _fail("missing", f"The bundle {path} lacks {name}. Restore it, or train the model again.")
    except OSError as error:
        _fail("missing", f"Cannot read {path / name}: {error.strerror}. Check the file and its permissions.")
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            _fail("missing", f"{path / name} is not a regular file. Restore it, or train the model again.")
        content = file.read(limit + 1)
    if len(content) > limit:
        check = "schema" if name == MANIFEST else "hash"
        _fail(
            check, f"{path / name} is larger than the {limit} bytes it may have. Restore it, or train the model again."
        )
    return content


def _verified(path: Path, manifest: Manifest, name: str, shapes: Mapping[str, tuple[int, ...]], width: int) -> bytes:
    """The bytes of a file whose size and hash are those of the manifest."""
    record = manifest.files[name]
    numbers = width * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    if not numbers <= record.size <= numbers + HEADER_ROOM + 256 * len(shapes):
        _fail(
            "schema", f"The manifest of {path} gives {name} a size that its network cannot have. Train the model again."
        )
    content = _read(path, name, record.size)
    if hashlib.sha256(content).hexdigest() != record.sha256:
        if _is_pickle(content[:8]):
            _fail("pickle", _pickle_message(path / name))
        what = f"is cut off at {len(content)} of {record.size} bytes" if len(content) < record.size else "was changed"
        _fail("hash", f"{path / name} {what}: its hash is not the manifest's. Restore it, or train the model again.")
    return content


def _tensors(
    path: Path, name: str, content: bytes, shapes: Mapping[str, tuple[int, ...]], dtype: type[Scalar]
) -> dict[str, NDArray[Scalar]]:
    """The arrays of a safetensors file, with exactly the names, shapes and type they must have, all finite."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if _is_pickle(content[:8]):
        _fail("pickle", _pickle_message(path / name))
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        _fail("weights", f"{path / name} is not a safetensors file ({error}). Train the model again.")
    missing, unknown = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"holds the unknown {unknown[0]}"
        _fail("weights", f"{path / name} {what}: it is not of the network in the manifest. Train the model again.")
    for key, shape in shapes.items():
        array = arrays[key]
        if array.shape != shape or array.dtype != dtype:
            _fail(
                "weights",
                f"{key} in {path / name} is {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}{list(shape)}. "
                "Train the model again.",
            )
        if not np.isfinite(array).all():
            _fail("finite", f"{key} in {path / name} holds a number that is not finite. Train the model again.")
    return arrays


def _canary_shapes(manifest: Manifest) -> dict[str, tuple[int, ...]]:
    length, horizon = manifest.encoder_length, manifest.horizon
    return {
        "end": (1,),
        "target": (length,),
        "past": (length, len(manifest.past)),
        "known": (length + horizon, len(manifest.known)),
        "quantiles": (horizon, len(manifest.levels)),
    }


def _fail(check: str, message: str) -> NoReturn:
    raise BundleError(message, check=check)
