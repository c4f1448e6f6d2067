"""Everything a child says to its parent, from whichever of its threads: one whole message at a time."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from threading import Event, Lock, Thread
from typing import Any

from forecastd.supervise.detector import Phase
from forecastd.supervise.messages import ChannelClosed, Message, send

BEAT_SECONDS = 1.0


class Voice:
    """The child's side of the channel, for writing."""

    def __init__(self, channel: socket.socket, launch: str) -> None:
        self.launch = launch
        self._channel = channel
        self._lock = Lock()

    def beat(self) -> None:
        """From now on say every second that the process lives, from a thread of its own."""
        Thread(target=self._beat, name="alive", daemon=True).start()

    def say(self, message: Message) -> None:
        """Raises ChannelClosed."""
        with self._lock:
            send(self._channel, message)

    def report(
        self, job: str | None, phase: Phase, done: float, total: float, detail: Mapping[str, Any] | None = None
    ) -> None:
        """The work has got this far. Called by the work itself, never by a timer."""
        told: dict[str, Any] = {"job": job, "phase": phase.value, "done": done, "total": total}
        told["detail"] = dict(detail or {})
        self.say(Message("progress", self.launch, told))

    def report_stale(self, job: str | None, phase: Phase) -> None:
        """Progress as a launch before this one would report it."""
        told = {"job": job, "phase": phase.value, "done": 1.0, "total": 1.0}
        self.say(Message("progress", "an-earlier-launch", told))

    def say_raw(self, data: bytes) -> None:
        """Write bytes as they are. Raises ChannelClosed."""
        try:
            with self._lock:
                self._channel.sendall(data)
        except OSError as error:
            raise ChannelClosed from error

    def _beat(self) -> None:
        never = Event()
        while not never.wait(BEAT_SECONDS):
            try:
                self.say(Message("alive", self.launch))
            except ChannelClosed:
                return
