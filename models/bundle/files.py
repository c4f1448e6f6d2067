"""The directory of a bundle: read its files, with bounded sizes, or write them whole or not at all.

Invariant: a file that may be a pickle is never opened as one. The kind of model is not known here.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from models.bundle.records import FileRecord
from models.errors import BundleError

MANIFEST = "manifest.json"
MAX_MANIFEST_BYTES = 1 << 20

_PICKLE_SUFFIXES = {
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
}
_ZIP, _PICKLE, _OLD_PICKLE = b"PK\x03\x04", b"\x80", b"(dp"


def read_manifest_bytes(path: Path) -> bytes:
    """The bytes of `manifest.json` of the bundle at `path`. Raises BundleError."""
    return read_file(path, MANIFEST, MAX_MANIFEST_BYTES)


def unknown_files(path: Path, files: Mapping[str, FileRecord]) -> tuple[str, ...]:
    """The names of files in the bundle that are not in its manifest. They are never read."""
    return tuple(sorted({entry.name for entry in path.iterdir()} - {MANIFEST, *files}))


def write_directory(path: Path, contents: Mapping[str, bytes]) -> None:
    """Create or replace the directory `path` with these files, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        for name, content in contents.items():
            with (staging / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
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


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_directory(path: Path) -> None:
    """Refuse a path that is not the directory of a bundle. Raises BundleError (check "missing" or "pickle")."""
    try:
        if not path.exists():
            fail("missing", f"There is no model at {path}. Check the path, or train one with `forecastd train`.")
        if not path.is_dir():
            if path.suffix in _PICKLE_SUFFIXES or (path.is_file() and is_pickle(_read_head(path))):
                refuse_pickle(path)
            fail("missing", f"{path} is a file, not a bundle. Give the directory that holds {MANIFEST}.")
        if not (path / MANIFEST).exists():
            for entry in sorted(path.iterdir()):
                if entry.suffix in _PICKLE_SUFFIXES:
                    refuse_pickle(entry)
            fail("missing", f"{path} is not a bundle: it has no {MANIFEST}. Train one with `forecastd train`.")
    except OSError as error:
        fail("missing", f"Cannot read {path}: {error.strerror}. Check the path and its permissions.")


def refuse_pickle(path: Path) -> NoReturn:
    """Raise the error for a file that looks like a pickle."""
    fail(
        "pickle",
        f"{path} is a checkpoint or pickle, which can run code when it is opened. It was not opened. "
        "Models are bundles (safetensors and JSON): train one with `forecastd train`.",
    )


def _read_head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins with `head` looks like a pickle, or like an archive with one."""
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
        message = f"{path / name} is larger than the {limit} bytes it may have. Restore it, or train the model again."
        fail("schema" if name == MANIFEST else "hash", message)
    return content


def fail(check: str, message: str) -> NoReturn:
    """Raise the error of this check."""
    raise BundleError(message, check=check)
