from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from forecastd.fleet.contract import METRIC_COUNT, METRIC_NAMES
from forecastd.fleet.window.readiness import (
    CHUNK_SERVERS,
    MAX_GAP,
    METRIC_MISSING,
    READY,
    SILENT,
    STATE_NAMES,
    TOO_SHORT,
    prepare_input,
)

Values = NDArray[np.float32]


def expected_run(series: list[float]) -> tuple[int, list[float]]:
    """The simple way for one metric: carry values forward, and restart after a long gap."""
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
    prepared = prepare_input(values, minimum)
    servers, length, metrics = values.shape
    assert prepared.filled.dtype == np.float32
    assert prepared.filled.shape == values.shape
    for server in range(servers):
        runs = [expected_run(values[server, :, metric].tolist()) for metric in range(metrics)]
        run = min(count for count, _ in runs)
        missing = [count == 0 for count, _ in runs]
        ready = 0 < run >= minimum
        assert prepared.lengths[server] == (run if ready else 0)
        assert prepared.missing_metrics[server].tolist() == missing
        assert prepared.missing_ticks[server] == (0 if ready else max(minimum - run, 1))
        expected = READY if ready else SILENT if all(missing) else METRIC_MISSING if any(missing) else TOO_SHORT
        assert prepared.codes[server] == expected
        assert not prepared.filled[server, : length - run].any()
        for metric in range(metrics):
            usable = runs[metric][1][len(runs[metric][1]) - run :]
            assert prepared.filled[server, length - run :, metric].tolist() == usable


@st.composite
def blocks(draw: st.DrawFn) -> Values:
    servers, length, metrics = draw(st.integers(0, 3)), draw(st.integers(0, 30)), draw(st.integers(1, 3))
    values = np.arange(1, servers * length * metrics + 1, dtype=np.float32).reshape(servers, length, metrics)
    share = draw(st.sampled_from([0.1, 0.5, 0.9]))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    values[rng.random(values.shape) < share] = np.nan  # single values
    values[rng.random(values.shape[:2]) < share / 2] = np.nan  # whole rows
    for server in range(servers):  # a gap of about the maximum length
        index, long = draw(st.integers(0, 30)), draw(st.integers(MAX_GAP - 1, MAX_GAP + 2))
        values[server, index : index + long, draw(st.integers(0, metrics - 1))] = np.nan
    return values


@given(blocks(), st.integers(0, 30))
def test_prepare_equals_reference(values: Values, minimum: int) -> None:
    check(values, minimum)


@given(arrays(np.bool_, (2, 25, 2)), st.integers(1, 20))
def test_prepare_equals_reference_for_every_gap_pattern(present: NDArray[np.bool_], minimum: int) -> None:
    numbers = np.arange(1, 101, dtype=np.float32).reshape(2, 25, 2)
    check(np.where(present, numbers, np.float32("nan")), minimum)


def test_prepare_equals_reference_across_chunks() -> None:
    rng = np.random.default_rng(3)
    values = rng.uniform(1, 99, (3 * CHUNK_SERVERS + 5, 40, 3)).astype(np.float32)
    values[rng.random(values.shape[:2]) < 0.15] = np.nan
    values[::7, 10:22, 1] = np.nan
    check(values, 12)


def full(length: int = 30) -> Values:
    return np.full((1, length, METRIC_COUNT), 5.0, np.float32)


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
def test_prepare_needs_recent_run_without_long_gap(empty: slice | None, length: int, needs: int, word: str) -> None:
    values = full()
    if empty is not None:
        values[0, empty] = np.nan
    prepared = prepare_input(values, 12)
    assert prepared.lengths.tolist() == [length]
    assert prepared.missing_ticks.tolist() == [needs]
    assert STATE_NAMES[prepared.codes[0]] == word
    assert {"ready": "ready", "too_short": "of history", "silent": "no row"}[word] in prepared.reason(0)


def test_prepare_names_missing_metric() -> None:
    values = full()
    values[0, :, [3, 11]] = np.nan
    prepared = prepare_input(values, 12)
    assert prepared.codes.tolist() == [METRIC_MISSING]
    assert prepared.missing_ticks.tolist() == [12]
    assert prepared.reason(0) == f"not reported: {METRIC_NAMES[3]}, {METRIC_NAMES[11]}"


def test_prepare_counts_missing_ticks_after_silence() -> None:
    values = full(60)
    values[0, 30 : 30 + MAX_GAP + 5] = np.nan
    index = [int(prepare_input(values[:, end - 20 : end], 12).missing_ticks[0]) for end in range(25, 61)]
    silent_from = 30 + MAX_GAP + 1 - 25  # the first end whose gap is too long
    assert index[:silent_from] == [0] * silent_from
    returned = silent_from + 5  # five more ticks of silence
    assert index[silent_from:returned] == [12] * 5
    assert index[returned : returned + 12] == list(range(11, -1, -1))
    assert set(index[returned + 12 :]) == {0}


def test_prepare_does_not_change_input() -> None:
    values = full()
    values[0, 5] = np.nan
    before = values.copy()
    prepare_input(values, 12)
    assert np.array_equal(values, before, equal_nan=True)


def test_prepare_without_servers_is_empty() -> None:
    prepared = prepare_input(np.empty((0, 30, METRIC_COUNT), np.float32), 12)
    assert prepared.filled.shape == (0, 30, METRIC_COUNT)
    assert len(prepared.lengths) == len(prepared.missing_ticks) == len(prepared.codes) == 0


def test_prepare_accepts_any_memory_order() -> None:
    rng = np.random.default_rng(2)
    values = rng.uniform(1, 50, (7, 30, METRIC_COUNT)).astype(np.float32)
    values[:, -2:] = np.nan  # not sent yet
    values[3, 10:14] = np.nan
    chosen = values[:, -20:, list(range(METRIC_COUNT))]  # as the service selects a model's columns
    assert not chosen.flags["C_CONTIGUOUS"]
    prepared, expected = prepare_input(chosen, 8), prepare_input(np.ascontiguousarray(chosen), 8)
    assert not np.isnan(prepared.filled).any()
    np.testing.assert_array_equal(prepared.filled, expected.filled)
    np.testing.assert_array_equal(prepared.lengths, expected.lengths)
