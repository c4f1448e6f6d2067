"""Features: no look-ahead, no dependence on the length of the history, no values over gaps, clear errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.errors import NeedsHuman, SkipEpoch
from forecastd.market import features
from forecastd.market.candles import HOUR, Candles, Provenance
from forecastd.market.features import FeatureList, build_model_input, load_features, past_matrix, warm_up_candles

ALL_PAST = tuple(features.PAST_FEATURES)
PROVENANCE = Provenance("test", 0.0, "", synthetic=True)


def make_candles(count: int, seed: int = 0, step: int = HOUR, start: int = 1_500_000_000 // HOUR * HOUR) -> Candles:
    random = np.random.default_rng(seed)
    close = 1000 * np.exp(np.cumsum(random.normal(0, 0.01, count)))
    open_ = np.concatenate([[1000.0], close[:-1]])
    high = np.maximum(open_, close) * (1 + random.uniform(0, 0.01, count))
    low = np.minimum(open_, close) * (1 - random.uniform(0, 0.01, count))
    time = start + step * np.arange(count, dtype=np.int64)
    return Candles("btcusd", step, time, open_, high, low, close, random.uniform(1, 9, count), PROVENANCE)


def pick(candles: Candles, rows: slice | np.ndarray) -> Candles:
    names = ("time", "open", "high", "low", "close", "volume")
    return replace(candles, **{name: getattr(candles, name)[rows] for name in names})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), cut=st.integers(1, 199), factor=st.floats(0.1, 10))
def test_features_ignore_later_candles(seed: int, cut: int, factor: float) -> None:
    candles = make_candles(200, seed)
    changed = {name: getattr(candles, name).copy() for name in ("open", "high", "low", "close", "volume")}
    for column in changed.values():
        column[cut:] *= factor
    before, after = past_matrix(ALL_PAST, candles), past_matrix(ALL_PAST, replace(candles, **changed))
    np.testing.assert_array_equal(before[:cut], after[:cut])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), dropped=st.integers(1, 100))
def test_features_are_independent_of_history_length(seed: int, dropped: int) -> None:
    candles = make_candles(200, seed)
    full, tail = past_matrix(ALL_PAST, candles), past_matrix(ALL_PAST, pick(candles, slice(dropped, None)))
    ready = slice(warm_up_candles(ALL_PAST), None)
    np.testing.assert_allclose(tail[ready], full[dropped:][ready], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("step", [HOUR, HOUR // 2, 300])
def test_features_are_finite_only_after_warm_up(step: int) -> None:
    names = ALL_PAST
    rows = warm_up_candles(names, step)
    matrix = past_matrix(names, make_candles(rows + 5, step=step))
    assert np.isfinite(matrix[rows:]).all()
    assert not np.isfinite(matrix[0]).any()


def test_features_over_a_gap_are_nan() -> None:
    candles = make_candles(200)
    keep = np.arange(200) != 120
    matrix = past_matrix(("ret_1h", "ma_24h", "vol_24h"), pick(candles, keep))
    after = matrix[120:]  # the first row after the gap
    assert np.isnan(after[0]).all()
    assert np.isfinite(after[1, 0])
    assert np.isnan(after[22, 1])
    assert np.isfinite(after[23, 1])


def test_features_have_documented_values() -> None:
    candles = make_candles(100)
    close, high, low = candles.close, candles.high, candles.low
    row = dict(zip(ALL_PAST, past_matrix(ALL_PAST, candles)[-1], strict=True))
    returns = np.diff(np.log(close))
    expected = {
        "ret_1h": np.log(close[-1] / close[-2]),
        "ret_24h": np.log(close[-1] / close[-25]),
        "ma_24h": np.log(close[-24:].mean() / close[-1]),
        "ma_72h": np.log(close[-72:].mean() / close[-1]),
        "vol_24h": returns[-24:].std(),
        "price_pos_24h": (close[-1] - low[-24:].min()) / (high[-24:].max() - low[-24:].min()),
        "price_pos_72h": (close[-1] - low[-72:].min()) / (high[-72:].max() - low[-72:].min()),
        "ma_ratio_72_24": close[-72:].mean() / close[-24:].mean(),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-12), name
    weights = (1 - 2 / 25) ** np.arange(71, -1, -1)
    squares = returns[-72:] ** 2
    assert row["exp_vol_ratio"] == pytest.approx(np.sqrt((weights * squares).sum() / weights.sum() / squares.mean()))


def test_known_features_follow_the_calendar() -> None:
    monday = 1_571_011_200  # 2019-10-14T00:00:00Z
    times = monday + HOUR * np.array([0, 6, 5 * 24, 7 * 24])
    matrix = features.known_matrix(("hour_sin", "weekday_sin", "weekday_cos", "is_weekend"), times)
    np.testing.assert_allclose(matrix[0], [0, 0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(matrix[1, 0], 1)
    assert matrix[2, 3] == 1
    np.testing.assert_allclose(matrix[3], matrix[0], atol=1e-12)


def test_features_of_flat_prices_are_neutral() -> None:
    candles = make_candles(100)
    flat = np.full(100, 500.0)
    row = past_matrix(ALL_PAST, replace(candles, open=flat, high=flat, low=flat, close=flat))[-1]
    assert np.isfinite(row).all()


def test_model_input_ends_with_candles_and_extends_calendar() -> None:
    names = FeatureList(("ret_1h", "hour_sin", "vol_24h"))
    candles = make_candles(80)
    model_input = build_model_input(names, candles, encoder_length=48, horizon=12)
    assert model_input.end == candles.end
    assert model_input.target.shape == (48,)
    assert model_input.past.shape == (48, 2)
    assert model_input.known.shape == (60, 1)
    np.testing.assert_allclose(model_input.known[47, 0], np.sin(2 * np.pi * (candles.time[-1] % 86400) / 86400))


def test_model_input_too_few_candles_is_refused() -> None:
    with pytest.raises(SkipEpoch) as error:
        build_model_input(FeatureList(("ret_24h",)), make_candles(50), encoder_length=48, horizon=12)
    assert error.value.check == "short"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('["ret_1h", "ret_1H"]', ["unknown", "ret_1H", "Did you mean ret_1h"]),
        ('["ret_1h", "ret_1h"]', ["twice", "ret_1h"]),
        ('{"a": 1}', ["list"]),
        ("[]", ["at least one"]),
        ("[1]", ["list"]),
        ("[", ["not JSON"]),
        (None, ["Cannot read"]),
    ],
)
def test_feature_list_invalid_is_refused_with_fix(tmp_path: Path, content: str | None, words: list[str]) -> None:
    path = tmp_path / "features.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(NeedsHuman) as error:
        load_features(path)
    for word in words:
        assert word in str(error.value)


def test_feature_list_of_project_is_valid_and_ordered(root: Path) -> None:
    names = load_features(root / "features.json")
    assert list(names.names) == json.loads((root / "features.json").read_text())
    assert set(names.past) | set(names.known) == set(names.names)


def test_check_causal_detects_look_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def peek(grid: features.CandleGrid) -> np.ndarray:
        return np.append(grid.close[1:], np.nan)

    monkeypatch.setitem(features.PAST_FEATURES, "peek", features.PastFeature(peek, 1))
    with pytest.raises(NeedsHuman, match="peek looks into the future"):
        features.check_causal(FeatureList(("ret_1h", "peek")), make_candles(60))
    features.check_causal(FeatureList(ALL_PAST), make_candles(200))


@pytest.mark.parametrize("step", [7200, 7 * 60])
def test_features_step_not_dividing_hour_is_refused(step: int) -> None:
    with pytest.raises(NeedsHuman, match="does not divide one hour"):
        past_matrix(("ret_1h",), make_candles(10, step=step))
