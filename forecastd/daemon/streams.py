"""The websockets' listeners, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

from forecastd.chain.events import Listener, StreamReport
from forecastd.clock import Clock
from forecastd.daemon.beats import BeatingEvent, Beats
from forecastd.daemon.guarded import guarded
from forecastd.daemon.watcher import Watcher

HEARING = 60.0  # seconds that a listener may take without a sign of progress: to connect, above all
AFTER_A_FAULT = 30.0  # seconds until a listener goes on after an error that nobody foresaw


class Streams:
    """Listens to several websockets and tells the watcher. They stand in for each other: any one is enough."""

    def __init__(
        self,
        urls: tuple[str, ...],
        topics: Iterable[int],
        watcher: Watcher,
        *,
        beats: Beats,
        clock: Clock,
        chain_id: str,
    ) -> None:
        self.urls = urls
        self._beats = beats
        self._stopping = False
        listed = frozenset(topics)
        self._listeners = [
            Listener(
                url, listed, chain_id=chain_id, clock=clock, on_block=watcher.told_block,
                on_opening=watcher.told_opening, on_connected=watcher.look_soon,
            )
            for url in dict.fromkeys(urls)
        ]  # fmt: skip
        self._wakes = [
            BeatingEvent(beats, f"listener {number} ({one.name})", HEARING)
            for number, one in enumerate(self._listeners, start=1)
        ]

    def start(self) -> None:
        """Begin to listen."""
        for listener, wake in zip(self._listeners, self._wakes, strict=True):
            threading.Thread(target=self._run, args=(listener, wake), name=wake.name, daemon=True).start()

    def listen_for(self, topics: Iterable[int]) -> None:
        """Listen for these topics instead."""
        listed = frozenset(topics)
        for listener in self._listeners:
            listener.listen_for(listed)

    def stop(self) -> None:
        """Stop listening. Returns at once."""
        self._stopping = True
        for listener, wake in zip(self._listeners, self._wakes, strict=True):
            listener.stop()
            wake.set()

    def reports(self) -> list[StreamReport]:
        """How each stands."""
        return [listener.report() for listener in self._listeners]

    def _run(self, listener: Listener, wake: BeatingEvent) -> None:
        work: Callable[[], None] = lambda: listener.run(wake)  # noqa: E731 - a name for its type
        while not self._stopping:
            guarded(wake.name, work)
            if not self._stopping:
                wake.wait(AFTER_A_FAULT)
        self._beats.end(wake.name)
