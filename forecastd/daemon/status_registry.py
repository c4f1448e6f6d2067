"""The status of the daemon's topics in one place: the threads write it, the publisher reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock

from forecastd.daemon.watcher import TopicView
from forecastd.ledger.outcome import Outcome
from forecastd.status.model import TopicStatus, WindowStatus

TopicKey = tuple[int, str]  # topic id, wallet address


class StatusRegistry:
    """A `TopicStatus` for each topic of each wallet. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._topics: dict[TopicKey, TopicStatus] = {}
        self.revision = 0  # number of changes so far

    def set_topics(self, topics: Mapping[TopicKey, TopicStatus]) -> None:
        """Replace the topics. A topic that is already present keeps its counters and nonces."""
        with self._lock:
            self._topics = {
                key: replace(self._topics.get(key, topic), model=topic.model, source=topic.source)
                for key, topic in topics.items()
            }

    def update(self, key: TopicKey, update: Callable[[TopicStatus], TopicStatus]) -> None:
        """Change the status of a topic; ignored when the topic is no longer served."""
        with self._lock:
            if key in self._topics:
                self._topics[key] = update(self._topics[key])
                self.revision += 1

    def record_outcome(self, key: TopicKey, outcome: Outcome, ended_at: float) -> None:
        """A cycle ended at `ended_at` (unix seconds). A cycle that had nothing to do is not recorded."""

        def with_outcome(topic: TopicStatus) -> TopicStatus:
            idle_topic = replace(topic, nonce=None, phase="waiting", phase_since=ended_at)
            already_submitted = outcome.outcome == "already_submitted" and outcome.nonce is not None
            nothing_new = already_submitted and (topic.confirmed_nonce or 0) >= (outcome.nonce or 0)
            if outcome.outcome == "no_window" or nothing_new:
                return idle_topic
            # The ledger decides which epochs are missed, see `record_missed`.
            return replace(idle_topic.with_outcome(outcome, ended_at), missed=topic.missed)

        self.update(key, with_outcome)

    def record_missed(self, key: TopicKey) -> None:
        """One more epoch is recorded as missed in the ledger."""
        self.update(key, lambda topic: replace(topic, missed=topic.missed + 1))

    def record_window(self, key: TopicKey, nonce: int) -> None:
        """A window is open. An epoch newer than the last confirmed one is not served yet."""

        def with_window(topic: TopicStatus) -> TopicStatus:
            newest = max(nonce, topic.newest_nonce or nonce)
            unserved = nonce > (topic.confirmed_nonce or 0)
            oldest = min(nonce, topic.oldest_unserved_nonce or nonce) if unserved else topic.oldest_unserved_nonce
            return replace(topic, newest_nonce=newest, oldest_unserved_nonce=oldest)

        self.update(key, with_window)

    def snapshot(self, views: Mapping[int, TopicView], mono: float) -> tuple[TopicStatus, ...]:
        """All topics, combined with the watcher's views at the monotonic second `mono`."""
        with self._lock:
            topic_statuses = list(self._topics.values())
        return tuple(
            _with_view(topic, views[topic.topic_id], mono) if topic.topic_id in views else topic
            for topic in topic_statuses
        )


def _with_view(topic: TopicStatus, view: TopicView, mono: float) -> TopicStatus:
    return replace(
        topic,
        active=view.active,
        height=view.height,
        height_age=None if view.height is None else max(0.0, mono - view.height_time),
        watch_start_height=view.watch_start_height,
        epoch_length=None if view.topic is None else view.topic.epoch_length,
        block_seconds=view.block_timer.estimate,
        poll_seconds=view.poll_seconds,
        window=_window_status(view, mono),
    )


def _window_status(view: TopicView, mono: float) -> WindowStatus | None:
    """The newest window while it is open, else the next one as predicted from the epoch length."""
    if view.topic is None or view.height is None:
        return None
    newest, length, block_seconds = view.newest_nonce, view.topic.epoch_length, view.block_timer.estimate
    seconds_since_height = max(0.0, mono - view.height_time)
    nonce = newest if newest is not None and view.height < view.topic.last_block(newest) else None
    if nonce is None:
        if not view.active or length <= 0:
            return None
        last_start = newest if newest is not None else view.topic.epoch_last_ended
        first = last_start + max(1, -(-(view.height + 1 - last_start) // length)) * length
        blocks = first - view.height
        return WindowStatus(
            False,
            None,
            first,
            view.topic.last_block(first),
            blocks,
            max(0.0, blocks * block_seconds - seconds_since_height),
        )
    last = view.topic.last_block(nonce)
    blocks = last - view.height
    return WindowStatus(True, nonce, nonce, last, blocks, max(0.0, blocks * block_seconds - seconds_since_height))
