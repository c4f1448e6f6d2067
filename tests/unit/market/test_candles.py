"""Candle checks and repairs: invalid data is refused by the right check, valid data passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.errors import SkipEpoch
from forecastd.market.candles import (
    COLUMNS,
    HOUR,
    Candles,
    Provenance,
    check_candles,
    find_implausible,
    merge,
    merge_provenance,
    repair,
    run_checks,
)

START = 1_570_000_000 // HOUR * HOUR
ORIGIN = Provenance("test", 1.6e9, "ab", synthetic=False)
Change = Callable[[Candles], Candles]


def random_walk(n: int, seed: int = 0) -> Candles:
    """A random walk of `n` hours, with prices near 8,000."""
    rng = np.random.default_rng(seed)
    level = 8_000 * np.exp(np.cumsum(rng.normal(0, 0.005, n + 1)))
    open_, close = level[:-1], level[1:]
    high, low = np.maximum(open_, close) * 1.001, np.minimum(open_, close) * 0.999
    time = START + HOUR * np.arange(n, dtype=np.int64)
    return Candles("btcusd", HOUR, time, open_, high, low, close, rng.uniform(1, 9, n), ORIGIN)


def scale_prices(index: slice, factor: float) -> Change:
    def change(candles: Candles) -> Candles:
        parts = {name: getattr(candles, name).copy() for name in COLUMNS[:4]}
        for part in parts.values():
            part[index] *= factor
        return replace(candles, **parts)

    return change


def set_value(name: str, index: int, value: float) -> Change:
    def change(candles: Candles) -> Candles:
        column = getattr(candles, name).copy()
        column[index] = value
        return replace(candles, **{name: column})

    return change


def freeze_prices(first: int, last: int, *, prices: bool = True) -> Change:
    def change(candles: Candles) -> Candles:
        names = ("open", "high", "low", "close") if prices else ("close",)
        parts = {name: getattr(candles, name).copy() for name in names}
        for part in parts.values():
            part[first:last] = candles.close[first - 1]
        if not prices:
            parts["high"] = np.maximum(candles.high, parts["close"] * 1.001)
            parts["low"] = np.minimum(candles.low, parts["close"] * 0.999)
        return replace(candles, **parts)

    return change


def find_failed_check(candles: Candles, *, now: float | None = None, min_length: int = 100) -> str:
    try:
        check_candles(candles, now=START + 120 * HOUR if now is None else now, min_length=min_length, max_age=2 * HOUR)
    except SkipEpoch as error:
        return error.check
    return "ok"


CASES: list[tuple[str, Change, str]] = [
    ("nothing wrong", lambda c: c, "ok"),
    ("no candles", lambda c: c.take(slice(0, 0)), "empty"),
    ("a gap", lambda c: c.take(np.arange(120) != 60), "gap"),
    ("a gap before the used candles", lambda c: c.take(np.arange(120) != 10), "ok"),
    ("too few", lambda c: c.take(slice(50, None)), "short"),
    ("three hours old", lambda c: c.take(slice(0, 117)), "stale"),
    ("two hours old", lambda c: c.take(slice(0, 118)), "ok"),
    ("milliseconds", lambda c: replace(c, time=c.time * 1000), "unit"),
    ("times in 1970", lambda c: replace(c, time=c.time - START), "unit"),
    ("cents from an hour on", scale_prices(slice(60, None), 100.0), "unit"),
    ("a tenth from an hour on", scale_prices(slice(60, None), 0.1), "unit"),
    ("half an hour off", lambda c: replace(c, time=c.time - HOUR // 2), "grid"),
    ("hundredfold for one hour", scale_prices(slice(60, 61), 100.0), "spike"),
    ("hundredth for three hours", scale_prices(slice(60, 63), 0.01), "spike"),
    ("doubled for one hour", scale_prices(slice(60, 61), 2.0), "spike"),
    ("doubled in the last hour", scale_prices(slice(119, None), 2.0), "spike"),
    ("doubled permanently", scale_prices(slice(60, None), 2.0), "ok"),
    ("a permanent crash of 30 %", scale_prices(slice(60, None), 0.7), "ok"),
    ("a crash of 30 % in the last hour", scale_prices(slice(119, None), 0.7), "ok"),
    ("a crash of 30 % and back", scale_prices(slice(60, 62), 0.7), "ok"),
    ("a spike before the used candles", scale_prices(slice(5, 6), 100.0), "ok"),
    ("a wick of a hundred", set_value("high", 60, 800_000.0), "spike"),
    ("a wick down to a cent", set_value("low", 60, 0.01), "spike"),
    ("an opening of a hundredfold", lambda c: set_value("high", 60, 8e5)(set_value("open", 60, 8e5)(c)), "spike"),
    ("a frozen price", freeze_prices(60, 66), "flat"),
    ("five hours without trade", freeze_prices(60, 65), "ok"),
    ("one closing price for a day", freeze_prices(60, 84, prices=False), "flat"),
    ("NaN", set_value("close", 60, np.nan), "nonfinite"),
    ("infinite volume", set_value("volume", 60, np.inf), "nonfinite"),
    ("NaN before the used candles", set_value("close", 5, np.nan), "ok"),
    ("a price of zero", set_value("low", 60, 0.0), "inconsistent"),
    ("a negative volume", set_value("volume", 60, -1.0), "inconsistent"),
    ("high below low", set_value("high", 60, 100.0), "inconsistent"),
    ("the close above the high", set_value("close", 60, 9_999.0), "inconsistent"),
]


@pytest.mark.parametrize(("change", "verdict"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_check_invalid_candles_are_refused_by_name(change: Change, verdict: str) -> None:
    assert find_failed_check(change(random_walk(120))) == verdict


def test_check_future_candle_is_refused_and_open_dropped() -> None:
    candles = random_walk(120)
    assert find_failed_check(candles, now=candles.end - HOUR - 1) == "future"
    remaining, repairs = check_candles(candles, now=candles.end - 1, min_length=100, max_age=HOUR)
    assert len(remaining) == 119
    assert "not complete" in repairs[0]


def test_run_checks_agrees_with_check_candles() -> None:
    candles = scale_prices(slice(60, 61), 100.0)(random_walk(120).take(np.arange(120) != 80))
    reasons = run_checks(candles, now=candles.end, min_length=100, max_age=HOUR)
    assert {name for name, reason in reasons.items() if reason} == {"gap", "spike"}


@given(order=st.permutations(range(40)), repeated=st.lists(st.integers(0, 39), max_size=10))
def test_repair_sorts_and_drops_identical_duplicates(order: list[int], repeated: list[int]) -> None:
    candles = set_value("volume", 7, np.nan)(random_walk(40))
    shuffled = candles.take(np.array(order + repeated))
    repaired = repair(shuffled)
    for name in ("time", *COLUMNS):
        np.testing.assert_array_equal(getattr(repaired, name), getattr(candles, name))
    assert bool(repaired.repairs) == (order != sorted(order) or bool(repeated))


@given(index=st.integers(0, 39), name=st.sampled_from(COLUMNS))
def test_repair_conflicting_duplicates_are_refused(index: int, name: str) -> None:
    candles = random_walk(40)
    rows = np.append(np.arange(40), index)
    repeated = candles.take(rows)
    other = getattr(repeated, name).copy()
    other[-1] += 0.01
    with pytest.raises(SkipEpoch) as error:
        repair(replace(repeated, **{name: other}))
    assert error.value.check == "duplicate"


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.0005, 0.02))
def test_check_random_walk_passes(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.standard_t(4, 300) * sigma))
    time = START + HOUR * np.arange(300, dtype=np.int64)
    open_ = np.append(100.0, close[:-1])
    high, low = np.maximum(open_, close), np.minimum(open_, close)
    candles = Candles("x", HOUR, time, open_, high, low, close, np.ones(300), ORIGIN)
    if np.abs(np.diff(np.log(close))).max() < 0.5:
        check_candles(candles, now=candles.end, min_length=300, max_age=0)


def test_merge_sorts_and_combines_hashes() -> None:
    candles = random_walk(40)
    first = replace(candles.take(slice(0, 25)), provenance=replace(ORIGIN, sha256="a", fetched_at=5.0))
    second = replace(candles.take(slice(20, 40)), provenance=replace(ORIGIN, sha256="b", fetched_at=9.0))
    both = merge([second, first])
    np.testing.assert_array_equal(both.time, candles.time)
    assert both.provenance.fetched_at == 9.0
    assert both.provenance.sha256 not in {"a", "b"}
    assert merge([first, first]).provenance == first.provenance


def test_merge_synthetic_and_real_is_refused() -> None:
    with pytest.raises(ValueError, match="different sources"):
        merge_provenance([ORIGIN, replace(ORIGIN, synthetic=True)])


def test_find_implausible_detects_bad_value_anywhere() -> None:
    assert find_implausible(random_walk(40)) is None
    assert find_implausible(scale_prices(slice(20, 21), 100.0)(random_walk(40))) is not None
    assert find_implausible(random_walk(40).take(slice(0, 0))) is None


@pytest.mark.parametrize(("factor", "unit"), [(10**3, "milliseconds"), (10**6, "microseconds"), (10**9, "nanoseconds")])
def test_check_time_unit_is_named(factor: int, unit: str) -> None:
    candles = random_walk(30)
    with pytest.raises(SkipEpoch, match=f"it looks like {unit}"):
        check_candles(replace(candles, time=candles.time * factor), now=candles.end, min_length=30, max_age=HOUR)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        (0, "opens at 1970-01-01T00:00:00Z, outside 2008 to 2100"),
        (-3600 * 24 * 365 * 200, "opens at 1770-"),
        (253_402_297_200, "opens at 9999-12-31T23:00:00Z, outside"),
        (10**11 // HOUR * HOUR, "opens at 5138-"),
        (-(10**12), "opens at -1000000000000 s since 1970"),
    ],
)
def test_check_distant_date_is_not_milliseconds(time: int, message: str) -> None:
    candles = random_walk(1)
    with pytest.raises(SkipEpoch, match=message) as error:
        check_candles(replace(candles, time=np.array([time])), now=START, min_length=1, max_age=HOUR)
    assert error.value.check == "unit"
    assert "milliseconds" not in str(error.value)
