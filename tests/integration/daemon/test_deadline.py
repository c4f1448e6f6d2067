"""The submission deadline while the wall clock jumps and the machine is suspended."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from forecastd.clock import from_iso, to_iso
from forecastd.daemon.deadline import SubmissionDeadline
from forecastd.errors import RetryLater
from tests.support.simulated_chain import SimulatedChain


@dataclass
class ChainClock:
    """The chain's time, and whether the query fails."""

    chain: SimulatedChain
    down: bool = False

    def __call__(self) -> float:
        if self.down:
            raise RetryLater("no endpoint")
        return self.chain.true_time


def make_deadline(chain: SimulatedChain, timestamp: float | None, chain_clock: ChainClock) -> Iterator[bool]:
    """Whether the deadline has passed, each second. Waits for the query of the chain's time, which has its own thread."""
    deadline = SubmissionDeadline(timestamp, chain.monotonic_time, chain.now(), chain_clock)
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
    assert [time for time, has_passed in passed.items() if not has_passed][-1] == "2038-01-19T03:14:06Z"


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
    assert any(next(ticks) for _ in range(30)), "it still passes at its time"


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
