"""Arrays of a bundle as safetensors files: exactly the names, the shapes and the type that the manifest implies, all finite.

Invariant: nothing is ever unpickled, and the bytes that were hashed are the bytes that are parsed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from models.bundle.files import fail, is_pickle, read_file, refuse_pickle
from models.bundle.records import FileRecord

MAX_HEADER_BYTES = 1 << 20  # of a safetensors file, in addition to its numbers

Shapes = Mapping[str, tuple[int, ...]]
Scalar = TypeVar("Scalar", np.float32, np.float64)


def read_arrays(
    path: Path, name: str, record: FileRecord, shapes: Shapes, dtype: type[Scalar]
) -> dict[str, NDArray[Scalar]]:
    """The arrays of a file in the bundle at `path`, after its size, its hash and every array were checked.

    Raises:
        BundleError: a check failed; the error names it.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = _read_verified(path, name, record, shapes, np.dtype(dtype).itemsize)
    if is_pickle(content[:8]):
        refuse_pickle(path / name)
    try:
        arrays: dict[str, NDArray[Scalar]] = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        fail("weights", f"{path / name} is not a safetensors file ({error}). Train the model again.")
    if unequal := sorted(shapes.keys() ^ arrays.keys()):
        what = "lacks" if unequal[0] in shapes else "contains the unknown"
        fail(
            "weights",
            f"{path / name} {what} {unequal[0]}: it does not match the network in the manifest. Train the model again.",
        )
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


def _read_verified(path: Path, name: str, record: FileRecord, shapes: Shapes, width: int) -> bytes:
    """The bytes of a file, with the size and the hash of the manifest."""
    numbers = width * sum(int(np.prod(shape, dtype=np.int64)) for shape in shapes.values())
    if not numbers <= record.size <= numbers + MAX_HEADER_BYTES + 256 * len(shapes):
        fail(
            "schema",
            f"The manifest of {path} records an impossible size of {name} for its network. Train the model again.",
        )
    content = read_file(path, name, record.size)
    if hashlib.sha256(content).hexdigest() != record.sha256:
        if is_pickle(content[:8]):
            refuse_pickle(path / name)
        what = f"is truncated: {len(content)} of {record.size} bytes" if len(content) < record.size else "was changed"
        fail("hash", f"{path / name} {what}: its hash is not the manifest's. Restore it, or train the model again.")
    return content


def dump_arrays(arrays: Mapping[str, NDArray[Any]], dtype: type[Scalar]) -> bytes:
    """A safetensors file with these arrays as numbers of this type."""
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(value, dtype=dtype) for name, value in arrays.items()})
