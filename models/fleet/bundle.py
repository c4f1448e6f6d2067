"""The bundle of a fleet model: a network, the scales of its groups, and a canary.

The canary has windows of a few servers: the `tick` of their last step, `values` `[S, L, M]`, `profiles` and `groups` `[S]`
(indices in the lists of the manifest), and `quantiles` `[S, M, Q, H]` in the metrics' units.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.bundle.bundle import Bundle, load_bundle
from models.bundle.files import fail
from models.fleet.base import FleetInput
from models.fleet.manifest import FleetManifest
from models.tft.parameters import parameter_shapes

CENTER_KEY, SCALE_KEY = "groups.center", "groups.scale"  # `[G, M]`: of each group, in transformed metrics
CANARY_SERVERS = 2  # in a canary

FleetBundle = Bundle[FleetManifest]


def load_fleet_bundle(path: Path) -> FleetBundle:
    """The bundle at `path`; every hash, name, shape and number is checked. `verify_fleet_canary` runs the canary.

    Raises:
        BundleError: a check failed; the error names it.
    """
    manifest = FleetManifest.read(path)
    servers, metrics = CANARY_SERVERS, len(manifest.metrics)
    table = len(manifest.groups), metrics
    canary = {
        "tick": (1,),
        "values": (servers, manifest.encoder_length, metrics),
        "profiles": (servers,),
        "groups": (servers,),
        "quantiles": (servers, metrics, len(manifest.levels), manifest.horizon),
    }
    weights = {**parameter_shapes(manifest.network), CENTER_KEY: table, SCALE_KEY: table}
    bundle = load_bundle(path, manifest, weights, canary)
    if not (bundle.weights[SCALE_KEY] > 0).all():
        fail("weights", f"A group in {path} has a scale of 0 or below. Train the model again.")
    for name, count in (("profiles", len(manifest.profiles)), ("groups", len(manifest.groups))):
        if not ((bundle.canary[name] >= 0) & (bundle.canary[name] < count)).all():
            fail("weights", f"The canary in {path} refers to an unknown profile or group. Train the model again.")
    return bundle


def fleet_canary_input(bundle: FleetBundle) -> FleetInput:
    """The canary's windows as an input. The names of its servers select the groups in the canary."""
    manifest, canary = bundle.manifest, bundle.canary
    groups = [manifest.groups[group] for group in canary["groups"].astype(np.int64)]
    return FleetInput(
        tick=int(canary["tick"][0]),
        step=manifest.step,
        servers=tuple(
            name.removeprefix("server:") if name.startswith("server:") else f"canary-{index}"
            for index, name in enumerate(groups)
        ),
        profiles=tuple(manifest.profiles[profile] for profile in canary["profiles"].astype(np.int64)),
        values=canary["values"].astype(np.float32),
        lengths=np.full(len(groups), manifest.encoder_length, dtype=np.int64),
    )
