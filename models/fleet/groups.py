"""The scales of a fleet's bundle: pytorch_forecasting's GroupNormalizer, fitted on the training part and on nothing else.

Only training imports this module. A group's row is found by its name, never by a position: see the trap of shifted codes in
`tests/integration/test_fleet_groups.py`.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.fleet.base import Floats
from models.fleet.data import FleetData
from models.fleet.manifest import DEFAULT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what third parties deprecate inside each other while they are imported
    from pytorch_forecasting.data.encoders import GroupNormalizer

SERVER, PROFILE = "server:", "profile:"
# What a metric plausibly moves at the least, as a share of its range, or in log(1 + x): a scale is never smaller, or the
# first change of a metric that stood still throughout the training would be beyond everything the network has seen.
LEAST_SHARE, LEAST_LOG = 2e-3, 1e-2
LEAST_OF_ALL = 0.03  # nor smaller than this share of the scale of all servers


@dataclass(frozen=True, eq=False)
class Groups:
    """Names of the groups, and center and scale `[G, M]` of each, after the metrics' transformations."""

    names: tuple[str, ...]
    center: Floats
    scale: Floats

    def row(self, name: str) -> int:
        """Where a group stands."""
        return self.names.index(name)


def fit_groups(data: FleetData, stop: int, least: int) -> Groups:
    """Center and scale of each server that was observed at `least` ticks of the first `stop`, of each profile, and of all."""
    values = transformed(data, slice(0, stop))
    seen = np.isfinite(values).all(axis=2).sum(axis=1) >= least
    servers = [f"{SERVER}{name}" for name, enough in zip(data.servers, seen, strict=True) if enough]
    profiles = [f"{PROFILE}{name}" for name in dict.fromkeys(data.profiles)]
    names = (*servers, *profiles, DEFAULT)
    center, scale = np.zeros((len(names), len(data.metrics))), np.ones((len(names), len(data.metrics)))
    keys = pd.DataFrame({
        "server": pd.Categorical(np.repeat([f"{SERVER}{name}" for name in data.servers], stop)),
        "profile": pd.Categorical(np.repeat([f"{PROFILE}{name}" for name in data.profiles], stop)),
    })  # fmt: skip
    for metric in range(len(data.metrics)):
        column = pd.Series(values[:, :, metric].reshape(-1).astype(np.float64))
        there = column.notna().to_numpy()
        y, x = column[there], keys[there]
        overall = GroupNormalizer().fit(y, x).norm_
        center[:, metric], scale[:, metric] = overall["center"], overall["scale"]
        for key in ("server", "profile"):
            table = GroupNormalizer(groups=[key]).fit(y, x).norm_.dropna()
            for place, name in enumerate(names):
                if name in table.index:
                    center[place, metric], scale[place, metric] = table.loc[name, ["center", "scale"]]
    least_scale = np.array([
        LEAST_LOG if metric.transform == "log1p" else LEAST_SHARE * (metric.high - metric.low) for metric in data.metrics
    ])  # fmt: skip
    scale = np.maximum(scale, np.maximum(least_scale, LEAST_OF_ALL * scale[-1]))
    return Groups(names, center.astype(np.float32), scale.astype(np.float32))


def transformed(data: FleetData, ticks: slice) -> Floats:
    """The values of these ticks within the metrics' bounds, in log(1 + x) where a metric says so: what groups scale."""
    return transform(data.values[:, ticks], data)


def transform(values: NDArray[np.float32], data: FleetData) -> Floats:
    """Values `[..., M]` within the metrics' bounds, in log(1 + x) where a metric says so."""
    low, high = (np.array([getattr(one, end) for one in data.metrics], dtype=np.float32) for end in ("low", "high"))
    found = np.clip(values, low, high)
    logarithmic = np.array([metric.transform == "log1p" for metric in data.metrics])
    found[..., logarithmic] = np.log1p(found[..., logarithmic])
    return found
