"""When to look at a topic, when a heartbeat is due, whether a deadline has passed: pure functions of two clocks.

The one thing to know before changing it: how long something waits is decided by the monotonic clock, and the wall clock only
ever makes a look come sooner. So a wall clock that jumps, by any amount and in any direction, or a machine that was asleep
costs one wait at the most. Wall time is unix seconds, in which there is no daylight saving.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 5.0, 120.0  # seconds between two looks at a topic
DEFAULT_BLOCK_SECONDS = 5.0  # of a chain whose blocks have not been timed yet
MIN_CLOCK_JUMP_SECONDS = 60.0  # seconds by which the two clocks must part within a tick for it to count as a jump
_MIN_BLOCK_SECONDS, _MAX_BLOCK_SECONDS = 0.001, 120.0  # seconds a block that are believed
_SMOOTHING_FACTOR = 0.3  # of the latest measurement in the smoothed one
_MIN_BLOCK_SPAN = 3  # blocks between two heights that are compared


@dataclass(frozen=True)
class PollTime:
    """A look at a topic: at which monotonic second, and in which slot of the wall clock (see `slot`)."""

    monotonic: float
    interval_index: int


def poll_interval(
    window_blocks: int,
    block_seconds: float,
    *,
    min_seconds: float = MIN_POLL_SECONDS,
    max_seconds: float = MAX_POLL_SECONDS,
) -> float:
    """How often to look for a submission window of so many blocks: three times while it is open, within bounds."""
    return min(max_seconds, max(min_seconds, window_blocks * block_seconds / 3))


def interval_index(wall: float, interval: float) -> int:
    """The number of the interval that a wall time falls into; intervals of 3600 s begin on the hour, UTC."""
    return int(wall // interval)


def seconds_until_poll(
    last_poll: PollTime | None, mono: float, wall: float, *, poll_seconds: float, interval: float
) -> float:
    """Seconds until the next look, 0.0 when it is due: `poll` after the last one, and whenever a new slot has begun.

    Another slot than the last look's is a new one, also when the clock was set back.
    """
    if (
        last_poll is None
        or interval_index(wall, interval) != last_poll.interval_index
        or not 0 <= mono - last_poll.monotonic < poll_seconds
    ):
        return 0.0
    return min(last_poll.monotonic + poll_seconds - mono, interval - wall % interval)


def latest_due_heartbeat(started: float, last_heartbeat: int, mono: float, interval: float) -> int:
    """The number of the latest heartbeat that is due, `told` when none is new. All times monotonic seconds.

    Beats that were slept through are not made up for, and none drifts.
    """
    return max(last_heartbeat, int((mono - started) // interval))


def clock_jump(mono: float, wall: float, earlier_mono: float, earlier_wall: float) -> float:
    """By how many seconds the wall clock has moved otherwise than the monotonic one, 0.0 when that is not worth telling."""
    difference = (wall - earlier_wall) - (mono - earlier_mono)
    return difference if abs(difference) > MIN_CLOCK_JUMP_SECONDS else 0.0


@dataclass(frozen=True)
class BlockTimeEstimator:
    """How long the chain's blocks take, from heights as they are told. `seconds` a block, smoothed; None when not known."""

    seconds: float | None = None
    height: int | None = None
    monotonic: float = 0.0

    def update(self, height: int, mono: float) -> BlockTimeEstimator:
        """With one more height. Heights that go back, or come after a long silence, only begin a new measurement."""
        if self.height is None or height < self.height or mono < self.monotonic:
            return BlockTimeEstimator(self.seconds, height, mono)
        blocks = height - self.height
        if blocks < _MIN_BLOCK_SPAN:
            return self
        block_seconds = (mono - self.monotonic) / blocks
        if not _MIN_BLOCK_SECONDS <= block_seconds <= _MAX_BLOCK_SECONDS:
            return BlockTimeEstimator(self.seconds, height, mono)
        estimate = (
            block_seconds if self.seconds is None else self.seconds + _SMOOTHING_FACTOR * (block_seconds - self.seconds)
        )
        return BlockTimeEstimator(estimate, height, mono)

    @property
    def estimate(self) -> float:
        """Seconds a block, the chain's usual ones while nothing was measured."""
        return DEFAULT_BLOCK_SECONDS if self.seconds is None else self.seconds
