"""The threads that do the work: the watcher, the websockets' listeners, and a worker for each topic with each wallet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from forecastd.chain.client import ChainClient
from forecastd.chain.events import EventStreamReport
from forecastd.clock import Clock
from forecastd.daemon.event_listeners import EventListeners
from forecastd.daemon.resources import ResourceManager, ResourceSet
from forecastd.daemon.schedule import MAX_POLL_SECONDS, MIN_POLL_SECONDS
from forecastd.daemon.status_registry import StatusRegistry, TopicKey
from forecastd.daemon.topic_worker import EpochReporter, TopicResources, TopicWorker, WorkerContext
from forecastd.daemon.watcher import SubmissionWindow, TopicView, Watcher
from forecastd.errors import RetryLater
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.status.model import TopicStatus

log = logging.getLogger(__name__)

POLL_STALL_SECONDS = 90.0  # seconds that a look at one topic may take without a sign of progress
ERROR_PAUSE_SECONDS = 30.0  # seconds until the watcher goes on after an error that nobody foresaw


@dataclass(frozen=True)
class PollOptions:
    """What tests and benchmarks change. `poll` and `events`: whether windows are found by looking, and by being told.

    The bounds of the poll are in seconds.
    """

    poll: bool = True
    events: bool = True
    min_poll_seconds: float = MIN_POLL_SECONDS
    max_poll_seconds: float = MAX_POLL_SECONDS


class ThreadManager:
    """The threads, from `begin` to `stop`."""

    def __init__(
        self, resources: ResourceManager, clock: Clock, liveness: LivenessMonitor, registry: StatusRegistry, reporter: EpochReporter, *, interval: float,
        may_start: Callable[[], bool], poll_options: PollOptions,
    ) -> None:  # fmt: skip
        self._resources, self._clock, self._liveness, self._registry, self._reporter = (
            resources,
            clock,
            liveness,
            registry,
            reporter,
        )
        self._may_start, self._poll_options = may_start, poll_options
        self._workers: dict[TopicKey, TopicWorker] = {}
        self._draining: list[TopicWorker] = []
        self._replaced_sets: list[ResourceSet] = []
        self._listeners: EventListeners | None = None
        self._stopped = False
        self._wake = HeartbeatEvent(liveness, "watcher", POLL_STALL_SECONDS)
        self._watcher = Watcher(
            self._chain, clock, self._dispatch, interval=interval, wake=self._wake, poll=poll_options.poll,
            min_poll_seconds=poll_options.min_poll_seconds, max_poll_seconds=poll_options.max_poll_seconds,
        )  # fmt: skip
        self._thread = threading.Thread(target=self._run_watcher, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin to watch and to serve what the workshop is equipped for."""
        self._reconcile_workers()
        self._thread.start()

    def apply_reload(self, resource_set: ResourceSet, interval: float) -> None:
        """Go on with a reloaded outfit: from the next cycle of each topic on."""
        self._watcher.interval = interval
        self._replaced_sets.append(self._resources.apply_reload(resource_set))
        self._reconcile_workers()

    def views(self) -> dict[int, TopicView]:
        """What the watcher knows of each topic."""
        return self._watcher.views()

    def stream_reports(self) -> list[EventStreamReport]:
        """How the websockets stand."""
        return [] if self._listeners is None else self._listeners.reports()

    @property
    def has_running_workers(self) -> bool:
        """Whether any worker has not ended."""
        return any(not worker.join(0.0) for worker in (*self._workers.values(), *self._draining))

    def release_replaced(self) -> None:
        """Close what a reload has replaced and no cycle uses any more."""
        self._draining = [worker for worker in self._draining if not worker.join(0.0)]
        workers = (*self._workers.values(), *self._draining)
        for resource_set in list(self._replaced_sets):
            if not any(worker.uses(topic) for worker in workers for topic in resource_set.topics.values()):
                self._replaced_sets.remove(resource_set)
                threading.Thread(
                    target=self._resources.release, args=(resource_set,), name="tidying", daemon=True
                ).start()

    def drain(self) -> None:
        """Start no cycle any more; those under way go on to their end."""
        self._stop_watching()
        for worker in self._workers.values():
            worker.drain()

    def stop(self) -> None:
        """Have every cycle end now, finished or abandoned."""
        self._stop_watching()
        for worker in (*self._workers.values(), *self._draining):
            worker.stop()

    def _stop_watching(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._listeners is not None:
            self._listeners.stop()

    def _reconcile_workers(self) -> None:
        """Have a worker for each kit and none besides, and listen to the websockets of the way to the chain."""
        topics = self._resources.current.topics
        for key in [key for key in self._workers if key not in topics]:
            worker = self._workers.pop(key)
            worker.drain()
            self._draining.append(worker)
        self._registry.set_topics({key: _initial_status(topic) for key, topic in topics.items()})
        new_workers = []
        for key, topic in topics.items():
            if key in self._workers:
                self._workers[key].replace_resources(topic)
            else:
                predecessor = next((worker for worker in self._draining if worker.key == key), None)
                self._workers[key] = TopicWorker(topic, self._worker_context(), predecessor=predecessor)
                new_workers.append(self._workers[key])
        self._watcher.set_topics(topic_id for topic_id, _ in topics)
        self._reconcile_listeners()
        for worker in new_workers:
            worker.start()
        self._watcher.request_poll()

    def _reconcile_listeners(self) -> None:
        connection = self._resources.current.connection
        urls = connection.websockets if connection is not None and self._poll_options.events else ()
        if self._listeners is not None and self._listeners.urls != urls:
            self._listeners.stop()
            self._listeners = None
        topic_ids = frozenset(topic_id for topic_id, _ in self._resources.current.topics)
        if self._listeners is None and urls:
            chain_id = next(iter(self._resources.current.topics.values())).chain_id
            self._listeners = EventListeners(
                urls, topic_ids, self._watcher, liveness=self._liveness, clock=self._clock, chain_id=chain_id
            )
            self._listeners.start()
        elif self._listeners is not None:
            self._listeners.set_topics(topic_ids)

    def _worker_context(self) -> WorkerContext:
        ledger, window = self._resources.ledger, self._resources.window
        assert ledger is not None  # noqa: S101 - the books are open before the crew begins
        assert window is not None  # noqa: S101
        return WorkerContext(
            ledger, window, self._clock, self._registry, self._liveness, self._height, self._may_start, self._reporter
        )

    def _height(self, topic_id: int) -> int | None:
        view = self._watcher.views().get(topic_id)
        return None if view is None else view.height

    def _chain(self) -> ChainClient:
        connection = self._resources.current.connection
        if connection is None:
            raise RetryLater("The way to the chain is not open yet.")
        return connection.endpoints

    def _dispatch(self, window: SubmissionWindow) -> None:
        for (topic_id, _), worker in list(self._workers.items()):
            if topic_id == window.topic_id:
                worker.add_window(window)

    def _run_watcher(self) -> None:
        """The watcher's thread. On a new slot of the interval each worker looks, too: that settles what is open."""
        last_slot = None
        while not self._stopped:
            self._wake.clear()
            wait = run_guarded("the watcher", lambda: self._watcher.poll_due_topics(self._wake.beat))
            current_slot = int(self._clock.now() // self._watcher.interval)
            if last_slot not in (None, current_slot):
                for worker in list(self._workers.values()):
                    worker.request_cycle()
            last_slot = current_slot
            self._wake.wait(ERROR_PAUSE_SECONDS if isinstance(wait, UnexpectedError) else wait)
        self._liveness.remove("watcher")


def _initial_status(topic: TopicResources) -> TopicStatus:
    return TopicStatus(
        topic.settings.topic_id,
        wallet=topic.wallet.address,
        model=topic.forecaster.manifest.name,
        source=topic.source.name,
    )
