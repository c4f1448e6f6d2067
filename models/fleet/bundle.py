"""The bundle of a fleet model: a network, the scales of its groups, and a canary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bundle.files import fail, load_manifest, read_arrays, unknown_files, write_arrays
from models.fleet.base import FleetInput
from models.fleet.manifest import FleetManifest, parse, to_json
from models.tft.parameters import parameter_shapes

CENTER_KEY, SCALE_KEY = "groups.center", "groups.scale"
CANARY_SERVERS = 2  # in a canary


@dataclass(frozen=True, eq=False)
class FleetCanary:
    """Windows of a few servers, and the quantiles `[S, M, Q, H]` in the metrics' units that the trained network gave.

    `profiles`, `groups` `[S]`: indices in the lists of the manifest.
    """

    tick: int
    values: NDArray[np.float32]
    profiles: NDArray[np.int64]
    groups: NDArray[np.int64]
    quantiles: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FleetBundle:
    """A checked bundle. `center`, `scale` `[G, M]`: of each group, in transformed metrics. `ignored`: unknown files."""

    path: Path
    manifest: FleetManifest
    weights: Mapping[str, NDArray[np.float32]]
    center: NDArray[np.float32]
    scale: NDArray[np.float32]
    canary: FleetCanary
    ignored: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        return self.manifest.sha256


def read_fleet_manifest(path: Path) -> FleetManifest:
    """The manifest of the bundle at `path`. Neither reads nor checks the other files.

    Raises:
        BundleError: there is no bundle, it is a pickle or of another kind, or its manifest is not valid.
    """
    return load_manifest(path, parse)


def load_fleet_bundle(path: Path) -> FleetBundle:
    """The bundle at `path`; every hash, name, shape and number is checked. `verify_fleet_canary` runs the canary.

    Raises:
        BundleError: a check failed; the error names it.
    """
    manifest = read_fleet_manifest(path)
    table = len(manifest.groups), len(manifest.metrics)
    shapes = {**parameter_shapes(manifest.network), CENTER_KEY: table, SCALE_KEY: table}
    weights, canary = read_arrays(path, manifest.files, shapes, _canary_shapes(manifest))
    center, scale = weights.pop(CENTER_KEY), weights.pop(SCALE_KEY)
    if not (scale > 0).all():
        fail("weights", f"A group in {path} has a scale of 0 or below. Train the model again.")
    profiles, groups = canary["profiles"].astype(np.int64), canary["groups"].astype(np.int64)
    if not (_within(profiles, len(manifest.profiles)) and _within(groups, len(manifest.groups))):
        fail("weights", f"The canary in {path} refers to an unknown profile or group. Train the model again.")
    return FleetBundle(
        path=path,
        manifest=manifest,
        weights=weights,
        center=center,
        scale=scale,
        canary=FleetCanary(
            int(canary["tick"][0]),
            canary["values"].astype(np.float32),
            profiles,
            groups,
            canary["quantiles"].astype(np.float32),
        ),
        ignored=unknown_files(path, manifest.files),
    )


def write_fleet_bundle(path: Path, bundle: FleetBundle, *, replace_old: bool = False) -> FleetManifest:
    """Write a bundle at `path`, whole or not at all, and return its manifest with `files` and `sha256` filled in.

    Raises:
        BundleError: (check "exists") `path` exists and `replace_old` is false.
        OSError: the disk is full, or `path` may not be written.
    """
    canary = bundle.canary
    arrays = {
        "tick": np.array([canary.tick]),
        "values": canary.values,
        "profiles": canary.profiles,
        "groups": canary.groups,
        "quantiles": canary.quantiles,
    }
    return write_arrays(
        path,
        {**bundle.weights, CENTER_KEY: bundle.center, SCALE_KEY: bundle.scale},
        arrays,
        lambda files: to_json(replace(bundle.manifest, files=files)),
        parse,
        replace_old=replace_old,
    )


def canary_input(bundle: FleetBundle) -> FleetInput:
    """The canary's windows as an input. The names of its servers select the groups in the canary."""
    manifest, canary = bundle.manifest, bundle.canary
    servers, profiles = [], []
    for index, (profile, group) in enumerate(zip(canary.profiles, canary.groups, strict=True)):
        name = manifest.groups[group]
        servers.append(name.removeprefix("server:") if name.startswith("server:") else f"canary-{index}")
        profiles.append(manifest.profiles[profile])
    lengths = np.full(len(servers), manifest.encoder_length, dtype=np.int64)
    return FleetInput(canary.tick, manifest.step, tuple(servers), tuple(profiles), canary.values, lengths)


def _within(indices: NDArray[np.int64], count: int) -> bool:
    return bool(((indices >= 0) & (indices < count)).all())


def _canary_shapes(manifest: FleetManifest) -> dict[str, tuple[int, ...]]:
    servers, metrics = CANARY_SERVERS, len(manifest.metrics)
    return {
        "tick": (1,),
        "values": (servers, manifest.encoder_length, metrics),
        "profiles": (servers,),
        "groups": (servers,),
        "quantiles": (servers, metrics, len(manifest.levels), manifest.horizon),
    }
