"""A chain and two clocks that a test advances by hand."""

from __future__ import annotations

from dataclasses import dataclass

from forecastd.chain.types import Topic
from forecastd.errors import RetryLater

BLOCK_SECONDS, EPOCH_BLOCKS, WINDOW_BLOCKS = 5.0, 720, 240
TOPIC = Topic(67, "", EPOCH_BLOCKS, WINDOW_BLOCKS, EPOCH_BLOCKS, 0)


@dataclass
class SimulatedChain:
    """A chain that makes blocks in true time, and this machine's two clocks.

    `true_time`: unix seconds. `offset`: seconds by which the wall clock differs from it.
    """

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
