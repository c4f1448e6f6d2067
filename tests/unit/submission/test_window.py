"""Which windows are open, which one is served, which epochs are missed, and how much time a stage has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from forecastd.chain.types import Topic
from forecastd.errors import ForecastdError, NeedsHuman, RetryLater, SkipEpoch
from forecastd.ledger.ledger import LedgerRow, SubmissionState
from forecastd.submission.window import (
    MAX_MISSED_EPOCHS,
    MAX_OUTAGE_SECONDS,
    NOT_SUBMITTED_REASON,
    CycleTimer,
    SubmissionWindow,
    closed_nonces,
    confirm_windows,
    find_windows,
    record_missed,
    select_window,
)
from tests.unit.submission.conftest import EPOCH_BLOCKS, TOPIC, CycleHarness, make_harness

WINDOW = SubmissionWindow(TOPIC, 1000, 1099)
UNAVAILABLE = "unavailable@method=GetLatestBlock"


@pytest.mark.parametrize(
    ("height", "is_open"), [(999, False), (1000, True), (1050, True), (1098, True), (1099, False), (1100, False)]
)
def test_window_is_open_while_the_next_block_may_include(height: int, *, is_open: bool) -> None:
    assert WINDOW.is_open(height) is is_open


@pytest.mark.parametrize(("share", "limit"), [(0.0, 1000), (0.5, 1049.5), (0.8, 1079.2), (0.99, 1097), (1.0, 1097)])
def test_height_limit_keeps_a_margin_before_the_end(share: float, limit: float) -> None:
    assert WINDOW.height_limit(share) == pytest.approx(limit)


def test_overlapping_windows_are_found_newest_first(tmp_path: Path) -> None:
    harness = make_harness(tmp_path, window_blocks=2 * EPOCH_BLOCKS)
    harness.advance(EPOCH_BLOCKS)
    topic = harness.chain.topic(TOPIC)
    assert topic is not None
    height, windows = find_windows(harness.chain, topic)
    nonce = harness.nonce
    assert height == nonce + 10
    assert windows == [
        SubmissionWindow(TOPIC, nonce, nonce + 2 * EPOCH_BLOCKS - 1),
        SubmissionWindow(TOPIC, nonce - EPOCH_BLOCKS, nonce + EPOCH_BLOCKS - 1),
    ]
    harness.ledger.close()


def topic_of(harness: CycleHarness) -> Topic:
    topic = harness.chain.topic(TOPIC)
    assert topic is not None
    harness.requests()
    return topic


def test_open_window_of_the_caller_needs_no_query(harness: CycleHarness) -> None:
    topic = topic_of(harness)
    older = SubmissionWindow(TOPIC, harness.nonce - 5, harness.nonce + 100)
    closed = SubmissionWindow(TOPIC, harness.nonce - 100, harness.nonce + 10)
    harness.requests()
    assert confirm_windows(harness.chain, topic, [older, harness.window, closed])[1] == [harness.window, older]
    assert "GetUnfulfilledWorkerNonces" not in harness.requests()


@pytest.mark.parametrize("first_offset", [1, -300])
def test_chain_is_queried_when_no_window_of_the_caller_is_open(harness: CycleHarness, first_offset: int) -> None:
    """It lies in the future, as for an endpoint that lags, or has closed."""
    topic, nonce = topic_of(harness), harness.chain.height() + first_offset
    height, windows = confirm_windows(harness.chain, topic, [SubmissionWindow(TOPIC, nonce, nonce + 240)])
    assert (height, windows) == (harness.chain.height(), [harness.window])
    assert confirm_windows(harness.chain, topic, []) == (height, windows)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        ((None, None), 0),
        ((SubmissionState.ADMITTED, None), 1),
        ((SubmissionState.INCLUDED, SubmissionState.MISSED), 0),
        ((SubmissionState.MISSED, SubmissionState.ABANDONED), 1),
        ((SubmissionState.SIGNED, None), 0),
    ],
)
def test_newest_window_that_needs_work_is_selected(
    harness: CycleHarness, states: tuple[SubmissionState | None, ...], expected: int
) -> None:
    windows = [SubmissionWindow(TOPIC, nonce, nonce + 99) for nonce in (200, 100)]
    for window, state in zip(windows, states, strict=True):
        if state is not None:
            harness.ledger.record_unsigned(harness.key(window.nonce), state, 1.0, reason="")
    assert select_window(harness.ledger, harness.context.resources, windows) == windows[expected]


EPOCHS = Topic(TOPIC, "", epoch_length=100, worker_submission_window=50, ground_truth_lag=0, epoch_last_ended=1000)


@pytest.mark.parametrize(
    ("recorded", "window_blocks", "height", "expected"),
    [
        (None, 50, 1010, []),  # an empty ledger knows nothing of earlier epochs
        (900, 50, 1010, []),
        (800, 50, 1010, [900]),
        (500, 50, 1010, [600, 700, 800, 900]),
        (1000, 50, 1010, []),  # an entry of the window itself is not an earlier one
        (700, 250, 1049, [800]),  # overlapping windows: 900 is open until 1149
        (700, 250, 1048, []),
        (650, 50, 1010, [700, 800, 900]),
    ],
)
def test_closed_windows_since_the_newest_entry_are_missed(
    harness: CycleHarness, recorded: int | None, window_blocks: int, height: int, expected: list[int]
) -> None:
    if recorded is not None:
        harness.ledger.record_unsigned(harness.key(recorded), SubmissionState.ADMITTED, 1.0, reason="")
    topic = replace(EPOCHS, worker_submission_window=window_blocks)
    window = SubmissionWindow(TOPIC, 1000, topic.last_block(1000))
    assert closed_nonces(harness.ledger, harness.context.resources, topic, window, height) == expected


def test_long_absence_records_a_limited_number_of_epochs(harness: CycleHarness) -> None:
    harness.ledger.record_unsigned(harness.key(100), SubmissionState.ADMITTED, 1.0, reason="")
    window = SubmissionWindow(TOPIC, 1_000_000, 1_000_049)
    nonces = closed_nonces(harness.ledger, harness.context.resources, EPOCHS, window, 1_000_010)
    assert (len(nonces), nonces[0], nonces[-1]) == (MAX_MISSED_EPOCHS, 900_000, 999_900)
    without_epochs = replace(EPOCHS, epoch_length=0)
    assert closed_nonces(harness.ledger, harness.context.resources, without_epochs, window, 1_000_010) == []


@pytest.mark.parametrize(
    ("failures", "outage", "reason", "expected"),
    [
        ({}, "", "", NOT_SUBMITTED_REASON),
        ({100: "no model"}, "", "", "no model"),
        ({200: "no model"}, "", "", NOT_SUBMITTED_REASON),
        ({}, "down", "", f"{NOT_SUBMITTED_REASON}; the chain could not be queried: down"),
        ({100: "no model"}, "", "stale", "stale"),
    ],
)
def test_missed_epoch_is_recorded_with_its_reason(
    harness: CycleHarness, failures: dict[int, str], outage: str, reason: str, expected: str
) -> None:
    harness.change(failures=failures)
    assert record_missed(harness.context, [100], outage, reason=reason) == 1
    assert harness.entry(100).row == LedgerRow(SubmissionState.MISSED, -1, 100, 0, reason=expected)
    assert harness.missed == [harness.entry(100)]


def test_missed_epochs_are_reported_once_and_never_replace_an_entry(harness: CycleHarness) -> None:
    harness.ledger.record_unsigned(harness.key(200), SubmissionState.ADMITTED, 1.0, reason="")
    assert record_missed(harness.context, [100, 200, 300]) == 2
    assert record_missed(harness.context, [100, 200, 300]) == 0
    assert [entry.nonce for entry in harness.missed] == [100, 300]
    assert harness.entry(200).row.state is SubmissionState.ADMITTED


# The time of a stage


@pytest.mark.parametrize("error", [RetryLater("later"), SkipEpoch("stale", check="stale")])
def test_stage_is_retried_until_its_share_is_over(harness: CycleHarness, error: ForecastdError) -> None:
    harness.change(retry_until_closed=True)
    timer, pauses = CycleTimer(harness.context), []
    while True:
        start = harness.clock.monotonic()
        ending = timer.pause(error, harness.window, 0.5)
        pauses.append(harness.clock.monotonic() - start)
        if ending is not None:
            break
    assert ending is error
    assert harness.window.height_limit(0.5) <= timer.height <= harness.window.height_limit(0.5) + 7
    assert pauses[0] == pytest.approx(0.5, rel=0.2)
    assert max(pauses) == pytest.approx(30, rel=0.2)
    assert timer.pause(error, harness.window, 0.8) is None, "the next stage has more time"
    assert harness.clock.monotonic() - start - pauses[-1] < 1, "and its pauses start again"


@pytest.mark.parametrize(
    ("error", "persistent"), [(NeedsHuman("no"), True), (RetryLater("later"), False), (ForecastdError("bug"), True)]
)
def test_error_that_is_not_retried_ends_the_cycle(
    harness: CycleHarness, error: ForecastdError, *, persistent: bool
) -> None:
    harness.change(retry_until_closed=persistent)
    start = harness.clock.monotonic()
    assert CycleTimer(harness.context).pause(error, harness.window, 1.0) is error
    assert harness.clock.monotonic() == start


def test_pause_that_uses_the_rest_of_the_time_ends_the_cycle(harness: CycleHarness) -> None:
    harness.change(retry_until_closed=True)
    error, height = RetryLater("later"), harness.chain.height()
    window = SubmissionWindow(TOPIC, height - 9, height + 3)  # its last safe block is the next one
    timer = CycleTimer(harness.context)
    endings = [timer.pause(error, window, 1.0) for _ in range(4)]
    assert endings == [None, None, None, error]
    assert timer.height == height + 1


@pytest.mark.parametrize("has_window", [True, False])
def test_chain_that_does_not_answer_is_waited_for_an_hour(harness: CycleHarness, *, has_window: bool) -> None:
    harness.change(retry_until_closed=True)
    harness.chain.nodes[0].set_faults(UNAVAILABLE)
    window = SubmissionWindow(TOPIC, 1, 2) if has_window else None
    timer, start, ending = CycleTimer(harness.context), harness.clock.monotonic(), None
    while ending is None:
        ending = timer.pause(RetryLater("down"), window, 0.5)
    assert harness.clock.monotonic() - start == pytest.approx(MAX_OUTAGE_SECONDS, abs=36)


def test_answer_starts_the_hour_of_an_outage_again(harness: CycleHarness) -> None:
    harness.change(retry_until_closed=True)
    timer, error = CycleTimer(harness.context), RetryLater("down")
    harness.clock.advance(300)
    assert timer.pause(error, harness.window, 0.5) is None
    harness.chain.nodes[0].set_faults(UNAVAILABLE)
    harness.clock.advance(MAX_OUTAGE_SECONDS - 60)
    assert timer.pause(error, harness.window, 0.5) is None
    harness.clock.advance(60)
    assert timer.pause(error, harness.window, 0.5) is error


def test_stopping_process_does_not_retry(harness: CycleHarness) -> None:
    harness.change(retry_until_closed=True)
    harness.context.wake.set()
    ending = CycleTimer(harness.context).pause(SkipEpoch("stale"), harness.window, 1.0)
    assert isinstance(ending, RetryLater)
    assert "the next run serves this epoch" in str(ending)


@pytest.mark.parametrize(("blocks", "too_late"), [(0, False), (226, False), (227, True)])
def test_forecast_after_the_last_safe_block_is_too_late(harness: CycleHarness, blocks: int, *, too_late: bool) -> None:
    window = harness.window
    harness.advance(blocks)
    timer = CycleTimer(harness.context)
    assert timer.is_too_late(window) is too_late
    harness.chain.nodes[0].set_faults(UNAVAILABLE)
    assert not timer.is_too_late(window), "the chain decides in the end"
    harness.context.wake.set()
    assert timer.is_too_late(window)
