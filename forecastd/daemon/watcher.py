"""Sees submission windows open, by looking every so often and by being told, and hands them over. Serves none itself.

The one thing to know before changing it: a look asks the network and may take seconds, so whoever is told something (by the
websocket's thread) never waits for a look, and a topic that cannot be looked at costs the next one no more than its own time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from threading import Event, Lock

from forecastd.chain.answers import Topic
from forecastd.chain.client import ChainClient
from forecastd.clock import Clock
from forecastd.errors import ForecastdError
from forecastd.schedule import (
    LEAST_POLL,
    MOST_POLL,
    BlockTimer,
    Look,
    poll_seconds,
    slot,
    wait_for_look,
)

log = logging.getLogger(__name__)

FAR = 1000  # blocks from the last height that was looked up, within which an event, or a lower height, is believed
TIMING_LOOKS = (
    12  # made quickly at first, to learn how long a block takes; a chain that stands still is not asked for ever
)
FIRST_AGAIN = 5.0  # seconds after a look that failed; twice as long each time, as long as a poll at most


@dataclass(frozen=True)
class Opening:
    """A submission window that is open. `last_height`: the last block that may include a payload for `nonce`."""

    topic_id: int
    nonce: int
    last_height: int


@dataclass(frozen=True)
class View:
    """What is known of a topic. `height` was told at the monotonic second `told`; `poll` in seconds."""

    topic_id: int
    topic: Topic | None = None
    active: bool | None = None
    height: int | None = None
    told: float = 0.0
    watched_from: int | None = None
    newest_nonce: int | None = None
    timer: BlockTimer = field(default_factory=BlockTimer)
    poll: float = LEAST_POLL
    trouble: str = ""

    def at(self, height: int, mono: float) -> View:
        """With a height that was told just now."""
        known = self.height if self.height is not None else height
        if known > height + FAR:  # an endpoint that is behind is never that far behind: what was told before was wrong
            known = height
        started = self.watched_from if self.watched_from is not None else height
        timer = self.timer.heard(height, mono)
        return replace(self, height=max(known, height), told=mono, watched_from=started, timer=timer)


@dataclass
class _Watch:
    """A topic being watched. Changed under the watcher's lock."""

    view: View
    look: Look | None = None
    foreseen: int = 0
    failures: int = 0
    looks: int = 0
    slot_of_topic: int | None = None


