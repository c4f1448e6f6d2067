"""Scales of groups: each server has that of its own data, in any order; later data has no influence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.fleet.dataset import FleetData
from models.fleet.manifest import DEFAULT_GROUP, ModelMetric
from models.fleet.scaling import GroupScales

EPS = float(np.finfo(np.float16).eps)  # pytorch_forecasting adds it to every scale
STOP = 300


@pytest.fixture(scope="module")
def data() -> FleetData:
    """Nine servers with different levels and spreads and unsorted names; after tick STOP all values are different."""
    rng = np.random.default_rng(0)
    names = ("web-9", "db-1", "web-10", "a", "Z", "web-1", "db-10", "m.x", "n:1")
    level, spread = rng.uniform(20, 70, (9, 1, 1)), rng.uniform(1, 8, (9, 1, 1))
    values = (level + spread * rng.standard_normal((9, 400, 2))).astype(np.float32)
    values[:, STOP:] += 1000
    values[3, 5:20, 0] = np.nan
    return FleetData(
        servers=names,
        profiles=("web", "db", "web", "a", "a", "web", "db", "solo", "db"),
        metrics=(ModelMetric("plain", "%", 0, 110, "none"), ModelMetric("tail", "ms", 0, 1e6, "log1p")),
        first=0,
        step=5,
        values=values,
        max_gap=6,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


def fit_groups(data: FleetData, stop: int, min_ticks: int) -> GroupScales:
    """`models.fleet.scales.fit_groups`, which imports pandas and pytorch_forecasting."""
    from models.fleet import scales

    return scales.fit_groups(data, stop, min_ticks)


@pytest.fixture(scope="module")
def groups(data: FleetData) -> GroupScales:
    return fit_groups(data, STOP, 100)


def expected_scale(data: FleetData, servers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of these servers' own training data, by numpy alone."""
    observed = data.values[servers, :STOP].astype(float)
    observed[..., 1] = np.log1p(observed[..., 1])
    flat = observed.reshape(-1, 2)
    count = np.isfinite(flat).sum(axis=0)
    return np.nanmean(flat, axis=0), np.nanstd(flat, axis=0) * np.sqrt(count / (count - 1)) + EPS


def test_fit_groups_server_scale_is_from_its_own_data(data: FleetData, groups: GroupScales) -> None:
    for row, name in enumerate(data.servers):
        center, scale = expected_scale(data, [row])
        index = groups.row(f"server:{name}")
        assert groups.center[index] == pytest.approx(center, rel=1e-4)
        assert groups.scale[index] == pytest.approx(scale, rel=1e-3)


def test_fit_groups_profile_and_default_scales_pool_their_servers(data: FleetData, groups: GroupScales) -> None:
    for profile in set(data.profiles):
        members = [row for row, other in enumerate(data.profiles) if other == profile]
        center, scale = expected_scale(data, members)
        index = groups.row(f"profile:{profile}")
        assert groups.center[index] == pytest.approx(center, rel=1e-4)
        assert groups.scale[index] == pytest.approx(scale, rel=1e-3)
    center, scale = expected_scale(data, list(range(9)))
    assert groups.names[-1] == DEFAULT_GROUP
    assert groups.center[-1] == pytest.approx(center, rel=1e-4)
    assert groups.scale[-1] == pytest.approx(scale, rel=1e-3)


def test_fit_groups_reordered_servers_gives_same_scales(data: FleetData, groups: GroupScales) -> None:
    order = np.random.default_rng(1).permutation(9)
    shuffled = replace(
        data,
        servers=tuple(data.servers[row] for row in order),
        profiles=tuple(data.profiles[row] for row in order),
        values=data.values[order],
    )
    again = fit_groups(shuffled, STOP, 100)
    assert set(again.names) == set(groups.names)
    for name in groups.names:
        assert again.center[again.row(name)] == pytest.approx(groups.center[groups.row(name)], rel=1e-5)
        assert again.scale[again.row(name)] == pytest.approx(groups.scale[groups.row(name)], rel=1e-5)


def test_fit_groups_short_history_gives_no_own_scale(data: FleetData) -> None:
    values = data.values.copy()
    values[4, 90:STOP] = np.nan
    few = fit_groups(replace(data, values=values), STOP, 100)
    assert "server:Z" not in few.names
    assert "profile:a" in few.names
    assert not [name for name in fit_groups(data, STOP, STOP + 1).names if name.startswith("server:")]


def test_fit_groups_constant_metric_has_minimum_scale(data: FleetData) -> None:
    from models.fleet.scales import MIN_GLOBAL_SHARE, MIN_LOG, MIN_SHARE

    values = data.values.copy()
    values[5] = 3.0
    still = fit_groups(replace(data, values=values), STOP, 100)
    scale = still.scale[still.row("server:web-1")]
    assert scale == pytest.approx(np.maximum([MIN_SHARE * 110, MIN_LOG], MIN_GLOBAL_SHARE * still.scale[-1]))
    nothing_moves = fit_groups(replace(data, values=np.full_like(values, 3.0)), STOP, 100)
    assert (nothing_moves.scale >= np.array([MIN_SHARE * 110, MIN_LOG], np.float32)).all()
