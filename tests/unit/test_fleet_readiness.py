from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from forecastd.fleet.contract import NAMES, M
from forecastd.fleet.readiness import CHUNK, MAX_GAP, METRIC_MISSING, READY, SILENT, TOO_SHORT, WORDS, prepare

Values = NDArray[np.float32]


def run_of(series: list[float]) -> tuple[int, list[float]]:
    """The obvious way for one metric: walk on, carry on, begin again after a long gap."""
    run: list[float] = []
    gap = 0
    for value in series:
        if not np.isnan(value):
            run, gap = [*run, value] if gap <= MAX_GAP else [value], 0
        elif run:
            gap += 1
            run.append(run[-1])
    return (len(run), run) if gap <= MAX_GAP else (0, [])


def check(values: Values, minimum: int) -> None:
    found = prepare(values, minimum)
    servers, length, metrics = values.shape
    assert found.filled.dtype == np.float32
    assert found.filled.shape == values.shape
    for server in range(servers):
        runs = [run_of(values[server, :, metric].tolist()) for metric in range(metrics)]
        run = min(count for count, _ in runs)
        missing = [count == 0 for count, _ in runs]
        ready = 0 < run >= minimum
        assert found.lengths[server] == (run if ready else 0)
        assert found.missing[server].tolist() == missing
        assert found.needs[server] == (0 if ready else max(minimum - run, 1))
        expected = READY if ready else SILENT if all(missing) else METRIC_MISSING if any(missing) else TOO_SHORT
        assert found.codes[server] == expected
        assert not found.filled[server, : length - run].any()
        for metric in range(metrics):
            kept = runs[metric][1][len(runs[metric][1]) - run :]
            assert found.filled[server, length - run :, metric].tolist() == kept


@st.composite
def blocks(draw: st.DrawFn) -> Values:
    servers, length, metrics = draw(st.integers(0, 3)), draw(st.integers(0, 30)), draw(st.integers(1, 3))
    values = np.arange(1, servers * length * metrics + 1, dtype=np.float32).reshape(servers, length, metrics)
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    values[rng.random(values.shape) < share] = np.nan  # single values
    values[rng.random(values.shape[:2]) < share / 2] = np.nan  # whole rows
    for server in range(servers):  # a stretch of about the longest gap
        at, long = draw(st.integers(0, 30)), draw(st.integers(MAX_GAP - 1, MAX_GAP + 2))
        values[server, at : at + long, draw(st.integers(0, metrics - 1))] = np.nan
    return values


@given(blocks(), st.integers(0, 30))
def test_it_does_what_the_obvious_way_does(values: Values, minimum: int) -> None:
    check(values, minimum)


@given(arrays(np.bool_, (2, 25, 2)), st.integers(1, 20))
def test_it_does_so_for_every_pattern_of_gaps(there: NDArray[np.bool_], minimum: int) -> None:
    numbers = np.arange(1, 101, dtype=np.float32).reshape(2, 25, 2)
    check(np.where(there, numbers, np.float32("nan")), minimum)


def test_it_does_so_for_more_servers_than_are_looked_at_together() -> None:
    rng = np.random.default_rng(3)
    values = rng.uniform(1, 99, (3 * CHUNK + 5, 40, 3)).astype(np.float32)
    values[rng.random(values.shape[:2]) < 0.15] = np.nan
    values[::7, 10:22, 1] = np.nan
    check(values, 12)


def full(length: int = 30) -> Values:
    return np.full((1, length, M), 5.0, np.float32)


@pytest.mark.parametrize(
    ("empty", "length", "needs", "word"),
    [
        (None, 30, 0, "ready"),
        (slice(10, 10 + MAX_GAP), 30, 0, "ready"),
        (slice(10, 11 + MAX_GAP), 30 - 11 - MAX_GAP, 0, "ready"),
        (slice(0, 18), 12, 0, "ready"),
        (slice(0, 19), 0, 1, "too_short"),
        (slice(0, 29), 0, 11, "too_short"),
        (slice(30 - MAX_GAP, 30), 30, 0, "ready"),
        (slice(29 - MAX_GAP, 30), 0, 12, "silent"),
        (slice(0, 30), 0, 12, "silent"),
    ],
)
def test_readiness_is_a_run_without_a_long_gap_up_to_now(
    empty: slice | None, length: int, needs: int, word: str
) -> None:
    values = full()
    if empty is not None:
        values[0, empty] = np.nan
    found = prepare(values, 12)
    assert found.lengths.tolist() == [length]
    assert found.needs.tolist() == [needs]
    assert WORDS[found.codes[0]] == word
    assert {"ready": "ready", "too_short": "still missing", "silent": "nothing came"}[word] in found.reason(0)


def test_a_metric_that_never_comes_is_named() -> None:
    values = full()
    values[0, :, [3, 11]] = np.nan
    found = prepare(values, 12)
    assert found.codes.tolist() == [METRIC_MISSING]
    assert found.needs.tolist() == [12]
    assert found.reason(0) == f"never or no longer reported: {NAMES[3]}, {NAMES[11]}"


def test_a_server_counts_down_when_its_data_stops_and_up_again_when_it_comes() -> None:
    values = full(60)
    values[0, 30 : 30 + MAX_GAP + 5] = np.nan
    at = [int(prepare(values[:, end - 20 : end], 12).needs[0]) for end in range(25, 61)]
    silent_from = 30 + MAX_GAP + 1 - 25  # the first end whose gap is too long
    assert at[:silent_from] == [0] * silent_from
    back = silent_from + 5  # five more ticks of silence
    assert at[silent_from:back] == [12] * 5
    assert at[back : back + 12] == list(range(11, -1, -1))
    assert set(at[back + 12 :]) == {0}


def test_what_was_given_is_left_as_it_was() -> None:
    values = full()
    values[0, 5] = np.nan
    before = values.copy()
    prepare(values, 12)
    assert np.array_equal(values, before, equal_nan=True)


def test_a_fleet_without_servers_is_no_fault() -> None:
    found = prepare(np.empty((0, 30, M), np.float32), 12)
    assert found.filled.shape == (0, 30, M)
    assert len(found.lengths) == len(found.needs) == len(found.codes) == 0


def test_how_the_values_lie_in_memory_is_of_no_matter() -> None:
    rng = np.random.default_rng(2)
    values = rng.uniform(1, 50, (7, 30, M)).astype(np.float32)
    values[:, -2:] = np.nan  # what nobody has sent yet
    values[3, 10:14] = np.nan
    chosen = values[:, -20:, list(range(M))]  # as the service chooses a model's columns
    assert not chosen.flags["C_CONTIGUOUS"]
    found, wanted = prepare(chosen, 8), prepare(np.ascontiguousarray(chosen), 8)
    assert not np.isnan(found.filled).any()
    np.testing.assert_array_equal(found.filled, wanted.filled)
    np.testing.assert_array_equal(found.lengths, wanted.lengths)
