"""A bundle: a directory with everything one model is, checked whole before anything in it is used.

`manifest.json` describes the model and holds size and sha256 of the other files; its own sha256 names the bundle.
`weights.safetensors` holds the network's parameters, `canary.safetensors` an input with the output it must give.
Nothing is ever unpickled. Each file is read once, through a bounded read, and the very bytes that were hashed are parsed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.base import FloatArray, ModelInput
from models.bundle.files import (
    copy_files,
    fail,
    load_manifest,
    read_arrays,
    read_manifest_bytes,
    unknown_files,
    write_arrays,
)
from models.market.manifest import MarketManifest, parse, to_json
from models.tft.parameters import parameter_shapes


@dataclass(frozen=True, eq=False)
class MarketCanary:
    """An input and the quantiles `[H, Q]` that the trained network itself gave for it."""

    inputs: ModelInput
    quantiles: FloatArray


@dataclass(frozen=True, eq=False)
class MarketBundle:
    """A checked bundle. `sha256` is its manifest's; `ignored` names files the manifest does not know: never read."""

    path: Path
    manifest: MarketManifest
    sha256: str
    weights: Mapping[str, NDArray[np.float32]]
    canary: MarketCanary
    ignored: tuple[str, ...]


def read_market_manifest(path: Path) -> MarketManifest:
    """The manifest of the bundle at `path`. Reads no other file and proves nothing about them.

    Raises:
        BundleError: missing, a pickle instead of a bundle, or a manifest that is not as it must be.
    """
    return load_manifest(path, parse)


def load_market_bundle(path: Path) -> MarketBundle:
    """The bundle at `path`, every hash, name, shape and number checked. The canary is compared by `verify_canary`.

    Raises:
        BundleError: whatever is wrong, with the name of the check that found it.
    """
    manifest = read_market_manifest(path)
    weights, canary = read_arrays(path, manifest.files, parameter_shapes(manifest.network), _canary_shapes(manifest))
    inputs = ModelInput(
        end=int(canary["end"][0]),
        step=manifest.step,
        target=canary["target"],
        past=canary["past"],
        known=canary["known"],
    )
    return MarketBundle(
        path=path,
        manifest=manifest,
        sha256=manifest.sha256,
        weights=weights,
        canary=MarketCanary(inputs, canary["quantiles"]),
        ignored=unknown_files(path, manifest.files),
    )


def write_market_bundle(
    path: Path,
    manifest: MarketManifest,
    weights: Mapping[str, NDArray[np.float32]],
    canary: MarketCanary,
    *,
    replace_old: bool = False,
) -> MarketManifest:
    """Write a bundle, whole or not at all, and return its manifest with the files' hashes and its own.

    `manifest.files` and `manifest.sha256` are made here.

    Raises:
        BundleError: (check "exists") something is there already and `replace_old` is false.
        OSError: the disk is full, or the place may not be written.
    """
    arrays = {
        "end": np.array([canary.inputs.end], dtype=np.float64),
        "target": canary.inputs.target,
        "past": canary.inputs.past,
        "known": canary.inputs.known,
        "quantiles": canary.quantiles,
    }
    return write_arrays(
        path, weights, arrays, lambda files: to_json(replace(manifest, files=files)), parse, replace_old=replace_old
    )


def copy_market_bundle(source: Path, target: Path, sha256: str) -> None:
    """Copy the bundle `sha256` from `source`: what its manifest knows, whole or not at all, and only with the right hashes.

    Raises:
        BundleError: another bundle or none lies there now, or a file of it is missing or was changed.
        OSError: the disk is full, or `target` may not be written.
    """
    content = read_manifest_bytes(source)
    manifest = parse(content, hashlib.sha256(content).hexdigest())
    if manifest.sha256 != sha256:
        fail("hash", f"At {source} lies another bundle than {sha256[:12]} now.")
    copy_files(source, target, content, manifest.files)


def _canary_shapes(manifest: MarketManifest) -> dict[str, tuple[int, ...]]:
    length, horizon = manifest.encoder_length, manifest.horizon
    return {
        "end": (1,),
        "target": (length,),
        "past": (length, len(manifest.past)),
        "known": (length + horizon, len(manifest.known)),
        "quantiles": (horizon, len(manifest.levels)),
    }