class Watcher:
    """Watches topics. `hand_over` is called with every open window it sees, again at each look; it must not wait.

    `least` and `most`: bounds of the poll in seconds. With `poll` false nothing is looked at but on request. `wake` is set
    when a step is wanted at once.
    """

    def __init__(
        self, chain: Callable[[], ChainClient], clock: Clock, hand_over: Callable[[Opening], None], *, interval: float,
        wake: Event, poll: bool = True, least: float = LEAST_POLL, most: float = MOST_POLL,
    ) -> None:  # fmt: skip
        self.interval = interval
        self._chain, self._clock, self._hand_over = chain, clock, hand_over
        self._poll, self._least, self._most = poll, least, most
        self._wake = wake
        self._lock = Lock()
        self._watches: dict[int, _Watch] = {}

    def watch(self, topics: Iterable[int]) -> None:
        """Watch these topics from now on, and no others."""
        with self._lock:
            self._watches = {one: self._watches.get(one) or _Watch(View(one)) for one in dict.fromkeys(topics)}

    def look_soon(self) -> None:
        """Have every topic looked at in the next step."""
        with self._lock:
            for one in self._watches.values():
                one.look = None
                one.failures = 0
        self._wake.set()

    def views(self) -> dict[int, View]:
        """What is known of each topic."""
        with self._lock:
            return {topic_id: one.view for topic_id, one in self._watches.items()}

    # By looking

    def step(self, beat: Callable[[], None] = lambda: None) -> float:
        """Look at every topic that is due, and give the seconds until the next look. `beat` is called between looks."""
        waits = [self._most]
        for topic_id in self.views():
            if self._wait_of(topic_id) <= 0:
                self._look(topic_id)
            beat()
            waits.append(self._wait_of(topic_id))
        return min(waits)

    def _wait_of(self, topic_id: int) -> float:
        mono, wall = self._clock.monotonic(), self._clock.now()
        with self._lock:
            one = self._watches.get(topic_id)
            if one is None:
                return self._most
            if one.look is None:
                return 0.0
            if not self._poll and not one.failures:
                return self._most
            again = min(one.view.poll, FIRST_AGAIN * 2 ** min(one.failures - 1, 10))
            poll = again if one.failures else one.view.poll
            return wait_for_look(one.look, mono, wall, poll=poll, interval=self.interval)

    def _look(self, topic_id: int) -> None:
        """One look. What goes wrong is told when it begins and when it ends."""
        now = slot(self._clock.now(), self.interval)
        with self._lock:
            one = self._watches.get(topic_id)
            if one is None:
                return
            known = one.view.topic if one.slot_of_topic == now else None
        try:
            topic, active, height, nonces = self._ask(topic_id, known)
        except ForecastdError as error:
            self._looked(topic_id, now, str(error))
            return
        mono = self._clock.monotonic()
        openings = [] if topic is None else [
            Opening(topic_id, nonce, topic.last_block(nonce)) for nonce in nonces if nonce <= height < topic.last_block(nonce)
        ]  # fmt: skip
        with self._lock:
            one = self._watches.get(topic_id)
            if one is None:
                return
            view = one.view.at(height, mono)
            newest = max((opening.nonce for opening in openings), default=view.newest_nonce)
            timing = view.timer.seconds is None and one.looks < TIMING_LOOKS
            poll = self._least if topic is None or timing else poll_seconds(
                topic.worker_submission_window, view.timer.known, least=self._least, most=self._most
            )  # fmt: skip
            one.looks += 1
            active = view.active if active is None else active
            one.view = replace(view, topic=topic, active=active, newest_nonce=newest, poll=poll)
            one.slot_of_topic = now
        self._looked(topic_id, now, "" if topic is not None else f"Topic {topic_id} does not exist.")
        for opening in sorted(openings, key=lambda opening: opening.nonce):
            self._hand_over(opening)

    def _ask(self, topic_id: int, known: Topic | None) -> tuple[Topic | None, bool | None, int, list[int]]:
        """The topic, whether it is active, the height and the open nonces. What seldom changes is asked once a slot."""
        chain, active = self._chain(), None
        topic = known
        if topic is None:
            topic = chain.topic(topic_id)
            active = topic is not None and chain.is_topic_active(topic_id)
        height = chain.height()
        return topic, active, height, [] if topic is None else chain.open_nonces(topic_id)

    def _looked(self, topic_id: int, now: int, trouble: str) -> None:
        with self._lock:
            one = self._watches.get(topic_id)
            if one is None:
                return
            before = one.view.trouble
            one.look = Look(self._clock.monotonic(), now)
            one.failures = one.failures + 1 if trouble else 0
            one.view = replace(one.view, trouble=trouble)
        if trouble and not before:
            log.warning("Cannot look at topic %d: %s Trying again.", topic_id, trouble, extra={"action": "look"})
        elif before and not trouble:
            log.info("topic %d can be looked at again", topic_id, extra={"action": "look"})

    # By being told

    def told_block(self, height: int) -> None:
        """A block was made, or so it is said: where a window is foreseen by then, that is looked at, once."""
        with self._lock:
            for one in self._watches.values():
                topic, newest = one.view.topic, one.view.newest_nonce
                if topic is None or newest is None or not one.view.active or height < newest + topic.epoch_length:
                    continue
                if one.foreseen != newest:
                    one.foreseen, one.look = newest, None
                    self._wake.set()

    def told_opening(self, topic_id: int, nonce: int) -> None:
        """A window of a topic was opened, or so it is said. One that cannot be is looked for instead of believed."""
        with self._lock:
            one = self._watches.get(topic_id)
            if one is None:
                return
            topic, height = one.view.topic, one.view.height
            if topic is None or height is None or not height - FAR < nonce < height + FAR:
                one.look = None
                self._wake.set()
                return
            one.view = replace(one.view, newest_nonce=max(nonce, one.view.newest_nonce or nonce))
        self._hand_over(Opening(topic_id, nonce, topic.last_block(nonce)))
