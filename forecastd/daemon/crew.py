"""The threads that do the work: the watcher, the websockets' listeners, and a worker for each topic with each wallet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.chain.events import StreamReport
from forecastd.clock import Clock
from forecastd.daemon.beats import BeatingEvent, Beats
from forecastd.daemon.book import Book, Key
from forecastd.daemon.guarded import Unforeseen, guarded
from forecastd.daemon.streams import Streams
from forecastd.daemon.topicworker import Kit, Reports, Shared, TopicWorker
from forecastd.daemon.watcher import Opening, View, Watcher
from forecastd.daemon.workshop import Outfit, Workshop
from forecastd.errors import RetryLater
from forecastd.pulse import TopicPulse
from forecastd.schedule import LEAST_POLL, MOST_POLL

log = logging.getLogger(__name__)

LOOKING = 90.0  # seconds that a look at one topic may take without a sign of progress
AFTER_A_FAULT = 30.0  # seconds until the watcher goes on after an error that nobody foresaw


@dataclass(frozen=True)
class Tuning:
    """What tests and benchmarks change. `poll` and `events`: whether windows are found by looking, and by being told.

    The bounds of the poll are in seconds.
    """

    poll: bool = True
    events: bool = True
    least_poll: float = LEAST_POLL
    most_poll: float = MOST_POLL


class Crew:
    """The threads, from `begin` to `stop`."""

    def __init__(
        self, shop: Workshop, clock: Clock, beats: Beats, book: Book, reports: Reports, *, interval: float,
        may_start: Callable[[], bool], tuning: Tuning,
    ) -> None:  # fmt: skip
        self._shop, self._clock, self._beats, self._book, self._reports = shop, clock, beats, book, reports
        self._may_start, self._tuning = may_start, tuning
        self._workers: dict[Key, TopicWorker] = {}
        self._leaving: list[TopicWorker] = []
        self._replaced: list[Outfit] = []
        self._streams: Streams | None = None
        self._ended = False
        self._wake = BeatingEvent(beats, "watcher", LOOKING)
        self._watcher = Watcher(
            self._chain, clock, self._hand_over, interval=interval, wake=self._wake, poll=tuning.poll,
            least=tuning.least_poll, most=tuning.most_poll,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)

    def begin(self) -> None:
        """Begin to watch and to serve what the workshop is equipped for."""
        self._take_up()
        self._thread.start()

    def adopt(self, new: Outfit, interval: float) -> None:
        """Go on with a reloaded outfit: from the next cycle of each topic on."""
        self._watcher.interval = interval
        self._replaced.append(self._shop.adopt(new))
        self._take_up()

    def views(self) -> dict[int, View]:
        """What the watcher knows of each topic."""
        return self._watcher.views()

    def streams(self) -> list[StreamReport]:
        """How the websockets stand."""
        return [] if self._streams is None else self._streams.reports()

    @property
    def working(self) -> bool:
        """Whether any worker has not ended."""
        return any(not worker.join(0.0) for worker in (*self._workers.values(), *self._leaving))

    def tidy(self) -> None:
        """Close what a reload has replaced and no cycle uses any more."""
        self._leaving = [worker for worker in self._leaving if not worker.join(0.0)]
        workers = (*self._workers.values(), *self._leaving)
        for outfit in list(self._replaced):
            if not any(worker.uses(kit) for worker in workers for kit in outfit.kits.values()):
                self._replaced.remove(outfit)
                threading.Thread(target=self._shop.discard, args=(outfit,), name="tidying", daemon=True).start()

    def retire(self) -> None:
        """Start no cycle any more; those under way go on to their end."""
        self._end()
        for worker in self._workers.values():
            worker.retire()

    def stop(self) -> None:
        """Have every cycle end now, finished or abandoned."""
        self._end()
        for worker in (*self._workers.values(), *self._leaving):
            worker.stop()

    def _end(self) -> None:
        self._ended = True
        self._wake.set()
        if self._streams is not None:
            self._streams.stop()

    def _take_up(self) -> None:
        """Have a worker for each kit and none besides, and listen to the websockets of the way to the chain."""
        kits = self._shop.outfit.kits
        for key in [key for key in self._workers if key not in kits]:
            worker = self._workers.pop(key)
            worker.retire()
            self._leaving.append(worker)
        self._book.keep({key: _pulse(kit) for key, kit in kits.items()})
        fresh = []
        for key, kit in kits.items():
            if key in self._workers:
                self._workers[key].swap(kit)
            else:
                before = next((worker for worker in self._leaving if worker.key == key), None)
                self._workers[key] = TopicWorker(kit, self._shared(), after=before)
                fresh.append(self._workers[key])
        self._watcher.watch(topic_id for topic_id, _ in kits)
        self._listen()
        for worker in fresh:
            worker.start()
        self._watcher.look_soon()

    def _listen(self) -> None:
        way = self._shop.outfit.way
        urls = way.events if way is not None and self._tuning.events else ()
        if self._streams is not None and self._streams.urls != urls:
            self._streams.stop()
            self._streams = None
        topics = frozenset(topic_id for topic_id, _ in self._shop.outfit.kits)
        if self._streams is None and urls:
            chain_id = next(iter(self._shop.outfit.kits.values())).chain_id
            self._streams = Streams(
                urls, topics, self._watcher, beats=self._beats, clock=self._clock, chain_id=chain_id
            )
            self._streams.start()
        elif self._streams is not None:
            self._streams.listen_for(topics)

    def _shared(self) -> Shared:
        ledger, window = self._shop.ledger, self._shop.window
        assert ledger is not None  # noqa: S101 - the books are open before the crew begins
        assert window is not None  # noqa: S101
        return Shared(
            ledger, window, self._clock, self._book, self._beats, self._height, self._may_start, self._reports
        )

    def _height(self, topic_id: int) -> int | None:
        view = self._watcher.views().get(topic_id)
        return None if view is None else view.height

    def _chain(self) -> ChainClient:
        way = self._shop.outfit.way
        if way is None:
            raise RetryLater("The way to the chain is not open yet.")
        return way.chain

    def _hand_over(self, opening: Opening) -> None:
        for (topic_id, _), worker in list(self._workers.items()):
            if topic_id == opening.topic_id:
                worker.post(opening)

    def _watch(self) -> None:
        """The watcher's thread. On a new slot of the interval each worker looks, too: that settles what is open."""
        slot = None
        while not self._ended:
            self._wake.clear()
            wait = guarded("the watcher", lambda: self._watcher.step(self._wake.beat))
            now = int(self._clock.now() // self._watcher.interval)
            if slot not in (None, now):
                for worker in list(self._workers.values()):
                    worker.look()
            slot = now
            self._wake.wait(AFTER_A_FAULT if isinstance(wait, Unforeseen) else wait)
        self._beats.end("watcher")


def _pulse(kit: Kit) -> TopicPulse:
    return TopicPulse(
        kit.settings.topic_id, wallet=kit.wallet.address, model=kit.forecaster.manifest.name, source=kit.source.name
    )
