"""The websockets' listeners, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from forecastd.chain.events import EventListener, EventStreamReport
from forecastd.clock import Clock
from forecastd.daemon.watcher import Watcher
from forecastd.runtime.liveness import HeartbeatEvent, LivenessMonitor
from forecastd.runtime.unexpected import run_guarded

LISTENER_STALL_SECONDS = 60.0  # seconds that a listener may take without a sign of progress: to connect, above all
ERROR_PAUSE_SECONDS = 30.0  # seconds until a listener goes on after an error that nobody foresaw


class EventListeners:
    """Listens to several websockets and tells the watcher. They stand in for each other: any one is enough."""

    def __init__(
        self,
        urls: tuple[str, ...],
        topics: Iterable[int],
        watcher: Watcher,
        *,
        liveness: LivenessMonitor,
        clock: Clock,
        chain_id: str,
    ) -> None:
        self.urls = urls
        self._liveness = liveness
        self._stopping = False
        topic_ids = frozenset(topics)
        self._listeners = [
            EventListener(
                url, topic_ids, chain_id=chain_id, clock=clock, on_block=watcher.on_block,
                on_opening=watcher.on_window, on_connected=watcher.request_poll,
            )
            for url in dict.fromkeys(urls)
        ]  # fmt: skip
        self._wakes = [
            HeartbeatEvent(liveness, f"listener {number} ({listener.name})", LISTENER_STALL_SECONDS)
            for number, listener in enumerate(self._listeners, start=1)
        ]

    def start(self) -> None:
        """Begin to listen."""
        for listener, wake in zip(self._listeners, self._wakes, strict=True):
            threading.Thread(target=self._run, args=(listener, wake), name=wake.name, daemon=True).start()

    def set_topics(self, topics: Iterable[int]) -> None:
        """Listen for these topics instead."""
        topic_ids = frozenset(topics)
        for listener in self._listeners:
            listener.listen_for(topic_ids)

    def stop(self) -> None:
        """Stop listening. Returns at once."""
        self._stopping = True
        for listener, wake in zip(self._listeners, self._wakes, strict=True):
            listener.stop()
            wake.set()

    def reports(self) -> list[EventStreamReport]:
        """How each stands."""
        return [listener.report() for listener in self._listeners]

    def _run(self, listener: EventListener, wake: HeartbeatEvent) -> None:
        work: Callable[[], None] = lambda: listener.run(wake)  # noqa: E731 - a name for its type
        while not self._stopping:
            run_guarded(wake.name, work)
            if not self._stopping:
                wake.wait(ERROR_PAUSE_SECONDS)
        self._liveness.remove(wake.name)
