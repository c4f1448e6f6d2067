"""Topics of the local chain, and which worker nonces are open at which height. Pure arithmetic, nothing is stored.

At the end of block H, an epoch's start, the chain opens worker nonce H. Payloads for it are taken in blocks
H < height < H + window, and the end of block H + window closes it. Since nonces follow from the height alone, weeks of
empty blocks cost nothing to catch up.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

MAX_OPEN_NONCES = 100  # as many as the chain keeps


@dataclass(frozen=True)
class TopicSpec:
    """One topic. Lengths in blocks; `workers`, when given, are the only addresses permitted to submit.

    `active_set` is how many workers count for a nonce; on a real chain that is the parameter `max_top_inferers_to_reward`.
    """

    id: int
    epoch_length: int = 720
    worker_submission_window: int = 720
    ground_truth_lag: int = 720
    metadata: str = "Local topic: BTC/USD log-return"
    active: bool = True
    workers: tuple[str, ...] | None = None
    first_nonce: int = 1
    active_set: int = 32

    def __post_init__(self) -> None:
        smallest = min(self.id, self.epoch_length, self.worker_submission_window, self.first_nonce, self.active_set)
        if smallest < 1:
            raise ValueError("a topic's id, epoch length, submission window and active set are 1 or more")

    def starting_at(self, height: int) -> TopicSpec:
        """The topic with its first epoch at `height` or, where that leaves a window open, at the last multiple of its
        length."""
        start = max(1, height - height % self.epoch_length)
        return replace(self, first_nonce=start if self.accepts(start, height + 1) else height)

    def newest_nonce(self, height: int) -> int | None:
        """The last epoch start at or before `height`, open or not."""
        if not self.active or height < self.first_nonce:
            return None
        return height - (height - self.first_nonce) % self.epoch_length

    def open_nonces(self, height: int) -> list[int]:
        """The nonces that are open after block `height`, newest first."""
        newest = self.newest_nonce(height)
        if newest is None:
            return []
        oldest = max(self.first_nonce, height - self.worker_submission_window + 1)
        return list(range(newest, oldest - 1, -self.epoch_length))[:MAX_OPEN_NONCES]

    def is_nonce(self, nonce: int) -> bool:
        """Whether an epoch starts at this height."""
        return self.active and nonce >= self.first_nonce and (nonce - self.first_nonce) % self.epoch_length == 0

    def accepts(self, nonce: int, height: int) -> bool:
        """Whether block `height` may include a payload for `nonce`."""
        return nonce <= height < nonce + self.worker_submission_window

    def last_block(self, nonce: int) -> int:
        """The last block that may include a payload for `nonce`."""
        return nonce + self.worker_submission_window - 1

    def permits(self, address: str) -> bool:
        return self.workers is None or address in self.workers


DEFAULT_TOPICS = (TopicSpec(67),)


def parse_topic(text: str) -> TopicSpec:
    """A topic written as `ID[:EPOCH[:WINDOW]]`, lengths in blocks; the window is the epoch's length unless given.

    Raises:
        ValueError: it is not written so.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not ID[:EPOCH[:WINDOW]], for instance 67:720:600")
    numbers = [int(part) for part in parts]
    epoch = numbers[1] if len(numbers) > 1 else 720
    return TopicSpec(
        numbers[0],
        epoch_length=epoch,
        worker_submission_window=numbers[2] if len(numbers) > 2 else epoch,
        ground_truth_lag=epoch,
    )


def topics_to_json(topics: tuple[TopicSpec, ...]) -> str:
    return json.dumps([asdict(topic) for topic in topics])


def topics_from_json(text: str) -> tuple[TopicSpec, ...]:
    return tuple(_topic(fields) for fields in json.loads(text))


def _topic(fields: dict[str, Any]) -> TopicSpec:
    workers = fields.pop("workers")
    return TopicSpec(**fields, workers=None if workers is None else tuple(workers))
