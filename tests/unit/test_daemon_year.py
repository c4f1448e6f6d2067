"""A year of the daemon in seconds: windows seen, heartbeats, deadline, over leap day, daylight saving, sleep and jumps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Event
from typing import Any, cast

import pytest

from forecastd.chain.answers import Topic
from forecastd.chain.client import ChainClient
from forecastd.clock import from_iso, iso
from forecastd.daemon.deadline import Deadline
from forecastd.daemon.watcher import Opening, View, Watcher
from forecastd.errors import RetryLater
from forecastd.schedule import beats_due

BLOCK, EPOCH, WINDOW = 5.0, 720, 240
TOPIC = Topic(67, "", EPOCH, WINDOW, EPOCH, 0)


@dataclass
class World:
    """True time, in which blocks are made, and this machine's two clocks."""

    true: float
    mono: float = 1000.0
    offset: float = 0.0
    down: bool = False

    def now(self) -> float:
        return self.true + self.offset

    def monotonic(self) -> float:
        return self.mono

    def advance(self, seconds: float) -> None:
        self.true += seconds
        self.mono += seconds

    # The chain

    def height(self) -> int:
        if self.down:
            raise RetryLater("no endpoint")
        return int(self.true / BLOCK)

    def topic(self, _: int) -> Topic:
        self.height()
        return TOPIC

    def is_topic_active(self, _: int) -> bool:
        return True

    def open_nonces(self, _: int) -> list[int]:
        newest = self.height() // EPOCH * EPOCH
        return [newest] if self.height() < newest + WINDOW else []


@dataclass
class Seen:
    """When each window was handed over first, in true seconds."""

    world: World
    at: dict[int, float] = field(default_factory=dict)

    def __call__(self, opening: Opening) -> None:
        self.at.setdefault(opening.nonce, self.world.true)


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host with daylight saving."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def watching(world: World, **more: Any) -> tuple[Watcher, Seen]:
    seen = Seen(world)
    chain = cast(ChainClient, world)
    watcher = Watcher(lambda: chain, world, seen, interval=3600, wake=Event(), **more)
    watcher.watch([67])
    return watcher, seen


