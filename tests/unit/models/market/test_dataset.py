"""The split: parts share no row, have the horizon between them, and no window crosses a gap."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import DataError
from models.market.dataset import MarketData, MarketPart, split
from models.training.config import TrainingConfig
from models.training.data import Split

STEP = 3600


def make_data(count: int, gaps: dict[int, int] | None = None, holes: tuple[int, ...] = ()) -> MarketData:
    """`gaps`: row -> missing steps before it; `holes`: rows whose feature is not finite."""
    rng = np.random.default_rng(count)
    steps = np.ones(count, dtype=np.int64)
    for row, missing in (gaps or {}).items():
        steps[row] += missing
    past = rng.normal(size=(count, 1))
    past[list(holes)] = np.nan
    return MarketData(
        time=steps.cumsum() * STEP,
        target=rng.normal(0, 0.01, count).cumsum(),
        past=past,
        known=np.zeros((count, 0)),
        past_names=("p",),
        known_names=(),
        step=STEP,
        data_sha256="a" * 64,
        source="test",
        synthetic=True,
    )


def cut(data: MarketData, length: int, horizon: int, validation: float, test: float) -> Split[MarketPart]:
    """Split rows for windows of this length and horizon."""
    return split(data, TrainingConfig(encoder_length=length, horizon=horizon, validation=validation, test=test))


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(150, 400),
    length=st.integers(2, 12),
    horizon=st.integers(1, 8),
    gaps=st.dictionaries(st.integers(1, 149), st.integers(1, 50), max_size=3),
    holes=st.lists(st.integers(0, 149), max_size=3),
)
def test_split_shares_no_row_and_crosses_no_gap(
    count: int, length: int, horizon: int, gaps: dict[int, int], holes: list[int]
) -> None:
    data = make_data(count, gaps, tuple(holes))
    try:
        parts = cut(data, length, horizon, 0.2, 0.2)
    except DataError:
        return
    ordered = (parts.train, parts.validation, parts.test)
    for before, after in itertools.pairwise(ordered):
        assert after.start - before.stop >= horizon
    for part in ordered:
        assert len(part.windows)
        window = part.windows[:, None] + np.arange(1 - length, horizon + 1)
        assert window.min() >= part.start
        assert window.max() < part.stop
        assert (np.diff(data.time[window], axis=1) == STEP).all()
        assert np.isfinite(data.past[window]).all()


def test_split_finds_every_whole_window() -> None:
    parts = cut(make_data(100), 4, 2, 0.2, 0.2)
    assert [part.stop - part.start for part in (parts.train, parts.validation, parts.test)] == [57, 19, 20]
    assert [len(part.windows) for part in (parts.train, parts.validation, parts.test)] == [52, 14, 15]


def test_split_missing_rows_at_start_are_skipped() -> None:
    assert cut(make_data(100, holes=tuple(range(10))), 4, 2, 0.2, 0.2).train.start == 10


@pytest.mark.parametrize(
    "data", [make_data(20), make_data(60, holes=tuple(range(0, 60, 3))), make_data(60, holes=tuple(range(60)))]
)
def test_split_too_little_data_is_refused(data: MarketData) -> None:
    with pytest.raises(DataError, match="longer range"):
        cut(data, 8, 4, 0.2, 0.2)


def test_split_error_names_enough_candles() -> None:
    with pytest.raises(DataError) as error_info:
        cut(make_data(50), 8, 4, 0.15, 0.15)
    needed = int(str(error_info.value).split("at least ")[1].split(" ")[0])
    assert cut(make_data(needed), 8, 4, 0.15, 0.15).test.windows.size
    with pytest.raises(DataError):
        cut(make_data(needed - 3), 8, 4, 0.15, 0.15)


def test_split_constant_price_is_left_out() -> None:
    data = make_data(200)
    data.target[20:60] = data.target[20]
    origins = cut(data, 8, 4, 0.2, 0.2).train.windows
    assert 27 not in origins
    assert 26 in origins


def test_thin_keeps_first_and_last_origin() -> None:
    part = cut(make_data(300), 4, 2, 0.2, 0.2).train
    thinned = part.thin(7)
    assert len(thinned) == 7
    assert (thinned[0], thinned[-1]) == (part.windows[0], part.windows[-1])
    assert part.thin(10**6) is part.windows


def test_window_and_outcomes_meet_at_origin() -> None:
    data = make_data(50)
    window = data.window(20, 8, 4)
    assert window.end == data.time[20] + STEP
    assert window.target[-1] == data.target[20]
    assert window.known.shape == (12, 0)
    assert data.outcomes(np.array([20]), 4)[0] == pytest.approx(data.target[21:25] - data.target[20])
