"""A year of the daemon in seconds: windows seen, heartbeats, deadline, over leap day, daylight saving, sleep and jumps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any, cast

import pytest

from forecastd.chain.client import ChainClient
from forecastd.chain.types import Topic
from forecastd.clock import from_iso, to_iso
from forecastd.daemon.deadline import SubmissionDeadline
from forecastd.daemon.schedule import latest_due_heartbeat
from forecastd.daemon.watcher import SubmissionWindow, TopicView, Watcher
from forecastd.errors import RetryLater

BLOCK_SECONDS, EPOCH_BLOCKS, WINDOW_BLOCKS = 5.0, 720, 240
TOPIC = Topic(67, "", EPOCH_BLOCKS, WINDOW_BLOCKS, EPOCH_BLOCKS, 0)


@dataclass
class SimulatedChain:
    """True time, in which blocks are made, and this machine's two clocks."""

    true_time: float
    monotonic_time: float = 1000.0
    offset: float = 0.0
    down: bool = False

    def now(self) -> float:
        return self.true_time + self.offset

    def monotonic(self) -> float:
        return self.monotonic_time

    def advance(self, seconds: float) -> None:
        self.true_time += seconds
        self.monotonic_time += seconds

    # The chain

    def height(self) -> int:
        if self.down:
            raise RetryLater("no endpoint")
        return int(self.true_time / BLOCK_SECONDS)

    def topic(self, _: int) -> Topic:
        self.height()
        return TOPIC

    def is_topic_active(self, _: int) -> bool:
        return True

    def open_nonces(self, _: int) -> list[int]:
        newest = self.height() // EPOCH_BLOCKS * EPOCH_BLOCKS
        return [newest] if self.height() < newest + WINDOW_BLOCKS else []


@dataclass
class WindowRecorder:
    """When each window was handed over first, in true seconds."""

    world: SimulatedChain
    opened_at: dict[int, float] = field(default_factory=dict)

    def __call__(self, opening: SubmissionWindow) -> None:
        self.opened_at.setdefault(opening.nonce, self.world.true_time)


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
    watcher = Watcher(lambda: client, chain, recorder, interval=3600, wake=Event(), **options)
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
    watcher, recorder = make_watcher(chain, least=600.0, most=600.0)
    beats, looks = 0, 0
    while chain.true_time < started_at + year:
        wait = watcher.poll_due_topics()
        looks += 1
        assert 0 < wait <= 600
        if chain.now() % 3600 + wait > 3600:
            assert chain.now() % 3600 + wait == pytest.approx(3600), "a look comes on the hour"
        chain.advance(wait)
        beats = latest_due_heartbeat(1000.0, beats, chain.monotonic_time, 3600.0)
    expected = window_times(started_at, started_at + year)
    assert set(recorder.opened_at) == set(expected)
    assert max(recorder.opened_at[nonce] - opened for nonce, opened in expected.items()) <= 600
    assert beats == 366 * 24
    assert looks < 366 * 24 * 7


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
    started_at, slept = chain.true_time, list[tuple[float, float]]()
    watcher, recorder = make_watcher(chain)
    while chain.true_time < started_at + 3 * 86_400:
        wait = watcher.poll_due_topics()
        if len(slept) < 5 and chain.true_time > started_at + 30_000 * (len(slept) + 1):
            slept.append((chain.true_time, chain.true_time + 7_100 + 900 * len(slept)))
            chain.true_time = slept[-1][1]  # in the middle of a wait, and the monotonic clock stands still meanwhile
        chain.advance(max(wait, 1e-3))
    for nonce, opened in window_times(started_at, started_at + 3 * 86_400).items():
        nap = next((nap for nap in slept if nap[0] - 120 <= opened < nap[1]), None)
        if nap is None:
            assert recorder.opened_at[nonce] - opened <= 120.001
        elif nap[1] + 120 < opened + WINDOW_BLOCKS * BLOCK_SECONDS:
            assert recorder.opened_at[nonce] <= nap[1] + 120.001, "the window was still open when the machine woke"


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
    assert len(recorder.opened_at) == 1, "but it looked"


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
    right = TopicView(67).with_height(1000, 1.0)
    assert right.with_height(990, 2.0).height == 1000, "an endpoint that is behind takes nothing back"
    assert right.with_height(10**9, 2.0).with_height(1001, 3.0).height == 1001


def test_removed_topic_is_forgotten() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    watcher, recorder = make_watcher(chain)
    watcher.set_topics([70])
    watcher.on_window(67, 10)
    assert set(watcher.views()) == {70}
    assert recorder.opened_at == {}


# The deadline


@dataclass
class ChainClock:
    """The chain's time, and whether it can be asked."""

    world: SimulatedChain
    down: bool = False

    def __call__(self) -> float:
        if self.down:
            raise RetryLater("no endpoint")
        return self.world.true_time


def make_deadline(chain: SimulatedChain, at: float | None, chain_clock: ChainClock) -> Iterator[bool]:
    """Whether the deadline has passed, each second; waits for the question to the chain, which has a thread of its own."""
    deadline = SubmissionDeadline(at, chain.monotonic_time, chain.now(), chain_clock)
    while True:
        chain.advance(1.0)
        deadline.tick(chain.monotonic_time, chain.now())
        while deadline._query is not None:
            deadline.tick(chain.monotonic_time, chain.now())
        yield deadline.has_passed(chain.monotonic_time, chain.now())


def test_deadline_passes_at_the_exact_tick() -> None:
    chain = SimulatedChain(from_iso("2038-01-19T03:14:00Z"))
    ticks = make_deadline(chain, from_iso("2038-01-19T03:14:08Z"), ChainClock(chain))
    passed = {to_iso(chain.now()): next(ticks) for _ in range(20)}
    assert [at for at, over in passed.items() if not over][-1] == "2038-01-19T03:14:06Z"


def test_missing_deadline_never_passes() -> None:
    chain = SimulatedChain(1e12)
    assert not any(next(make_deadline(chain, None, ChainClock(chain))) for _ in range(5))


@pytest.mark.parametrize("down", [False, True])
def test_clock_jump_past_the_deadline_does_not_pass_it(down: bool) -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    chain_clock = ChainClock(chain, down)
    ticks = make_deadline(chain, chain.true_time + 3600, chain_clock)
    next(ticks)
    chain.offset = 10 * 366 * 86_400.0
    assert not any(next(ticks) for _ in range(200))
    chain_clock.down = False
    while chain.true_time < from_iso("2026-03-01T00:59:50Z"):
        assert not next(ticks)
    assert any(next(ticks) for _ in range(30)), "it passes in its own time all the same"


def test_clock_set_back_does_not_move_the_deadline() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    ticks = make_deadline(chain, chain.true_time + 600, ChainClock(chain))
    next(ticks)
    chain.offset = -5 * 86_400.0
    passed = [next(ticks) for _ in range(640)]
    assert passed.index(True) == pytest.approx(598, abs=3)


def test_deadline_after_sleep_passes_when_the_chain_confirms_the_time() -> None:
    chain = SimulatedChain(from_iso("2026-03-01T00:00:00Z"))
    ticks = make_deadline(chain, chain.true_time + 600, ChainClock(chain))
    next(ticks)
    chain.true_time += 7200
    assert any(next(ticks) for _ in range(5))
