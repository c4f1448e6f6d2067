"""Submission windows: which are open, which one to serve, which epochs were missed, and how much time is left.

Block height decides whether a window is open. Monotonic time only limits how long an unreachable chain is waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.chain.types import Topic
from forecastd.errors import ForecastdError, RetryLater, SkipEpoch
from forecastd.ledger.ledger import FINISHED_STATES, Ledger, SubmissionState
from forecastd.runtime.retry import Pauses
from forecastd.submission.context import CycleContext, TopicResources

SAFETY_MARGIN_BLOCKS = 2  # before a window's end: a transaction signed later is unlikely to be included
MAX_OUTAGE_SECONDS = 3600.0  # how long a retrying cycle waits for an endpoint to answer
MAX_MISSED_EPOCHS = 1000  # recorded at once after a long absence
NOT_SUBMITTED_REASON = "no submission was made while its window was open"


@dataclass(frozen=True)
class SubmissionWindow:
    """A submission window. Blocks with `nonce` < height <= `last_height` may include a payload for `nonce`."""

    topic_id: int
    nonce: int
    last_height: int

    def is_open(self, height: int) -> bool:
        """Whether the block after `height` can still include a payload."""
        return self.nonce <= height < self.last_height

    def height_limit(self, share: float) -> float:
        """The height until which a stage with this share of the window may succeed."""
        share_end = self.nonce + share * (self.last_height - self.nonce)
        return min(share_end, self.last_height - SAFETY_MARGIN_BLOCKS)


def find_windows(chain: ChainClient, topic: Topic) -> tuple[int, list[SubmissionWindow]]:
    """The chain's height, and the windows of a topic that are open then, newest first."""
    height = chain.height()
    windows = [
        SubmissionWindow(topic.id, nonce, topic.last_block(nonce))
        for nonce in sorted(chain.open_nonces(topic.id), reverse=True)
    ]
    return height, [window for window in windows if window.is_open(height)]


def confirm_windows(
    chain: ChainClient, topic: Topic, windows: Sequence[SubmissionWindow]
) -> tuple[int, list[SubmissionWindow]]:
    """Like `find_windows`, but the chain is queried for its windows only when none of `windows` is open."""
    if windows:
        height = chain.height()
        open_windows = [window for window in windows if window.is_open(height)]
        if open_windows:
            return height, sorted(open_windows, key=lambda window: window.nonce, reverse=True)
    return find_windows(chain, topic)


def select_window(ledger: Ledger, resources: TopicResources, windows: Sequence[SubmissionWindow]) -> SubmissionWindow:
    """The first of `windows` whose epoch still needs work; the first of all if none does."""
    for window in windows:
        entry = ledger.find(resources.epoch_key(window.nonce))
        if entry is None or entry.row.state not in FINISHED_STATES:
            return window
    return windows[0]


def closed_nonces(
    ledger: Ledger, resources: TopicResources, topic: Topic, window: SubmissionWindow, height: int
) -> list[int]:
    """The nonces between the newest one in the ledger and `window` whose windows have closed, oldest first.

    Without an entry in the ledger nothing is known of earlier epochs, so the list is empty.
    """
    chain_id, topic_id, nonce, wallet = resources.epoch_key(window.nonce)
    newest_recorded = ledger.newest_nonce_before(chain_id, wallet, topic_id, nonce)
    if newest_recorded is None or topic.epoch_length <= 0:
        return []
    nonces = range(nonce - topic.epoch_length, newest_recorded, -topic.epoch_length)
    return [nonce for nonce in nonces if height >= topic.last_block(nonce)][:MAX_MISSED_EPOCHS][::-1]


def record_missed(context: CycleContext, nonces: Iterable[int], outage: str = "", *, reason: str = "") -> int:
    """Record epochs that have no entry as missed, and report them; returns how many were recorded.

    `reason`: why; by default the failure of an earlier cycle, if there was one. `outage`: why the chain could not be
    queried meanwhile.
    """
    missed_count = 0
    for nonce in nonces:
        cause = reason or context.failures.get(nonce, NOT_SUBMITTED_REASON)
        entry = context.ledger.record_unsigned(
            context.resources.epoch_key(nonce),
            SubmissionState.MISSED,
            context.clock.now(),
            reason=f"{cause}; the chain could not be queried: {outage}" if outage else cause,
        )
        if entry is not None:
            missed_count += 1
            context.on_missed(entry)
    return missed_count


class CycleTimer:
    """How much of the window is left for a stage, and the pauses between its attempts. `height`: the latest one seen."""

    def __init__(self, context: CycleContext) -> None:
        self.height = 0
        self._context = context
        self._last_answer_time = context.clock.monotonic()
        self._pauses: dict[float | None, Pauses] = {}  # by the share of the stage, None for the first one

    def pause(self, error: ForecastdError, window: SubmissionWindow | None, share: float) -> ForecastdError | None:
        """After `error` of a stage, pause before its next attempt; return the error that ends the cycle instead, if any.

        `share` of `window` is for this stage. Without a window, no endpoint has answered yet.
        """
        is_temporary = isinstance(error, (RetryLater, SkipEpoch))
        if not (self._context.retry_until_closed and is_temporary and self._has_time(window, share)):
            return error
        pauses = self._pauses.setdefault(None if window is None else share, Pauses(self._context.wake))
        if not pauses.wait(error):
            return RetryLater("Stopped before a forecast was signed; the next run serves this epoch.")
        return None if self._has_time(window, share) else error

    def is_too_late(self, window: SubmissionWindow) -> bool:
        """Whether a forecast is useless now: the last safe block has passed, or this process is stopping."""
        try:
            return self._context.wake.is_set() or self._query_height() >= window.height_limit(1.0)
        except RetryLater:
            return False

    def _has_time(self, window: SubmissionWindow | None, share: float) -> bool:
        if window is not None:
            try:
                return self._query_height() < window.height_limit(share)
            except RetryLater:  # while the height is not known, the window counts as open; the chain decides in the end
                pass
        return self._context.clock.monotonic() - self._last_answer_time < MAX_OUTAGE_SECONDS

    def _query_height(self) -> int:
        self.height = self._context.chain.height()
        self._last_answer_time = self._context.clock.monotonic()
        return self.height
