"""Finds open submission windows, by polling the chain and by websocket events, and passes them on.

Invariant: a poll queries the network and may take seconds. The event methods, which websocket threads call, never
wait for a poll, and a topic whose poll fails delays the next topic only by the time of that poll.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from threading import Event, Lock

from forecastd.chain.client import ChainClient
from forecastd.chain.types import Topic
from forecastd.clock import Clock
from forecastd.daemon.schedule import (
    MAX_POLL_SECONDS,
    MIN_POLL_SECONDS,
    BlockTimeEstimator,
    PollTime,
    interval_index,
    poll_interval,
    seconds_until_poll,
)
from forecastd.errors import ForecastdError
from forecastd.runtime.retry import backoff_seconds
from forecastd.submission.window import SubmissionWindow, find_windows

log = logging.getLogger(__name__)

MAX_HEIGHT_JUMP = 1000  # blocks from the last polled height within which an event, or a lower height, is plausible
TIMING_POLLS = 12  # quick polls at first to measure the block time; limited, because a chain may have halted
FIRST_RETRY_SECONDS = 5.0  # after a failed poll; doubles each time, up to the poll interval


@dataclass(frozen=True)
class TopicView:
    """What the watcher knows of a topic. `height_time`: the monotonic second at which `height` was reported."""

    topic_id: int
    topic: Topic | None = None
    active: bool | None = None
    height: int | None = None
    height_time: float = 0.0
    watch_start_height: int | None = None
    newest_nonce: int | None = None
    block_timer: BlockTimeEstimator = field(default_factory=BlockTimeEstimator)
    poll_seconds: float = MIN_POLL_SECONDS
    error: str = ""

    def with_height(self, height: int, mono: float) -> TopicView:
        """The view after a height was reported at the monotonic second `mono`."""
        previous_height = height if self.height is None else self.height
        if previous_height > height + MAX_HEIGHT_JUMP:  # no endpoint lags that far: the previous height was wrong
            previous_height = height
        return replace(
            self,
            height=max(previous_height, height),
            height_time=mono,
            watch_start_height=height if self.watch_start_height is None else self.watch_start_height,
            block_timer=self.block_timer.update(height, mono),
        )


@dataclass(frozen=True)
class PollOptions:
    """How windows are found: by polling (`poll`), by websocket events (`events`), or both.

    Without `poll`, topics are polled only on request.
    """

    poll: bool = True
    events: bool = True
    min_poll_seconds: float = MIN_POLL_SECONDS
    max_poll_seconds: float = MAX_POLL_SECONDS


@dataclass
class _WatchedTopic:
    """A topic being watched; guarded by the watcher's lock."""

    view: TopicView
    last_poll: PollTime | None = None
    predicted_after: int = 0
    failures: int = 0
    poll_count: int = 0
    topic_slot: int | None = None


