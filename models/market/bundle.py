"""The bundle of a market model: a directory, which is checked completely before anything in it is used.

`manifest.json` describes the model and records the size and the sha256 of the other files; its own sha256 identifies
the bundle. `weights.safetensors` holds the parameters of the network, `canary.safetensors` an input and the expected
output.
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
    """An input, and the quantiles `[H, Q]` that the trained network gave for it."""

    inputs: ModelInput
    quantiles: FloatArray


@dataclass(frozen=True, eq=False)
class MarketBundle:
    """A checked bundle. `sha256`: of its manifest. `ignored`: files that are not in the manifest and are never read."""

    path: Path
    manifest: MarketManifest
    sha256: str
    weights: Mapping[str, NDArray[np.float32]]
    canary: MarketCanary
    ignored: tuple[str, ...]


def read_market_manifest(path: Path) -> MarketManifest:
    """The manifest of the bundle at `path`. Neither reads nor checks the other files.

    Raises:
        BundleError: there is no bundle, it is a pickle, or its manifest is not valid.
    """
    return load_manifest(path, parse)


def load_market_bundle(path: Path) -> MarketBundle:
    """The bundle at `path`; every hash, name, shape and number is checked. `verify_market_canary` runs the canary.

    Raises:
        BundleError: a check failed; the error names it.
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
    """Write a bundle, whole or not at all, and return its manifest with `files` and `sha256` filled in.

    Raises:
        BundleError: (check "exists") `path` exists and `replace_old` is false.
        OSError: the disk is full, or `path` may not be written.
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
    """Copy the bundle `sha256` from `source`, whole or not at all: its manifest and the files in it, with checked hashes.

    Raises:
        BundleError: there is no bundle or another one at `source`, or a file of it is missing or was changed.
        OSError: the disk is full, or `target` may not be written.
    """
    content = read_manifest_bytes(source)
    manifest = parse(content, hashlib.sha256(content).hexdigest())
    if manifest.sha256 != sha256:
        fail("hash", f"{source} is no longer the bundle {sha256[:12]}: it was replaced by another one.")
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
