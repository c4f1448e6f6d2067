"""The scales of a fleet's bundle: pytorch_forecasting's GroupNormalizer, fitted on the training part and on nothing else.

Only training imports this module. A group's row is found by its name, never by a position: see the trap of shifted codes in
`tests/integration/models/fleet/test_scales.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.fleet.base import Floats
from models.fleet.dataset import FleetData
from models.fleet.manifest import DEFAULT_GROUP

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what third parties deprecate inside each other while they are imported
    from pytorch_forecasting.data.encoders import GroupNormalizer

SERVER_PREFIX, PROFILE_PREFIX = "server:", "profile:"
# What a metric plausibly moves at the least, as a share of its range, or in log(1 + x): a scale is never smaller, or the
# first change of a metric that stood still throughout the training would be beyond everything the network has seen.
MIN_SHARE, MIN_LOG = 2e-3, 1e-2
MIN_GLOBAL_SHARE = 0.03  # nor smaller than this share of the scale of all servers


@dataclass(frozen=True, eq=False)
class GroupScales:
    """Names of the groups, and center and scale `[G, M]` of each, after the metrics' transformations."""

    names: tuple[str, ...]
    center: Floats
    scale: Floats

    def row(self, name: str) -> int:
        """Where a group stands."""
        return self.names.index(name)


def fit_groups(data: FleetData, stop: int, min_ticks: int) -> GroupScales:
    """Center and scale of each server that was observed at `least` ticks of the first `stop`, of each profile, and of all."""
    values = transform_ticks(data, slice(0, stop))
    observed = np.isfinite(values).all(axis=2).sum(axis=1) >= min_ticks
    servers = [f"{SERVER_PREFIX}{name}" for name, enough in zip(data.servers, observed, strict=True) if enough]
    profiles = [f"{PROFILE_PREFIX}{name}" for name in dict.fromkeys(data.profiles)]
    names = (*servers, *profiles, DEFAULT_GROUP)
    center, scale = np.zeros((len(names), len(data.metrics))), np.ones((len(names), len(data.metrics)))
    keys = pd.DataFrame({
        "server": pd.Categorical(np.repeat([f"{SERVER_PREFIX}{name}" for name in data.servers], stop)),
        "profile": pd.Categorical(np.repeat([f"{PROFILE_PREFIX}{name}" for name in data.profiles], stop)),
    })  # fmt: skip
    for metric in range(len(data.metrics)):
        column = pd.Series(values[:, :, metric].reshape(-1).astype(np.float64))
        present = column.notna().to_numpy()
        y, x = column[present], keys[present]
        overall = GroupNormalizer().fit(y, x).norm_
        center[:, metric], scale[:, metric] = overall["center"], overall["scale"]
        for key in ("server", "profile"):
            table = GroupNormalizer(groups=[key]).fit(y, x).norm_.dropna()
            for index, name in enumerate(names):
                if name in table.index:
                    center[index, metric], scale[index, metric] = table.loc[name, ["center", "scale"]]
    least_scale = np.array([
        MIN_LOG if metric.transform == "log1p" else MIN_SHARE * (metric.high - metric.low) for metric in data.metrics
    ])  # fmt: skip
    scale = np.maximum(scale, np.maximum(least_scale, MIN_GLOBAL_SHARE * scale[-1]))
    return GroupScales(names, center.astype(np.float32), scale.astype(np.float32))


def transform_ticks(data: FleetData, ticks: slice) -> Floats:
    """The values of these ticks within the metrics' bounds, in log(1 + x) where a metric says so: what groups scale."""
    return transform(data.values[:, ticks], data)


def transform(values: NDArray[np.float32], data: FleetData) -> Floats:
    """Values `[..., M]` within the metrics' bounds, in log(1 + x) where a metric says so."""
    low, high = (
        np.array([getattr(metric, end) for metric in data.metrics], dtype=np.float32) for end in ("low", "high")
    )
    clipped = np.clip(values, low, high)
    logarithmic = np.array([metric.transform == "log1p" for metric in data.metrics])
    clipped[..., logarithmic] = np.log1p(clipped[..., logarithmic])
    return clipped
