"""The watcher over a year of simulated time: leap day, daylight saving, suspensions, clock jumps and outages."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any, cast

import pytest

from forecastd.chain.client import ChainClient
from forecastd.clock import from_iso
from forecastd.daemon.schedule import latest_due_heartbeat
from forecastd.daemon.watcher import PollOptions, TopicView, Watcher
from forecastd.submission.window import SubmissionWindow
from tests.support.simulated_chain import BLOCK_SECONDS, EPOCH_BLOCKS, WINDOW_BLOCKS, SimulatedChain


@dataclass
class WindowRecorder:
    """When each window was passed on first, in true seconds."""

    chain: SimulatedChain
    opened_at: dict[int, float] = field(default_factory=dict)

    def __call__(self, window: SubmissionWindow) -> None:
        self.opened_at.setdefault(window.nonce, self.chain.true_time)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host with daylight saving."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def make_watcher(chain: SimulatedChain, **options: Any) -> tuple[Watcher, WindowRecorder]:
    recorder = WindowRecorder(chain)
    client = cast(ChainClient, chain)
    watcher = Watcher(lambda: client, chain, recorder, interval=3600, wake=Event(), options=PollOptions(**options))
    watcher.set_topics([67])
    return watcher, recorder


def window_times(start: float, end: float) -> dict[int, float]:
    """The windows that open in a span of true time, and when."""
    first = -int(-start // (BLOCK_SECONDS * EPOCH_BLOCKS))
    return {
        number * EPOCH_BLOCKS: number * EPOCH_BLOCKS * BLOCK_SECONDS
        for number in range(first, int(end // (BLOCK_SECONDS * EPOCH_BLOCKS)))
    }


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("start", ["2028-01-01T00:00:00Z", "2037-06-01T00:00:00Z"])
def test_a_year_of_windows_is_seen_with_hourly_heartbeats(start: str) -> None:
    chain = SimulatedChain(from_iso(start))
    started_at, year = chain.true_time, 366 * 86_400
    watcher, recorder = make_watcher(chain, min_poll_seconds=600.0, max_poll_seconds=600.0)
    heartbeats, polls = 0, 0
    while chain.true_time < started_at + year:
        wait = watcher.poll_due_topics()
        polls += 1
        assert 0 < wait <= 600
        if chain.now() % 3600 + wait > 3600:
            assert chain.now() % 3600 + wait == pytest.approx(3600), "a poll comes on the hour"
        chain.advance(wait)
        heartbeats = latest_due_heartbeat(1000.0, heartbeats, chain.monotonic_time, 3600.0)
    expected = window_times(started_at, started_at + year)
    assert set(recorder.opened_at) == set(expected)
    assert max(recorder.opened_at[nonce] - opened for nonce, opened in expected.items()) <= 600
    assert heartbeats == 366 * 24
    assert polls < 366 * 24 * 7


JUMPS = [86_400.0, -86_400.0, 366 * 86_400.0, -20 * 366 * 86_400.0, 3599.0, -1.0, 1e9]


@pytest.mark.parametrize("jump", JUMPS)
def test_wall_clock_jump_misses_no_window(jump: float) -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    started_at = chain.true_time
    watcher, recorder = make_watcher(chain)
    while chain.true_time < started_at + 2 * 86_400:
        chain.advance(max(watcher.poll_due_topics(), 1e-3))
        if chain.offset == 0.0 and chain.true_time > started_at + 40_000:
            chain.offset = jump
        elif chain.true_time > started_at + 90_000:
            chain.offset = 0.0
    for nonce, opened in window_times(started_at, started_at + 2 * 86_400).items():
        assert recorder.opened_at[nonce] - opened <= 120.001


def test_machine_after_sleep_polls_within_one_interval() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    started_at, sleeps = chain.true_time, list[tuple[float, float]]()
    watcher, recorder = make_watcher(chain)
    while chain.true_time < started_at + 3 * 86_400:
        wait = watcher.poll_due_topics()
        if len(sleeps) < 5 and chain.true_time > started_at + 30_000 * (len(sleeps) + 1):
            sleeps.append((chain.true_time, chain.true_time + 7_100 + 900 * len(sleeps)))
            chain.true_time = sleeps[-1][1]  # in the middle of a wait; the monotonic clock stops meanwhile
        chain.advance(max(wait, 1e-3))
    for nonce, opened in window_times(started_at, started_at + 3 * 86_400).items():
        sleep = next((sleep for sleep in sleeps if sleep[0] - 120 <= opened < sleep[1]), None)
        if sleep is None:
            assert recorder.opened_at[nonce] - opened <= 120.001
        elif sleep[1] + 120 < opened + WINDOW_BLOCKS * BLOCK_SECONDS:
            assert recorder.opened_at[nonce] <= sleep[1] + 120.001, "the window was still open when the machine woke"


def test_network_outage_is_retried_and_a_window_is_seen_afterwards() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:10:00Z"), down=True)
    watcher, recorder = make_watcher(chain)
    waits = []
    for _ in range(8):
        waits.append(watcher.poll_due_topics())
        chain.advance(waits[-1])
    assert waits[0] == pytest.approx(5.0), "not a whole poll after the first failure"
    assert watcher.views()[67].error
    chain.down = False
    watcher.poll_due_topics()
    assert list(recorder.opened_at) == [int(chain.true_time / BLOCK_SECONDS) // EPOCH_BLOCKS * EPOCH_BLOCKS]
    assert not watcher.views()[67].error


def test_window_event_without_polling_is_dispatched() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    watcher, recorder = make_watcher(chain, poll=False)
    watcher.poll_due_topics()
    recorder.opened_at.clear()
    nonce = int(chain.true_time / BLOCK_SECONDS) + EPOCH_BLOCKS
    chain.advance(EPOCH_BLOCKS * BLOCK_SECONDS)
    watcher.on_window(67, nonce)
    watcher.on_window(68, nonce)
    assert list(recorder.opened_at) == [nonce]


@pytest.mark.parametrize("nonce", [0, 10**18, 5])
def test_implausible_window_event_triggers_a_poll(nonce: int) -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:50:00Z"))
    watcher, recorder = make_watcher(chain, poll=False)
    watcher.poll_due_topics()
    watcher.on_window(67, nonce)
    assert recorder.opened_at == {}
    chain.advance(600)
    watcher.poll_due_topics()
    assert nonce not in recorder.opened_at
    assert len(recorder.opened_at) == 1, "but it polled"


def test_expected_window_block_triggers_one_poll() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:01Z"))
    watcher, recorder = make_watcher(chain, poll=False)
    watcher.poll_due_topics()
    first = next(iter(recorder.opened_at))
    chain.advance(EPOCH_BLOCKS * BLOCK_SECONDS)
    for height in (first + EPOCH_BLOCKS - 1, first + EPOCH_BLOCKS, first + EPOCH_BLOCKS + 1, 10**15):
        watcher.on_block(height)
    watcher.poll_due_topics()
    assert sorted(recorder.opened_at) == [first, first + EPOCH_BLOCKS]


def test_first_polls_are_frequent_until_block_time_is_measured() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    watcher, _ = make_watcher(chain)
    waits = []
    for _ in range(6):
        waits.append(watcher.poll_due_topics())
        chain.advance(waits[-1])
    assert waits[0] == pytest.approx(5.0)
    assert waits[-1] == pytest.approx(120.0)
    assert watcher.views()[67].block_timer.estimate == pytest.approx(BLOCK_SECONDS)


def test_halted_chain_is_not_polled_fast_forever() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    watcher, _ = make_watcher(chain)
    waits = []
    for _ in range(20):
        waits.append(watcher.poll_due_topics())
        chain.monotonic_time += waits[-1]
    assert waits[-1] == pytest.approx(120.0)


def test_wrong_height_is_corrected() -> None:
    view = TopicView(67).with_height(1000, 1.0)
    assert view.with_height(990, 2.0).height == 1000, "an endpoint that is behind does not lower the height"
    assert view.with_height(10**9, 2.0).with_height(1001, 3.0).height == 1001


def test_removed_topic_is_forgotten() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    watcher, recorder = make_watcher(chain)
    watcher.set_topics([70])
    watcher.on_window(67, 10)
    assert set(watcher.views()) == {70}
    assert recorder.opened_at == {}
