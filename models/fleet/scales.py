"""Fit the scales of a fleet's groups: pytorch_forecasting's GroupNormalizer on the train part alone.

Only training imports this module. Invariant: the row of a group is looked up by its name, never by a position. The
library's own encoders shift the codes, see `test_library_second_encoder_mixes_up_scales`.
"""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd

from models.fleet.dataset import FleetData
from models.fleet.manifest import DEFAULT_GROUP
from models.fleet.scaling import GroupScales, MetricTransform

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations between third parties, at import
    from pytorch_forecasting.data.encoders import GroupNormalizer

SERVER_PREFIX, PROFILE_PREFIX = "server:", "profile:"
# A scale is never smaller than the least that a metric plausibly moves, as a share of its range or in log(1 + x). Without the
# limit, the first change of a metric that was constant in training would be far beyond all that the network has seen.
MIN_SHARE, MIN_LOG = 2e-3, 1e-2
MIN_GLOBAL_SHARE = 0.03  # nor smaller than this share of the scale of all servers


def fit_groups(data: FleetData, stop: int, min_ticks: int) -> GroupScales:
    """Center and scale of each server observed at `min_ticks` or more of the first `stop` ticks, each profile, and all."""
    values = MetricTransform(data.metrics)(data.values[:, :stop])
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
    min_scale = np.array([
        MIN_LOG if metric.transform == "log1p" else MIN_SHARE * (metric.high - metric.low) for metric in data.metrics
    ])  # fmt: skip
    scale = np.maximum(scale, np.maximum(min_scale, MIN_GLOBAL_SHARE * scale[-1]))
    return GroupScales(names, center.astype(np.float32), scale.astype(np.float32))
