"""The directory of a bundle: read its files, with bounded sizes and checked hashes, or write them whole or not at all.

Invariant: nothing is ever unpickled, and the bytes that were hashed are the bytes that are parsed. The kind of model
is not known here: the caller gives the parser of the manifest and the shapes of the arrays.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bundle.records import CANARY, WEIGHTS, FileRecord
from models.errors import BundleError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # of a safetensors file, in addition to its numbers

Shapes = Mapping[str, tuple[int, ...]]
ManifestT = TypeVar("ManifestT")
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


def load_manifest(path: Path, parse: Callable[[bytes, str], ManifestT]) -> ManifestT:
    """The manifest of the bundle at `path`, from `parse(content, sha256)`. Reads no other file.

    Raises:
        BundleError: there is no bundle, it is a pickle, or its manifest is not valid.
    """
    try:
        _check_directory(path)
    except OSError as error:
        fail("missing", f"Cannot read {path}: {error.strerror}. Check the path and its permissions.")
    content = read_manifest_bytes(path)
    try:
        return parse(content, hashlib.sha256(content).hexdigest())
    except BundleError as error:
        raise BundleError(f"The bundle {path}: {error.args[0]}", check=error.check) from error


def read_manifest_bytes(path: Path) -> bytes:
    """The bytes of `manifest.json` of the bundle at `path`. Raises BundleError."""
    return read_file(path, MANIFEST, MAX_MANIFEST_BYTES)


def read_arrays(
    path: Path, files: Mapping[str, FileRecord], weights: Shapes, canary: Shapes
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float64]]]:
    """The arrays of the two files of a bundle, with exactly these names and shapes; every hash and number is checked.

    Raises:
        BundleError: a check failed; the error names it.
    """
    contents = {
        WEIGHTS: read_verified(path, files[WEIGHTS], WEIGHTS, weights, 4),
        CANARY: read_verified(path, files[CANARY], CANARY, canary, 8),
    }
    return (
        parse_tensors(path, WEIGHTS, contents[WEIGHTS], weights, np.float32),
        parse_tensors(path, CANARY, contents[CANARY], canary, np.float64),
    )


def write_arrays(
    path: Path,
    weights: Mapping[str, NDArray[Any]],
    canary: Mapping[str, NDArray[Any]],
    describe: Callable[[Mapping[str, FileRecord]], bytes],
    parse: Callable[[bytes, str], ManifestT],
    *,
    replace_old: bool,
) -> ManifestT:
    """Write a bundle, whole or not at all, and return its manifest as `load_manifest` will read it.

    `describe` makes the bytes of the manifest from the records of the files; `parse` refuses a manifest that could
    not be read again.

    Raises:
        BundleError: (check "exists") `path` exists and `replace_old` is false; or an error of `parse`.
        OSError: the disk is full, or `path` may not be written.
    """
    from safetensors.numpy import save

    if not replace_old and path.exists():
        fail("exists", f"{path} exists already. Choose another path, or replace it with --force.")
    contents = {
        WEIGHTS: save({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}),
        CANARY: save({name: np.ascontiguousarray(value, dtype=np.float64) for name, value in canary.items()}),
    }
    files = {name: FileRecord(hashlib.sha256(content).hexdigest(), len(content)) for name, content in contents.items()}
    contents[MANIFEST] = describe(files)
    manifest = parse(contents[MANIFEST], hashlib.sha256(contents[MANIFEST]).hexdigest())
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_directory(path, contents)
    return manifest


def copy_files(source: Path, target: Path, manifest: bytes, files: Mapping[str, FileRecord]) -> None:
    """Copy a bundle, whole or not at all: the bytes of its manifest and these files, if their hashes are right.

    Raises:
        BundleError: a file is missing or was changed.
        OSError: the disk is full, or `target` may not be written.
    """
    contents = {name: read_file(source, name, record.size) for name, record in files.items()}
    for name, record in files.items():
        if hashlib.sha256(contents[name]).hexdigest() != record.sha256:
            fail("hash", f"{source / name} was changed since the bundle was loaded: its hash is not the manifest's.")
    contents[MANIFEST] = manifest
    target.parent.mkdir(parents=True, exist_ok=True)
    _write_directory(target, contents)


def unknown_files(path: Path, files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """The names of files in the bundle that are not in its manifest. They are never read."""
    return tuple(sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *files}))


def _write_directory(path: Path, contents: Mapping[str, bytes]) -> None:
    """Create or replace the directory `path` with these files."""
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
    """Rename the finished directory to `path`. The old one is removed last, and restored when the rename fails."""
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
        fail("missing", f"There is no model at {path}. Check the path, or train one with `forecastd train`.")
    if not path.is_dir():
        if path.suffix in _PICKLE_SUFFIXES or (path.is_file() and _is_pickle(_read_head(path))):
            fail("pickle", _pickle_message(path))
        fail("missing", f"{path} is a file, not a bundle. Give the directory that holds {MANIFEST}.")
    if not (path / MANIFEST).exists():
        pickles = sorted(entry.name for entry in path.iterdir() if entry.suffix in _PICKLE_SUFFIXES)
        if pickles:
            fail("pickle", _pickle_message(path / pickles[0]))
        fail("missing", f"{path} is not a bundle: it has no {MANIFEST}. Train one with `forecastd train`.")


def _pickle_message(path: Path) -> str:
    return (
        f"{path} is a checkpoint or pickle, which can run code when it is opened. It was not opened. "
        "Models are bundles (safetensors and JSON): train one with `forecastd train`."
    )


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _is_pickle(head: bytes) -> bool:
    # 0x80 and a protocol number up to 5 start a pickle; a safetensors file starts with its header's length.
    binary = head.startswith(_PICKLE) and len(head) > 1 and head[1] <= 5 and head[2:8] != b"\0" * 6
    return binary or head.startswith((_ZIP, _OLD_PICKLE))


def read_file(path: Path, name: str, limit: int) -> bytes:
    """The bytes of a regular file inside the bundle, at most `limit` of them."""
    target = (path / name).resolve()
    if not target.is_relative_to(path.resolve()):
        fail("missing", f"{path / name} is a link to a file outside the bundle. Copy the file into the bundle.")
    try:
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        fail("missing", f"The bundle {path} lacks {name}. Restore it, or train the model again.")
    except OSError as error:
        fail("missing", f"Cannot read {path / name}: {error.strerror}. Check the file and its permissions.")
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            fail("missing", f"{path / name} is not a regular file. Restore it, or train the model again.")
        content = file.read(limit + 1)
    if len(content) > limit:
        check = "schema" if name == MANIFEST else "hash"
        fail(
            check, f"{path / name} is larger than the {limit} bytes it may have. Restore it, or train the model again."
        )
    return content


def read_verified(
    path: Path, record: FileRecord, name: str, shapes: Mapping[str, tuple[int, ...]], width: int
) -> bytes:
    """The bytes of a file, with the size and the hash of the manifest."""
    numbers = width * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    if not numbers <= record.size <= numbers + MAX_HEADER_BYTES + 256 * len(shapes):
        fail(
            "schema",
            f"The manifest of {path} records an impossible size of {name} for its network. Train the model again.",
        )
    content = read_file(path, name, record.size)
    if hashlib.sha256(content).hexdigest() != record.sha256:
        if _is_pickle(content[:8]):
            fail("pickle", _pickle_message(path / name))
        what = f"is truncated: {len(content)} of {record.size} bytes" if len(content) < record.size else "was changed"
        fail("hash", f"{path / name} {what}: its hash is not the manifest's. Restore it, or train the model again.")
    return content


def parse_tensors(
    path: Path, name: str, content: bytes, shapes: Mapping[str, tuple[int, ...]], dtype: type[Scalar]
) -> dict[str, NDArray[Scalar]]:
    """The arrays of a safetensors file, with exactly these names and shapes and this type, all finite."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if _is_pickle(content[:8]):
        fail("pickle", _pickle_message(path / name))
    try:
        arrays = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        fail("weights", f"{path / name} is not a safetensors file ({error}). Train the model again.")
    missing, unknown = sorted(shapes.keys() - arrays.keys()), sorted(arrays.keys() - shapes.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"contains the unknown {unknown[0]}"
        fail("weights", f"{path / name} {what}: it does not match the network in the manifest. Train the model again.")
    for key, shape in shapes.items():
        array = arrays[key]
        if array.shape != shape or array.dtype != dtype:
            fail(
                "weights",
                f"{key} in {path / name} is {array.dtype}{list(array.shape)}, not {np.dtype(dtype)}{list(shape)}. "
                "Train the model again.",
            )
        if not np.isfinite(array).all():
            fail("finite", f"{key} in {path / name} contains a number that is not finite. Train the model again.")
    return arrays


def fail(check: str, message: str) -> NoReturn:
    raise BundleError(message, check=check)
