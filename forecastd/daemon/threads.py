"""The daemon's working threads: the watcher, the websocket listeners, and a worker for each topic of each wallet."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from forecastd.chain.events import EventListener, EventStreamReport
from forecastd.clock import Clock
from forecastd.daemon.alert_reporter import AlertReporter
from forecastd.daemon.resources import ResourceManager, ResourceSet
from forecastd.daemon.status_registry import StatusRegistry, TopicKey
from forecastd.daemon.topic_worker import TopicWorker
from forecastd.daemon.watcher import PollOptions, TopicView, Watcher
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.unexpected import UnexpectedError, run_guarded
from forecastd.status.model import TopicStatus
from forecastd.submission.context import TopicResources
from forecastd.submission.window import SubmissionWindow

log = logging.getLogger(__name__)

POLL_STALL_SECONDS = 90.0  # limit of one poll without a heartbeat
LISTENER_STALL_SECONDS = 60.0  # limit of a listener without a heartbeat; connecting takes longest
ERROR_PAUSE_SECONDS = 30.0  # pause of a thread after an unexpected error


class ThreadManager:
    """Runs the threads from `start` to `stop`."""

    def __init__(
        self,
        resources: ResourceManager,
        clock: Clock,
        liveness: LivenessMonitor,
        registry: StatusRegistry,
        reporter: AlertReporter,
        *,
        interval: float,
        may_start: Callable[[], bool],
        poll_options: PollOptions,
    ) -> None:
        """`interval`: seconds between cycles that run without a window. `may_start`: whether a cycle may start."""
        self._resources, self._clock, self._liveness = resources, clock, liveness
        self._registry, self._reporter = registry, reporter
        self._may_start, self._poll_options = may_start, poll_options
        self._workers: dict[TopicKey, TopicWorker] = {}
        self._draining: list[TopicWorker] = []
        self._replaced_sets: list[ResourceSet] = []
        self._listeners: EventListeners | None = None
        self._stopped = False
        self._wake = HeartbeatEvent(liveness, "watcher", POLL_STALL_SECONDS)
        self._watcher = Watcher(
            lambda: resources.endpoints, clock, self._dispatch, interval=interval, wake=self._wake, options=poll_options
        )
        self._thread = threading.Thread(target=self._run_watcher, name="watcher", daemon=True)

    def start(self) -> None:
        """Start to watch and to serve the topics of the current resources."""
        self._reconcile_workers()
        self._thread.start()

    def apply_reload(self, resource_set: ResourceSet, interval: float) -> None:
        """Use the reloaded resources from the next cycle of each topic on."""
        self._watcher.interval = interval
        self._replaced_sets.append(self._resources.apply_reload(resource_set))
        self._reconcile_workers()

    def views(self) -> dict[int, TopicView]:
        """What the watcher knows of each topic, by topic id."""
        return self._watcher.views()

    def stream_reports(self) -> list[EventStreamReport]:
        """The state of each websocket."""
        return [] if self._listeners is None else self._listeners.reports()

    @property
    def has_running_workers(self) -> bool:
        """Whether any worker's thread is still running."""
        return any(not worker.join(0.0) for worker in (*self._workers.values(), *self._draining))

    def release_replaced(self) -> None:
        """Close the resources that a reload replaced, once no cycle uses them."""
        self._draining = [worker for worker in self._draining if not worker.join(0.0)]
        workers = (*self._workers.values(), *self._draining)
        for resource_set in list(self._replaced_sets):
            if not any(worker.uses(topic) for worker in workers for topic in resource_set.topics.values()):
                self._replaced_sets.remove(resource_set)
                threading.Thread(
                    target=self._resources.release, args=(resource_set,), name="release", daemon=True
                ).start()

    def drain(self) -> None:
        """Start no more cycles; let the running ones finish."""
        self._stop_watching()
        for worker in self._workers.values():
            worker.drain()

    def stop(self) -> None:
        """Make every cycle end now, finished or abandoned."""
        self._stop_watching()
        for worker in (*self._workers.values(), *self._draining):
            worker.stop()

    def _stop_watching(self) -> None:
        self._stopped = True
        self._wake.set()
        if self._listeners is not None:
            self._listeners.stop()

    def _reconcile_workers(self) -> None:
        """Run exactly one worker for each current topic, and the listeners of the current connection."""
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
                self._workers[key] = self._make_worker(topic)
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

    def _make_worker(self, topic: TopicResources) -> TopicWorker:
        ledger, rolling_window = self._resources.ledger, self._resources.rolling_window
        assert ledger is not None  # noqa: S101 - the storage is open before the threads start
        assert rolling_window is not None  # noqa: S101
        return TopicWorker(
            topic, ledger, rolling_window, self._clock, registry=self._registry, reporter=self._reporter,
            liveness=self._liveness, view=self._watcher.view, may_start=self._may_start,
            predecessor=next((worker for worker in self._draining if worker.key == topic.key), None),
        )  # fmt: skip

    def _dispatch(self, window: SubmissionWindow) -> None:
        for (topic_id, _), worker in list(self._workers.items()):
            if topic_id == window.topic_id:
                worker.add_window(window)

    def _run_watcher(self) -> None:
        """The watcher's thread. When an interval starts, every worker runs a cycle, which settles open submissions."""
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


class EventListeners:
    """Passes the events of several websockets to the watcher, each in its own thread. Any one of them is sufficient."""

    def __init__(
        self,
        urls: tuple[str, ...],
        topics: frozenset[int],
        watcher: Watcher,
        *,
        liveness: LivenessMonitor,
        clock: Clock,
        chain_id: str,
    ) -> None:
        self.urls = urls
        self._liveness = liveness
        self._stopping = False
        self._listeners: dict[EventListener, HeartbeatEvent] = {}
        for number, url in enumerate(dict.fromkeys(urls), start=1):
            listener = EventListener(
                url, topics, chain_id=chain_id, clock=clock, on_block=watcher.on_block, on_opening=watcher.on_window,
                on_connected=watcher.request_poll,
            )  # fmt: skip
            name = f"listener {number} ({listener.name})"
            self._listeners[listener] = HeartbeatEvent(liveness, name, LISTENER_STALL_SECONDS)

    def start(self) -> None:
        """Start the threads."""
        for listener, wake in self._listeners.items():
            threading.Thread(target=self._run, args=(listener, wake), name=wake.name, daemon=True).start()

    def set_topics(self, topics: frozenset[int]) -> None:
        """Listen for these topics instead."""
        for listener in self._listeners:
            listener.listen_for(topics)

    def stop(self) -> None:
        """Stop listening. Returns immediately."""
        self._stopping = True
        for listener, wake in self._listeners.items():
            listener.stop()
            wake.set()

    def reports(self) -> list[EventStreamReport]:
        """The state of each websocket."""
        return [listener.report() for listener in self._listeners]

    def _run(self, listener: EventListener, wake: HeartbeatEvent) -> None:
        while not self._stopping:
            run_guarded(wake.name, lambda: listener.run(wake))
            if not self._stopping:
                wake.wait(ERROR_PAUSE_SECONDS)
        self._liveness.remove(wake.name)


def _initial_status(topic: TopicResources) -> TopicStatus:
    return TopicStatus(
        topic.topic_id,
        wallet=topic.wallet.address,
        model=topic.forecaster.manifest.name,
        source=topic.source.name,
    )
