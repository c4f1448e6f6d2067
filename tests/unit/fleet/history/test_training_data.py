"""The windows that a fleet training run uses: no overlap of the parts, no gaps, and filled like those of the service."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecastd.fleet.window.readiness import MAX_GAP, prepare_input
from models.errors import DataError
from models.fleet.config import FleetTrainingConfig
from models.fleet.dataset import MAX_MISSING, FleetData, carry_forward, split
from models.fleet.manifest import ModelMetric

METRICS = tuple(ModelMetric(name, "%", 0.0, 100.0, "none") for name in ("a", "b"))
CUT = FleetTrainingConfig(encoder_minimum=4, encoder_length=8, horizon=4, validation=0.2, test=0.2)


def history(values: np.ndarray, max_gap: int = MAX_GAP) -> FleetData:
    servers = tuple(f"s{row}" for row in range(len(values)))
    return FleetData(
        servers=servers,
        profiles=("web",) * len(servers),
        metrics=METRICS,
        first=1_000_000,
        step=5,
        values=values.astype(np.float32),
        max_gap=max_gap,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


def data_with_gaps(seed: int, ticks: int = 160, share: float = 0.3) -> np.ndarray:
    """Values of three servers with gaps of all lengths."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(1, 99, (3, ticks, 2)).astype(np.float32)
    for server, metric in itertools.product(range(3), range(2)):
        for _ in range(int(share * ticks / 5)):
            start = rng.integers(0, ticks)
            values[server, start : start + rng.integers(1, 3 * MAX_GAP), metric] = np.nan
    return values


@given(seed=st.integers(0, 10_000), share=st.floats(0, 0.4))
def test_windows_stay_in_part_without_encoder_gaps(seed: int, share: float) -> None:
    data = history(data_with_gaps(seed, share=share))
    filled = carry_forward(data.values, data.max_gap)
    try:
        parts = split(data, filled, CUT)
    except DataError:
        return
    ordered = (parts.train, parts.validation, parts.test)
    for before, after in itertools.pairwise(ordered):
        assert after.start - before.stop == CUT.horizon
    for part in ordered:
        servers, origins = np.divmod(part.windows, data.ticks)
        for server, origin, run in zip(servers, origins, part.runs, strict=True):
            assert CUT.encoder_minimum <= run <= CUT.encoder_length
            assert origin - run + 1 >= part.start
            assert origin + CUT.horizon < part.stop
            assert np.isfinite(filled[server, origin - run + 1 : origin + 1]).all()
            drawn = np.isfinite(data.values[server, origin - run + 1 : origin + 1])
            assert drawn.mean() >= 1 - MAX_MISSING - 1e-9


@given(seed=st.integers(0, 10_000), origin=st.integers(40, 159))
def test_window_filling_equals_service(seed: int, origin: int) -> None:
    values = data_with_gaps(seed)
    block = values[:, : origin + 1]
    served = prepare_input(block, 1)
    filled = carry_forward(values, MAX_GAP)
    usable = np.asarray(np.isfinite(filled[:, : origin + 1]).all(axis=2))
    for server in range(3):
        broken = np.flatnonzero(~usable[server])
        run = origin - (broken[-1] if len(broken) else -1)
        assert served.lengths[server] == run
        if run:
            assert np.array_equal(served.filled[server, -run:], filled[server, origin - run + 1 : origin + 1])


def test_windows_of_complete_history_are_all_used() -> None:
    data = history(np.random.default_rng(0).uniform(1, 99, (2, 108, 2)))
    parts = split(data, carry_forward(data.values, MAX_GAP), CUT)
    assert [part.stop - part.start for part in (parts.train, parts.validation, parts.test)] == [60, 20, 20]
    windows = {int(window) for window in parts.test.windows}
    assert windows == {server * 108 + origin for server in range(2) for origin in range(88 + 3, 108 - 4)}
    assert parts.test.runs.tolist()[:6] == [4, 5, 6, 7, 8, 8]


def test_windows_skip_sparse_server() -> None:
    values = np.random.default_rng(0).uniform(1, 99, (2, 400, 2))
    seldom = np.ones(400, dtype=bool)
    seldom[::4] = False  # three of four ticks are missing, but no gap is long
    values[0, seldom] = np.nan
    data = history(values)
    servers = split(data, carry_forward(data.values, MAX_GAP), CUT).train.windows // data.ticks
    assert set(servers.tolist()) == {1}


def test_split_too_short_history_is_refused() -> None:
    data = history(np.full((1, 60, 2), 5.0))
    with pytest.raises(DataError, match=r"spans 5\.0 min, but the training needs at least (\d+\.\d) min") as refused:
        split(data, data.values, CUT)
    needed = 69  # ticks: 12 per window, at least 20 % of the rest each, and two horizons between
    assert f"at least {needed * 5 / 60:.1f} min" in str(refused.value)
    enough = history(np.full((1, needed, 2), 5.0))
    assert len(split(enough, enough.values, CUT).test.windows)
    with pytest.raises(DataError):
        split(less := history(np.full((1, needed - 2, 2), 5.0)), less.values, CUT)


def test_split_missing_metric_is_named() -> None:
    values = np.full((2, 200, 2), 5.0)
    values[..., 1] = np.nan
    data = history(values)
    with pytest.raises(DataError, match="b was observed at 0%"):
        split(data, carry_forward(data.values, MAX_GAP), CUT)


def test_fleet_data_round_trips() -> None:
    data = history(data_with_gaps(3))
    again = FleetData.from_metadata(data.to_metadata(), {"values": data.values})
    assert replace(again, values=data.values).to_metadata() == data.to_metadata()
    assert again.metrics == data.metrics


def test_spread_windows_cover_all_servers() -> None:
    data = history(np.random.default_rng(0).uniform(1, 99, (3, 200, 2)))
    part = split(data, data.values, CUT).train
    servers, origins = part.spread_windows(30, CUT.encoder_length, data.ticks)
    assert len(servers) == 30
    assert {tuple(servers[origins == origin]) for origin in np.unique(origins)} == {(0, 1, 2)}
    assert (np.diff(origins) >= 0).all()
    assert (origins.min(), origins.max()) == (part.start + CUT.encoder_length - 1, part.stop - CUT.horizon - 1)
