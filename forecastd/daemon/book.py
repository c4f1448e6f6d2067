"""What the daemon knows of its topics, in one place: each thread puts down what it did, whoever tells of it reads here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock

from forecastd.daemon.watcher import View
from forecastd.outcome import Outcome
from forecastd.pulse import TopicPulse, WindowPulse

Key = tuple[int, str]  # topic id, the wallet's address


class Book:
    """A `TopicPulse` for each topic with each wallet. Any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._topics: dict[Key, TopicPulse] = {}
        self.changes = 0  # how often something new was put down

    def keep(self, topics: Mapping[Key, TopicPulse]) -> None:
        """Have these topics and no others; those that are there already keep what they counted."""
        counted = ("cycles", "submitted", "missed", "outcomes", "stages", "lags", "last_outcomes", "last_submitted",
                   "confirmed_nonce", "newest_nonce", "oldest_unserved", "watched_from")  # fmt: skip
        with self._lock:
            self._topics = {
                key: replace(topic, **{name: getattr(self._topics[key], name) for name in counted})
                if key in self._topics else topic
                for key, topic in topics.items()
            }  # fmt: skip

    def change(self, key: Key, change: Callable[[TopicPulse], TopicPulse]) -> None:
        """Put down what is new of a topic; nothing when it is not served any more."""
        with self._lock:
            if key in self._topics:
                self._topics[key] = change(self._topics[key])
                self.changes += 1

    def ended(self, key: Key, outcome: Outcome, at: float) -> None:
        """A cycle ended so at `at` (unix seconds). A look that found nothing to do is not worth remembering."""

        def after(topic: TopicPulse) -> TopicPulse:
            told = replace(topic, nonce=None, phase="waiting", phase_since=at)
            known = outcome.outcome == "already_submitted" and outcome.nonce is not None
            nothing_new = known and (topic.confirmed_nonce or 0) >= (outcome.nonce or 0)
            if outcome.outcome == "no_window" or nothing_new:
                return told
            return replace(told.after(outcome, at), missed=topic.missed)  # what the ledger says counts, see `missed`

        self.change(key, after)

    def missed(self, key: Key) -> None:
        """The ledger has one missed epoch more, whoever found it out."""
        self.change(key, lambda topic: replace(topic, missed=topic.missed + 1))

    def opened(self, key: Key, nonce: int) -> None:
        """A window was seen open. What is newer than the last confirmed one has not been served yet."""

        def after(topic: TopicPulse) -> TopicPulse:
            newest = max(nonce, topic.newest_nonce or nonce)
            unserved = nonce > (topic.confirmed_nonce or 0)
            oldest = min(nonce, topic.oldest_unserved or nonce) if unserved else topic.oldest_unserved
            return replace(topic, newest_nonce=newest, oldest_unserved=oldest)

        self.change(key, after)

    def topics(self, views: Mapping[int, View], mono: float) -> tuple[TopicPulse, ...]:
        """All of it, with what the watcher sees of each topic at the monotonic second `mono`."""
        with self._lock:
            found = list(self._topics.values())
        return tuple(_seen(topic, views[topic.topic_id], mono) if topic.topic_id in views else topic for topic in found)


def _seen(topic: TopicPulse, view: View, mono: float) -> TopicPulse:
    return replace(
        topic,
        active=view.active,
        height=view.height,
        height_age=None if view.height is None else max(0.0, mono - view.told),
        watched_from=view.watched_from,
        epoch_length=None if view.topic is None else view.topic.epoch_length,
        block_seconds=view.timer.known,
        poll_seconds=view.poll,
        window=_window(view, mono),
    )


def _window(view: View, mono: float) -> WindowPulse | None:
    """The newest window while it is open, else the next one as the epoch's length foresees it."""
    if view.topic is None or view.height is None:
        return None
    newest, length, seconds = view.newest_nonce, view.topic.epoch_length, view.timer.known
    since = max(0.0, mono - view.told)
    nonce = newest if newest is not None and view.height < view.topic.last_block(newest) else None
    if nonce is None:
        if not view.active or length <= 0:
            return None
        begun = newest if newest is not None else view.topic.epoch_last_ended
        first = begun + max(1, -(-(view.height + 1 - begun) // length)) * length
        blocks = first - view.height
        return WindowPulse(False, None, first, view.topic.last_block(first), blocks, max(0.0, blocks * seconds - since))
    last = view.topic.last_block(nonce)
    blocks = last - view.height
    return WindowPulse(True, nonce, nonce, last, blocks, max(0.0, blocks * seconds - since))
