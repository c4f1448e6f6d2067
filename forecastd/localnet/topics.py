"""The topics of the local chain, and which worker nonces are open at a height. Pure arithmetic; nothing is stored.

At the end of block H, the start of an epoch, the chain opens worker nonce H. Blocks with H < height < H + window accept
payloads for it, and the end of block H + window closes it. Nonces follow from the height alone, so catching up on weeks
of empty blocks costs nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from typing import Any

MAX_OPEN_NONCES = 100  # the chain's own limit


@dataclass(frozen=True)
class TopicSpec:
    """One topic. Lengths are in blocks; `workers`, if set, are the only addresses that may submit.

    `active_set` is the number of workers that count for a nonce; on a real chain, the parameter
    `max_top_inferers_to_reward`.
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
            raise ValueError("a topic's id, epoch length, submission window and active set must be 1 or more")

    def starting_at(self, height: int) -> TopicSpec:
        """The topic with its first epoch at the last multiple of the epoch length if that window is still open,
        otherwise at `height`.
        """
        start = max(1, height - height % self.epoch_length)
        return replace(self, first_nonce=start if self.accepts(start, height + 1) else height)

    def newest_nonce(self, height: int) -> int | None:
        """The last epoch start at or before `height`. Its window may be closed."""
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
    """Parse `ID[:EPOCH[:WINDOW]]`, lengths in blocks. The window defaults to the epoch length.

    Raises:
        ValueError: the text has another format.
    """
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError(f"{text!r} is not ID[:EPOCH[:WINDOW]], for example 67:720:600")
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