class Watcher:
    """Watches topics. `window_handler` is called with every open window, again at each poll; it must not block.

    `interval`: seconds; every topic is polled when an interval starts. `wake` is set when `poll_due_topics` should be
    called now.
    """

    def __init__(
        self,
        chain: Callable[[], ChainClient],
        clock: Clock,
        window_handler: Callable[[SubmissionWindow], None],
        *,
        interval: float,
        wake: Event,
        options: PollOptions,
    ) -> None:
        self.interval = interval
        self._chain, self._clock, self._window_handler = chain, clock, window_handler
        self._wake, self._options = wake, options
        self._lock = Lock()
        self._watched_topics: dict[int, _WatchedTopic] = {}

    def set_topics(self, topics: Iterable[int]) -> None:
        """Watch exactly these topics from now on."""
        with self._lock:
            self._watched_topics = {
                topic_id: self._watched_topics.get(topic_id) or _WatchedTopic(TopicView(topic_id))
                for topic_id in dict.fromkeys(topics)
            }

    def request_poll(self) -> None:
        """Make every topic due for a poll now."""
        with self._lock:
            for watched in self._watched_topics.values():
                watched.last_poll = None
                watched.failures = 0
        self._wake.set()

    def views(self) -> dict[int, TopicView]:
        """What is known of each topic, by topic id."""
        with self._lock:
            return {topic_id: watched.view for topic_id, watched in self._watched_topics.items()}

    def view(self, topic_id: int) -> TopicView | None:
        """What is known of a topic, None when it is not watched."""
        return self.views().get(topic_id)

    # Polling

    def poll_due_topics(self, beat: Callable[[], None] = lambda: None) -> float:
        """Poll every topic that is due; returns the seconds until the next poll. Calls `beat` after each topic."""
        waits = [self._options.max_poll_seconds]
        for topic_id in self.views():
            if self._seconds_until_poll(topic_id) <= 0:
                self._poll_topic(topic_id)
            beat()
            waits.append(self._seconds_until_poll(topic_id))
        return min(waits)

    def _seconds_until_poll(self, topic_id: int) -> float:
        mono, wall = self._clock.monotonic(), self._clock.now()
        with self._lock:
            watched = self._watched_topics.get(topic_id)
            if watched is None:
                return self._options.max_poll_seconds
            if watched.last_poll is None:
                return 0.0
            if not self._options.poll and not watched.failures:
                return self._options.max_poll_seconds
            poll = watched.view.poll_seconds
            if watched.failures:
                poll = backoff_seconds(watched.failures, FIRST_RETRY_SECONDS, poll, jitter=0)
            return seconds_until_poll(watched.last_poll, mono, wall, poll_seconds=poll, interval=self.interval)

    def _poll_topic(self, topic_id: int) -> None:
        """Poll one topic. A failure is logged when it begins and when it ends.

        The topic and whether it is active are queried once per interval.
        """
        current_slot = interval_index(self._clock.now(), self.interval)
        with self._lock:
            watched = self._watched_topics.get(topic_id)
            if watched is None:
                return
            topic = watched.view.topic if watched.topic_slot == current_slot else None
            active, previous_error = watched.view.active, watched.view.error
        height, windows, error = None, list[SubmissionWindow](), ""
        try:
            chain = self._chain()
            if topic is None:
                topic = chain.topic(topic_id)
                active = topic is not None and chain.is_topic_active(topic_id)
            height, windows = (chain.height(), []) if topic is None else find_windows(chain, topic)
            error = f"Topic {topic_id} does not exist." if topic is None else ""
        except ForecastdError as failure:
            error = str(failure)
        with self._lock:
            watched = self._watched_topics.get(topic_id)
            if watched is None:
                return
            watched.last_poll = PollTime(self._clock.monotonic(), current_slot)
            watched.failures = watched.failures + 1 if error else 0
            watched.view = replace(watched.view, error=error)
            if height is not None:
                self._record_answer(watched, topic, height, windows, active=active)
                watched.topic_slot = current_slot
        if error and not previous_error:
            log.warning("Cannot poll topic %d: %s Retrying.", topic_id, error, extra={"action": "poll"})
        elif previous_error and not error:
            log.info("polling topic %d works again", topic_id, extra={"action": "poll"})
        for window in reversed(windows):
            self._window_handler(window)

    def _record_answer(
        self, watched: _WatchedTopic, topic: Topic | None, height: int, windows: list[SubmissionWindow], *,
        active: bool | None,
    ) -> None:  # fmt: skip
        """Record what the chain answered, and decide how often to poll."""
        options, view = self._options, watched.view.with_height(height, self._clock.monotonic())
        poll_seconds = options.min_poll_seconds
        if topic is not None and (view.block_timer.seconds is not None or watched.poll_count >= TIMING_POLLS):
            poll_seconds = poll_interval(
                topic.worker_submission_window, view.block_timer.estimate,
                min_seconds=options.min_poll_seconds, max_seconds=options.max_poll_seconds,
            )  # fmt: skip
        newest = windows[0].nonce if windows else view.newest_nonce
        watched.view = replace(view, topic=topic, active=active, newest_nonce=newest, poll_seconds=poll_seconds)
        watched.poll_count += 1

    # Events

    def on_block(self, height: int) -> None:
        """An event reports a new block. Polls each topic whose next window should be open then, once per window."""
        with self._lock:
            for watched in self._watched_topics.values():
                topic, newest = watched.view.topic, watched.view.newest_nonce
                if topic is None or newest is None or not watched.view.active or height < newest + topic.epoch_length:
                    continue
                if watched.predicted_after != newest:
                    watched.predicted_after, watched.last_poll = newest, None
                    self._wake.set()

    def on_window(self, topic_id: int, nonce: int) -> None:
        """An event reports a new window. An implausible one is not passed on; the topic is polled instead."""
        with self._lock:
            watched = self._watched_topics.get(topic_id)
            if watched is None:
                return
            topic, height = watched.view.topic, watched.view.height
            if topic is None or height is None or not height - MAX_HEIGHT_JUMP < nonce < height + MAX_HEIGHT_JUMP:
                watched.last_poll = None
                self._wake.set()
                return
            watched.view = replace(watched.view, newest_nonce=max(nonce, watched.view.newest_nonce or nonce))
        self._window_handler(SubmissionWindow(topic_id, nonce, topic.last_block(nonce)))
