"""When to poll a topic and when a heartbeat is due: pure functions of the wall and the monotonic clock.

Invariant: the monotonic clock decides how long to wait; the wall clock can only make a poll come sooner. A jump of the
wall clock by any amount, or a suspended machine, therefore costs one wait at most. Wall time is unix seconds, without
daylight saving.
"""

from __future__ import annotations

from dataclasses import dataclass

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 5.0, 120.0  # seconds between two polls of a topic
DEFAULT_BLOCK_SECONDS = 5.0  # block time of a chain until it is measured
MIN_CLOCK_JUMP_SECONDS = 60.0  # difference of the two clocks within a tick that counts as a jump
_MIN_BLOCK_SECONDS, _MAX_BLOCK_SECONDS = 0.001, 120.0  # plausible seconds per block
_SMOOTHING_FACTOR = 0.3  # weight of the latest measurement
_MIN_BLOCK_SPAN = 3  # blocks between two heights that are compared, at least


@dataclass(frozen=True)
class PollTime:
    """When a topic was polled: the monotonic second, and the wall clock's interval (see `interval_index`)."""

    monotonic: float
    interval_index: int


def poll_interval(
    window_blocks: int,
    block_seconds: float,
    *,
    min_seconds: float = MIN_POLL_SECONDS,
    max_seconds: float = MAX_POLL_SECONDS,
) -> float:
    """Seconds between polls: three polls per submission window of `window_blocks` blocks, within the bounds."""
    return min(max_seconds, max(min_seconds, window_blocks * block_seconds / 3))


def interval_index(wall: float, interval: float) -> int:
    """The index of the interval that contains a wall time; intervals of 3600 s start on the hour, UTC."""
    return int(wall // interval)


def seconds_until_poll(
    last_poll: PollTime | None, mono: float, wall: float, *, poll_seconds: float, interval: float
) -> float:
    """Seconds until the next poll, 0.0 when due: `poll_seconds` after the last one, or when an interval starts.

    Any interval other than that of the last poll is a new one, also when the clock was set back.
    """
    if (
        last_poll is None
        or interval_index(wall, interval) != last_poll.interval_index
        or not 0 <= mono - last_poll.monotonic < poll_seconds
    ):
        return 0.0
    return min(last_poll.monotonic + poll_seconds - mono, interval - wall % interval)


def latest_due_heartbeat(started: float, last_heartbeat: int, mono: float, interval: float) -> int:
    """The number of the latest heartbeat that is due, or `last_heartbeat` when there is no new one. Monotonic seconds.

    Heartbeats missed during a suspension are skipped, and the schedule does not drift.
    """
    return max(last_heartbeat, int((mono - started) // interval))


def clock_jump(mono: float, wall: float, earlier_mono: float, earlier_wall: float) -> float:
    """Seconds by which the wall clock moved more than the monotonic one; 0.0 when the difference is small."""
    difference = (wall - earlier_wall) - (mono - earlier_mono)
    return difference if abs(difference) > MIN_CLOCK_JUMP_SECONDS else 0.0


@dataclass(frozen=True)
class BlockTimeEstimator:
    """Estimate the chain's block time from observed heights. `seconds`: per block, smoothed; None when unknown."""

    seconds: float | None = None
    height: int | None = None
    monotonic: float = 0.0

    def update(self, height: int, mono: float) -> BlockTimeEstimator:
        """Add a height. A lower height, or one after a long pause, only starts a new measurement."""
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
        """Seconds per block; the default while nothing was measured."""
        return DEFAULT_BLOCK_SECONDS if self.seconds is None else self.seconds
