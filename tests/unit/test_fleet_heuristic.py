"""The forecast from too little data: from one value on, always in bounds, never crossing, and not bent by one wild value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from forecastd.fleet.contract import INDEX, METRICS, M
from forecastd.fleet.heuristic import heuristic

LEVELS = (0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98)
HORIZON = 24
CPU, MEMORY, LATENCY = INDEX["cpu_percent"], INDEX["memory_percent"], INDEX["latency_ms"]
LOW, HIGH = (np.array([getattr(metric, end) for metric in METRICS], dtype=np.float32) for end in ("low", "high"))
Values = np.ndarray[Any, np.dtype[np.float32]]


def one_server(*values: float, metric: int = CPU) -> Values:
    found = np.full((1, len(values), M), np.nan, dtype=np.float32)
    found[0, :, metric] = values
    return found


anything = arrays.arrays(
    np.float32,
    st.tuples(st.integers(0, 3), st.integers(0, 70), st.just(M)),
    elements=st.one_of(st.just(np.nan), st.floats(0, 2**40, width=32), st.floats(0, 100, width=32)),
)


@given(anything)
def test_what_is_known_gets_quantiles_within_bounds_that_do_not_cross_and_the_rest_is_nan(values: Values) -> None:
    found = heuristic(values, HORIZON, LEVELS)
    assert found.shape == (len(values), HORIZON, M, len(LEVELS))
    assert found.dtype == np.float32
    whole = ~np.isnan(found)
    known = np.asarray((~np.isnan(values)).any(axis=1))
    assert (whole == known[:, None, :, None]).all()
    for metric in range(M):
        seen = found[:, :, metric][whole[:, :, metric]]
        assert ((seen >= LOW[metric]) & (seen <= HIGH[metric])).all()
    assert not (np.diff(found, axis=3) < 0).any()


@pytest.mark.parametrize("metric", range(M), ids=[metric.name for metric in METRICS])
def test_a_single_value_gives_a_wide_band_around_itself_that_widens(metric: int) -> None:
    value = 20.0
    found = heuristic(one_server(value, metric=metric), HORIZON, LEVELS)[0, :, metric]
    assert found[:, 3] == pytest.approx(value, rel=1e-5)
    width = found[:, 5] - found[:, 1]
    assert (np.diff(width) > 0).all()
    assert width[0] > 5  # 10 points for a percentage, a factor of 1.4 to each side for the others
    assert np.isnan(np.delete(heuristic(one_server(value, metric=metric), 1, LEVELS)[0, 0], metric, axis=0)).all()


def test_the_band_narrows_as_values_come() -> None:
    widths = []
    for count in (1, 2, 5, 20, 48):
        found = heuristic(one_server(*[30.0] * count), HORIZON, LEVELS)[0, 0, CPU]
        widths.append(float(found[5] - found[1]))
    assert widths == sorted(widths, reverse=True)
    assert widths[-1] < widths[0] / 8


def test_a_trend_goes_on_and_dies_down() -> None:
    found = heuristic(one_server(*np.linspace(20, 40, 41)), 96, LEVELS)[0, :, CPU, 3]
    steps = np.diff(found)
    assert found[0] > 40
    assert (steps >= 0).all()
    assert (np.diff(steps) < 1e-4).all()
    assert 42 < found[-1] < 43  # half a point a tick, for 5.7 ticks at most


def test_gaps_say_nothing() -> None:
    whole = np.linspace(20, 40, 41, dtype=np.float32)
    holes = whole.copy()
    holes[[3, 4, 5, 11, 12, 13, 14, 30, 31]] = np.nan
    with_gaps, without = (heuristic(one_server(*one), HORIZON, LEVELS)[0, :, CPU, 3] for one in (holes, whole))
    assert with_gaps == pytest.approx(without, abs=0.2)


def test_one_wild_value_does_not_bend_it() -> None:
    calm = 30 + np.sin(np.arange(48))
    wild = calm.copy()
    wild[-1] = 100.0
    before, after = (heuristic(one_server(*one), HORIZON, LEVELS)[0, :, CPU] for one in (calm, wild))
    assert after[:, 3] == pytest.approx(before[:, 3], abs=1.5)
    assert after[:, 5] == pytest.approx(before[:, 5], abs=3)


def test_a_step_is_followed_within_a_few_values() -> None:
    found = heuristic(one_server(*[10.0] * 30, *[60.0] * 4), HORIZON, LEVELS)[0, :, CPU, 3]
    assert (found > 45).all()


def test_values_from_long_ago_are_used_where_there_are_no_others_and_count_less() -> None:
    old, new = np.full((1, 100, M), np.nan, np.float32), np.full((1, 100, M), np.nan, np.float32)
    old[0, 5, MEMORY] = new[0, 99, MEMORY] = 50.0
    before, after = (heuristic(one, HORIZON, LEVELS)[0, 0, MEMORY] for one in (old, new))
    assert before[3] == after[3] == 50.0
    assert before[5] - before[1] > 1.5 * (after[5] - after[1])


def test_a_latency_has_more_room_above_than_below() -> None:
    noisy = 100 * np.exp(0.2 * np.sin(np.arange(48)))
    found = heuristic(one_server(*noisy, metric=LATENCY), HORIZON, LEVELS)[0, -1, LATENCY]
    assert found[6] - found[3] > 1.2 * (found[3] - found[0]) > 0


def test_each_server_is_forecast_as_if_it_were_alone() -> None:
    generator = np.random.default_rng(3)
    values = generator.uniform(1, 90, size=(130, 60, M)).astype(np.float32)
    values[generator.random(values.shape) < 0.4] = np.nan
    together = heuristic(values, HORIZON, LEVELS)
    for server in (0, 63, 64, 129):
        alone = heuristic(values[server : server + 1], HORIZON, LEVELS)
        assert np.array_equal(together[server], alone[0], equal_nan=True)


@pytest.mark.parametrize(("values", "levels"), [
    (np.zeros((2, 3, M + 1), np.float32), LEVELS), (np.zeros((2, M), np.float32), LEVELS),
    (np.zeros((1, 3, M), np.float32), (0.0, 0.5)), (np.zeros((1, 3, M), np.float32), (0.5, 1.0)),
])  # fmt: skip
def test_wrong_shapes_and_levels_are_refused(values: Values, levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        heuristic(values, HORIZON, levels)
