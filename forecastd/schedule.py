"""When to look at a topic, when a heartbeat is due, whether a deadline has passed: pure functions of two clocks.

The one thing to know before changing it: how long something waits is decided by the monotonic clock, and the wall clock only
ever makes a look come sooner. So a wall clock that jumps, by any amount and in any direction, or a machine that was asleep
costs one wait at the most. Wall time is unix seconds, in which there is no daylight saving.
"""

from __future__ import annotations

from dataclasses import dataclass

LEAST_POLL, MOST_POLL = 5.0, 120.0  # seconds between two looks at a topic
BLOCK_SECONDS = 5.0  # of a chain whose blocks have not been timed yet
JUMP = 60.0  # seconds by which the two clocks must part within a tick for it to count as a jump
_LEAST_BLOCK, _MOST_BLOCK = 0.001, 120.0  # seconds a block that are believed
_WEIGHT = 0.3  # of the latest measurement in the smoothed one
_LEAST_SPAN = 3  # blocks between two heights that are compared


@dataclass(frozen=True)
class Look:
    """A look at a topic: at which monotonic second, and in which slot of the wall clock (see `slot`)."""

    at: float
    slot: int


def poll_seconds(
    window_blocks: int, block_seconds: float, *, least: float = LEAST_POLL, most: float = MOST_POLL
) -> float:
    """How often to look for a submission window of so many blocks: three times while it is open, within bounds."""
    return min(most, max(least, window_blocks * block_seconds / 3))


def slot(wall: float, interval: float) -> int:
    """The number of the interval that a wall time falls into; intervals of 3600 s begin on the hour, UTC."""
    return int(wall // interval)


def wait_for_look(last: Look | None, mono: float, wall: float, *, poll: float, interval: float) -> float:
    """Seconds until the next look, 0.0 when it is due: `poll` after the last one, and whenever a new slot has begun.

    Another slot than the last look's is a new one, also when the clock was set back.
    """
    if last is None or slot(wall, interval) != last.slot or not 0 <= mono - last.at < poll:
        return 0.0
    return min(last.at + poll - mono, interval - wall % interval)


def beats_due(started: float, told: int, mono: float, every: float) -> int:
    """The number of the latest heartbeat that is due, `told` when none is new. All times monotonic seconds.

    Beats that were slept through are not made up for, and none drifts.
    """
    return max(told, int((mono - started) // every))


def jumped(mono: float, wall: float, earlier_mono: float, earlier_wall: float) -> float:
    """By how many seconds the wall clock has moved otherwise than the monotonic one, 0.0 when that is not worth telling."""
    parted = (wall - earlier_wall) - (mono - earlier_mono)
    return parted if abs(parted) > JUMP else 0.0


@dataclass(frozen=True)
class BlockTimer:
    """How long the chain's blocks take, from heights as they are told. `seconds` a block, smoothed; None when not known."""

    seconds: float | None = None
    height: int | None = None
    at: float = 0.0

    def heard(self, height: int, mono: float) -> BlockTimer:
        """With one more height. Heights that go back, or come after a long silence, only begin a new measurement."""
        if self.height is None or height < self.height or mono < self.at:
            return BlockTimer(self.seconds, height, mono)
        blocks = height - self.height
        if blocks < _LEAST_SPAN:
            return self
        measured = (mono - self.at) / blocks
        if not _LEAST_BLOCK <= measured <= _MOST_BLOCK:
            return BlockTimer(self.seconds, height, mono)
        smooth = measured if self.seconds is None else self.seconds + _WEIGHT * (measured - self.seconds)
        return BlockTimer(smooth, height, mono)

    @property
    def known(self) -> float:
        """Seconds a block, the chain's usual ones while nothing was measured."""
        return BLOCK_SECONDS if self.seconds is None else self.seconds