def windows(start: float, end: float) -> dict[int, float]:
    """The windows that open in a span of true time, and when."""
    first = -int(-start // (BLOCK * EPOCH))
    return {number * EPOCH: number * EPOCH * BLOCK for number in range(first, int(end // (BLOCK * EPOCH)))}


@pytest.mark.usefixtures("berlin")
@pytest.mark.parametrize("start", ["2028-01-01T00:00:00Z", "2037-06-01T00:00:00Z"])
def test_a_year_of_windows_is_seen_in_time_and_a_heartbeat_comes_every_hour(start: str) -> None:
    world = World(from_iso(start))
    began, year = world.true, 366 * 86_400
    watcher, seen = watching(world, least=600.0, most=600.0)
    beats, looks = 0, 0
    while world.true < began + year:
        wait = watcher.step()
        looks += 1
        assert 0 < wait <= 600
        if world.now() % 3600 + wait > 3600:
            assert world.now() % 3600 + wait == pytest.approx(3600), "a look comes on the hour"
        world.advance(wait)
        beats = beats_due(1000.0, beats, world.mono, 3600.0)
    expected = windows(began, began + year)
    assert set(seen.at) == set(expected)
    assert max(seen.at[nonce] - opened for nonce, opened in expected.items()) <= 600
    assert beats == 366 * 24
    assert looks < 366 * 24 * 7


JUMPS = [86_400.0, -86_400.0, 366 * 86_400.0, -20 * 366 * 86_400.0, 3599.0, -1.0, 1e9]


@pytest.mark.parametrize("jump", JUMPS)
def test_a_jump_of_the_wall_clock_costs_no_window(jump: float) -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    began = world.true
    watcher, seen = watching(world)
    while world.true < began + 2 * 86_400:
        world.advance(max(watcher.step(), 1e-3))
        if world.offset == 0.0 and world.true > began + 40_000:
            world.offset = jump
        elif world.true > began + 90_000:
            world.offset = 0.0
    for nonce, opened in windows(began, began + 2 * 86_400).items():
        assert seen.at[nonce] - opened <= 120.001


def test_a_machine_that_was_asleep_looks_a_poll_after_it_woke_at_the_latest() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    began, slept = world.true, list[tuple[float, float]]()
    watcher, seen = watching(world)
    while world.true < began + 3 * 86_400:
        wait = watcher.step()
        if len(slept) < 5 and world.true > began + 30_000 * (len(slept) + 1):
            slept.append((world.true, world.true + 7_100 + 900 * len(slept)))
            world.true = slept[-1][1]  # in the middle of a wait, and the monotonic clock stands still meanwhile
        world.advance(max(wait, 1e-3))
    for nonce, opened in windows(began, began + 3 * 86_400).items():
        nap = next((nap for nap in slept if nap[0] - 120 <= opened < nap[1]), None)
        if nap is None:
            assert seen.at[nonce] - opened <= 120.001
        elif nap[1] + 120 < opened + WINDOW * BLOCK:
            assert seen.at[nonce] <= nap[1] + 120.001, "the window was still open when the machine woke"


def test_a_network_that_is_down_is_asked_again_soon_and_a_window_is_seen_on_recovery() -> None:
    world = World(from_iso("2026-03-01T00:10:00Z"), down=True)
    watcher, seen = watching(world)
    waits = []
    for _ in range(8):
        waits.append(watcher.step())
        world.advance(waits[-1])
    assert waits[0] == pytest.approx(5.0), "not a whole poll after the first failure"
    assert watcher.views()[67].trouble
    world.down = False
    watcher.step()
    assert list(seen.at) == [int(world.true / BLOCK) // EPOCH * EPOCH]
    assert not watcher.views()[67].trouble


def test_without_polling_a_window_is_handed_over_as_it_is_told_of() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    watcher, seen = watching(world, poll=False)
    watcher.step()
    seen.at.clear()
    nonce = int(world.true / BLOCK) + EPOCH
    world.advance(EPOCH * BLOCK)
    watcher.told_opening(67, nonce)
    watcher.told_opening(68, nonce)
    assert list(seen.at) == [nonce]


@pytest.mark.parametrize("nonce", [0, 10**18, 5])
def test_an_opening_that_cannot_be_is_looked_for_and_not_believed(nonce: int) -> None:
    world = World(from_iso("2026-03-01T00:50:00Z"))
    watcher, seen = watching(world, poll=False)
    watcher.step()
    watcher.told_opening(67, nonce)
    assert seen.at == {}
    world.advance(600)
    watcher.step()
    assert nonce not in seen.at
    assert len(seen.at) == 1, "but it looked"


def test_a_block_at_which_a_window_is_foreseen_makes_one_look() -> None:
    world = World(from_iso("2026-03-01T00:00:01Z"))
    watcher, seen = watching(world, poll=False)
    watcher.step()
    first = next(iter(seen.at))
    world.advance(EPOCH * BLOCK)
    for height in (first + EPOCH - 1, first + EPOCH, first + EPOCH + 1, 10**15):
        watcher.told_block(height)
    watcher.step()
    assert sorted(seen.at) == [first, first + EPOCH]


def test_the_first_looks_come_quickly_until_it_is_known_how_long_a_block_takes() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    watcher, _ = watching(world)
    waits = []
    for _ in range(6):
        waits.append(watcher.step())
        world.advance(waits[-1])
    assert waits[0] == pytest.approx(5.0)
    assert waits[-1] == pytest.approx(120.0)
    assert watcher.views()[67].timer.known == pytest.approx(BLOCK)


def test_a_chain_that_stands_still_is_not_asked_in_haste_for_ever() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    watcher, _ = watching(world)
    waits = []
    for _ in range(20):
        waits.append(watcher.step())
        world.mono += waits[-1]
    assert waits[-1] == pytest.approx(120.0)


def test_a_height_that_was_told_wrong_is_not_believed_for_ever() -> None:
    right = View(67).at(1000, 1.0)
    assert right.at(990, 2.0).height == 1000, "an endpoint that is behind takes nothing back"
    assert right.at(10**9, 2.0).at(1001, 3.0).height == 1001


def test_a_topic_that_is_not_watched_any_more_is_forgotten() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    watcher, seen = watching(world)
    watcher.watch([70])
    watcher.told_opening(67, 10)
    assert set(watcher.views()) == {70}
    assert seen.at == {}


# The deadline


@dataclass
class Told:
    """The chain's time, and whether it can be asked."""

    world: World
    down: bool = False

    def __call__(self) -> float:
        if self.down:
            raise RetryLater("no endpoint")
        return self.world.true


def ticking(world: World, at: float | None, told: Told) -> Iterator[bool]:
    """Whether the deadline has passed, each second; waits for the question to the chain, which has a thread of its own."""
    deadline = Deadline(at, world.mono, world.now(), told)
    while True:
        world.advance(1.0)
        deadline.tick(world.mono, world.now())
        while deadline._asking is not None:
            deadline.tick(world.mono, world.now())
        yield deadline.passed(world.mono, world.now())


def test_the_deadline_is_exact_to_the_tick() -> None:
    world = World(from_iso("2038-01-19T03:14:00Z"))
    ticks = ticking(world, from_iso("2038-01-19T03:14:08Z"), Told(world))
    passed = {iso(world.now()): next(ticks) for _ in range(20)}
    assert [at for at, over in passed.items() if not over][-1] == "2038-01-19T03:14:06Z"


def test_without_a_deadline_nothing_passes() -> None:
    world = World(1e12)
    assert not any(next(ticking(world, None, Told(world))) for _ in range(5))


@pytest.mark.parametrize("down", [False, True])
def test_a_clock_that_jumps_past_the_deadline_does_not_end_the_daemon(down: bool) -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    told = Told(world, down)
    ticks = ticking(world, world.true + 3600, told)
    next(ticks)
    world.offset = 10 * 366 * 86_400.0
    assert not any(next(ticks) for _ in range(200))
    told.down = False
    while world.true < from_iso("2026-03-01T00:59:50Z"):
        assert not next(ticks)
    assert any(next(ticks) for _ in range(30)), "it passes in its own time all the same"


def test_a_clock_that_is_set_back_does_not_move_the_deadline() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    ticks = ticking(world, world.true + 600, Told(world))
    next(ticks)
    world.offset = -5 * 86_400.0
    passed = [next(ticks) for _ in range(640)]
    assert passed.index(True) == pytest.approx(598, abs=3)


def test_a_machine_that_slept_past_the_deadline_believes_its_clock_when_the_chain_confirms_it() -> None:
    world = World(from_iso("2026-03-01T00:00:00Z"))
    ticks = ticking(world, world.true + 600, Told(world))
    next(ticks)
    world.true += 7200
    assert any(next(ticks) for _ in range(5))
